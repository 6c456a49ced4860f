"""Packaging: lower bounds only; constraints.txt pins what is tested."""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Puts configs/ into the package, where `find_config` looks for it; a checkout keeps it at its top."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "modelzoo", "configs")
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build, which may hold files that are gone
            shutil.copytree(HERE / "configs", target)


setup(
    name="mediswift-trainer",
    version=runpy.run_path(str(HERE / "modelzoo" / "version.py"))["VERSION"],
    description="Sparse pre-training and dense fine-tuning of biomedical GPTs from one YAML",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="sparsity, pre-training, language model, biomedical, GPT, RigL, gradual pruning, Cerebras, PyTorch",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
        "Typing :: Typed",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2403.00952"},
    cmdclass={"build_py": BuildWithConfigs},
    python_requires=">=3.11",
    packages=find_packages(include=["modelzoo*", "data_preprocessing*"]),
    package_data={
        "modelzoo": ["py.typed"],
        "data_preprocessing": ["py.typed"],
        "modelzoo.kernels.compiled": ["csrc/*"],
    },
    install_requires=[
        "torch>=2.7",
        "numpy>=1.25",
        "aiohttp>=3.10",
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
        "backports.zstd>=1.0; python_version < '3.14'",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3",
            "peft>=0.18",
            "hypothesis>=6.100",
            "seqeval>=1.2",
            "gguf>=0.17.1",
            "ruff>=0.9",
            "sacremoses>=0.1",
            "sentencepiece>=0.2",
            "basedpyright>=1.31",
            "transformers>=4.57",
        ],
        "hub": ["huggingface_hub>=0.34"],  # the command hf
        "tokenizers": ["protobuf>=4", "sacremoses>=0.1", "sentencepiece>=0.2"],  # convert BioGPT's and SentencePiece's
        "eval": ["lm-eval[hf]>=0.4.9"],
        "export": ["gguf>=0.17.1", "huggingface_hub>=0.34"],
        "onnx": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"],
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
