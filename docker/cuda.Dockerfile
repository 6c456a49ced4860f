# docker build -f docker/cuda.Dockerfile -t mediswift:cuda . && docker run --rm --gpus all mediswift:cuda doctor
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/mediswift
COPY . .
ENV PIP_NO_CACHE_DIR=1
RUN pip install --no-deps --require-hashes -r locks/torch-cuda.txt -r locks/default.txt && pip install --no-deps --no-build-isolation .
ENTRYPOINT ["mediswift"]
