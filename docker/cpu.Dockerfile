# docker build -f docker/cpu.Dockerfile -t mediswift . && docker run --rm -v "$PWD:/data" -w /data mediswift doctor
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/mediswift
COPY . .
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1
RUN pip install --no-deps --require-hashes -r locks/torch-cpu.txt -r locks/default.txt && pip install --no-deps --no-build-isolation .
ENTRYPOINT ["mediswift"]
