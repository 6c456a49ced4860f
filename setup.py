"""Packaging: lower bounds only; constraints.txt pins what is tested."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="mediswift-trainer",
    version="0.1.0",
    description="Sparse pre-training and dense fine-tuning of biomedical GPTs from one YAML",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["modelzoo*", "data_preprocessing*"]),
    package_data={"modelzoo.kernels": ["csrc/*"]},
    install_requires=[
        "torch>=2.7",
        "numpy>=1.25",
        "gigatoken>=0.10",
        "h5py>=3.10",
        "hdf5plugin>=4.4",
        "lxml>=5.0",
        "matplotlib>=3.8",
        "pydantic>=2.10",
        "pyyaml>=6.0",
        "safetensors>=0.4",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "tensorboard>=2.16",
        "tokenizers>=0.20",
        "zlib-ng>=1.0",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3",
            "peft>=0.18",
            "hypothesis>=6.100",
            "seqeval>=1.2",
            "ruff>=0.9",
            "transformers>=4.57",
        ],
        "eval": ["lm-eval[hf]>=0.4.9"],
        "bench": ["transformers>=4.57", "accelerate>=1.0"],
        "triton": ["triton>=3.0; sys_platform == 'linux'"],  # holds the GPU kernels' arithmetic in tests, without a GPU
        "ray": ["ray>=2.40"],
        "wandb": ["wandb>=0.19"],
        "mlflow": ["mlflow>=2.20"],
    },
    entry_points={
        "console_scripts": ["mediswift=modelzoo.cli:main", "mediswift-data=data_preprocessing.cli:main"],
    },
)
