"""`run.py doctor`: what this machine has and what would run how, without starting anything. No torch."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec

from modelzoo import host, version
from modelzoo.backends import arithmetic
from modelzoo.config.errors import UserError
from modelzoo.config.sections.device import Backend, Precision
from modelzoo.kernels import processor
from modelzoo.progress import format_size

NEEDED = ("torch", "numpy", "h5py", "safetensors", "tokenizers", "pydantic")
EXTRAS = {  # distribution -> what it is for
    "transformers": "tests, benchmarks, and loading exports elsewhere",
    "lm_eval": "score on lm_eval:TASK",
    "peft": "adapters of PEFT",
    "gguf": "export to GGUF",
    "onnxscript": "export to ONNX",
    "sentencepiece": "tokenizers of Llama and Mistral",
    "sacremoses": "BioGPT's tokenizer",
    "wandb": "WandbLogger",
    "ray": "--engine ray",
    "triton": "packed weights on a GPU, compiled layers there",
    "cerebras_pytorch": "the CS-2 and CS-3",
}


def describe_machine(folder: str = ".") -> list[str]:
    """What is here, a line each; the last ones are what would run how, and what to do next.

    Args:
        folder: where runs would be written, for the room on its disk.

    Raises:
        UserError: it is no folder.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: is no folder in which runs could be written")
    cores, memory = os.cpu_count() or 1, host.total_memory()
    have = f", {format_size(memory)} of memory" if memory else ""
    lines = [
        f"version    {version.describe()}, Python {platform.python_version()} ({sys.executable})",
        f"processor  {processor.model_name()}: {processor.title()}, {cores} cores{have}",
        f"kernels    {_describe_compiler()}",
        f"GPU        {_describe_gpu()}",
        f"disk       {format_size(shutil.disk_usage(folder).free)} free in {os.path.abspath(folder)}",
    ]
    found = {name: _find_version(name) for name in NEEDED}
    missing = [name for name, v in found.items() if v is None]
    lines.append("packages   " + ", ".join(f"{name} {v}" for name, v in found.items() if v is not None))
    if missing:
        lines.append(f"missing    {', '.join(missing)}: pip install -c constraints.txt .")
    there = {name: v for name in EXTRAS if (v := _find_version(name)) is not None}
    lines.append("extras     " + (", ".join(f"{name} {v}" for name, v in there.items()) or "none"))
    lines += [f"           not here: {n} ({what})" for n, what in EXTRAS.items() if n not in there]
    lines += [f"runs       {line}" for line in arithmetic.describe("auto", Backend(), Precision())]
    return [*lines, "next       python run.py plan configs/quickstart/s75.yaml, or make demo"]


def _find_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe_compiler() -> str:
    (compiler, *_), path = processor.find_compiler()
    if processor.kernels_are_off():
        return "torch's own, as MEDISWIFT_KERNELS says"
    if path is None:
        lacking = f"no C++ compiler is here ({compiler}; $CXX names another)"
        return f"torch's own: {lacking}, so packed weights are multiplied slowly"
    return f"compiled by {compiler} when they are first needed"


def _describe_gpu() -> str:
    """What the driver says, and whether torch is built for it."""
    if not host.has_gpu_driver():
        return "no NVIDIA driver"
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, encoding="utf-8", errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return "the driver does not answer"
    cards = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    torch = _find_version("torch") or ""
    built = "" if "+cpu" not in torch else f"; but torch {torch} is a CPU build"
    lacks = "" if find_spec("triton") else "; Triton is not installed"
    return (f"{len(cards)} x {cards[0]}" if cards else "the driver sees none") + built + lacks
