"""The C++ kernels as shared libraries: compiled once for this processor, kept in the user's cache, loaded on demand."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCES = Path(__file__).with_name("csrc")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-w"]
SWITCH = "MEDISWIFT_KERNELS"  # "torch": never compile; unset or "auto": compile where it can be done


class Unavailable(Exception):
    """There is no compiled kernel here; the message says why, for the line that a run prints."""


def processor() -> str:
    """The processor's model and flags, as far as the system tells: -march=native depends on them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def cache_folder() -> Path:
    """$MEDISWIFT_CACHE, or mediswift/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MEDISWIFT_CACHE") or Path(base) / "mediswift")


def _compiler() -> tuple[str, str]:
    """(path, version) of the system's g++.

    Raises:
        Unavailable: there is none.
    """
    path = shutil.which(os.environ.get("CXX") or "g++")
    if path is None:
        raise Unavailable("no g++ found (on Debian: apt install g++)")
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    return path, version


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        error = next((line for line in lines if "error" in line.lower()), lines[0])
        raise Unavailable(f"{Path(command[0]).name} failed: {error}")


def compile_library(name: str, folder: Path) -> Path:
    """The library of csrc/{name}.cpp for these flags, torch, compiler and processor, compiled unless `folder` has it.

    Several processes may call this at once: each compiles in a folder of its own, and the last rename wins.
    OpenMP's symbols stay open, for torch's own copy of it to fill: two pools of spinning threads would share the cores.
    """
    compiler, version = _compiler()
    source = SOURCES / f"{name}.cpp"
    digest = hashlib.sha256("\n".join([*FLAGS, torch.__version__, version, processor()]).encode())
    for path in (source, *sorted(SOURCES.glob("*.h"))):
        digest.update(path.read_bytes())
    library = folder / f"{name}-{digest.hexdigest()[:20]}.so"
    if library.exists():
        return library
    print(f"compiling {source.name} for this processor (once, a few seconds)", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        _run([compiler, *FLAGS, "-c", str(source), "-o", "kernel.o"], work)
        _run([compiler, "-shared", "kernel.o", "-o", "kernel.so"], work)
        os.replace(Path(work) / "kernel.so", library)
    return library


@functools.cache
def _load(name: str) -> ctypes.CDLL | Unavailable:
    """The library, or why there is none: asked once per process."""
    try:
        return ctypes.CDLL(str(compile_library(name, cache_folder())), mode=os.RTLD_NOW)
    except (Unavailable, OSError) as error:  # OSError: an unwritable cache, or a torch without OpenMP of its own
        print(f"no compiled {name} kernels, torch's are slower: {error}", file=sys.stderr, flush=True)
        return Unavailable(str(error))


def library(name: str) -> ctypes.CDLL:
    """The compiled kernels of csrc/{name}.cpp.

    Raises:
        Unavailable: they were switched off, or cannot be had here.
    """
    if os.environ.get(SWITCH, "auto") == "torch":
        raise Unavailable(f"{SWITCH}=torch")
    loaded = _load(name)
    if isinstance(loaded, Unavailable):
        raise loaded
    return loaded
