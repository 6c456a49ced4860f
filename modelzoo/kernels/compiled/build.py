"""The C++ kernels as shared libraries: compiled once for a class of processors, kept in a cache, loaded on demand."""

import ctypes
import errno
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from modelzoo.files import write_bytes
from modelzoo.host import cache_folders
from modelzoo.kernels.processor import (
    KERNELS,
    TITLES,
    classes_up_to,
    compiler_flags,
    find_compiler,
    kernels_are_off,
    processor_class,
)

SOURCES = Path(__file__).with_name("csrc")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fopenmp", "-fPIC", "-w")
DIGEST = 32  # bytes of SHA-256 that end a library: one cut short would end the process when it is loaded


class Unavailable(Exception):
    """There is no compiled kernel here; the message is the reason, for the line that a run prints."""


@functools.cache
def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _compiler() -> tuple[list[str], str]:
    """(command, version) of $CXX or g++.

    Raises:
        Unavailable: there is none.
    """
    command, path = find_compiler()
    if path is None:
        raise Unavailable(f"no {command[0]} found" + (" (on Debian: apt install g++)" if command == ["g++"] else ""))
    command[0] = path
    return command, _run([*command, "--version"]).partition("\n")[0]


def _run(command: list[str], folder: str | None = None) -> str:
    """The command's output; its own temporary files go to `folder`.

    Raises:
        Unavailable: it failed; the message is its first error.
        OSError: it failed for want of space, which another folder may have.
    """
    env = {**os.environ, "LC_ALL": "C"} | ({"TMPDIR": folder} if folder else {})
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as e:
        raise Unavailable(f"{command[0]}: {e.strerror}") from None
    if done.returncode:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if os.strerror(number) in done.stderr:
                raise OSError(number, os.strerror(number))
        lines = done.stderr.strip().splitlines() or ["no message"]
        error = next((line for line in lines if "error" in line.lower()), lines[0])
        raise Unavailable(f"{Path(command[0]).name} failed: {error}")
    return done.stdout


def _compile(compiler: list[str], source: Path, name: str, work: str) -> bytes:
    """The library for a class of processors, or for the strongest weaker one that the compiler knows."""
    _say(f"compiling {source.name} for {TITLES[name]} (once, a few seconds)")
    failed = None
    for weaker in reversed(classes_up_to(name)):
        try:
            _run([*compiler, *FLAGS, *compiler_flags(weaker), "-c", str(source), "-o", "kernel.o"], work)
            _run([*compiler, "-shared", "kernel.o", "-o", "kernel.so"], work)
        except Unavailable as error:
            failed = failed or error
            continue
        if failed:
            _say(f"compiled {source.name} for {TITLES[weaker]} instead, which is slower: {failed}")
        return Path(work, "kernel.so").read_bytes()
    raise failed or Unavailable(f"no class of processors is as weak as {name}")


def _whole(library: Path) -> bool:
    try:
        data = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data[:-DIGEST]).digest() == data[-DIGEST:]


def compile_library(source_name: str, folder: Path, name: str | None = None, anew: bool = False) -> Path:
    """The library of csrc/{source_name}.cpp for a class of processors, compiled unless `folder` has it whole.

    One folder may serve unlike machines: the file's name follows from architecture, flags, compiler, torch and sources.
    Several processes may call this at once: each compiles in a folder of its own, and the last rename wins.
    OpenMP's symbols stay open, for torch's own copy of it to fill: two pools of spinning threads would share the cores.

    Args:
        name: the class; the one that this process acts as, if it is None.
        anew: compile whatever the folder has.

    Raises:
        Unavailable: there is no compiler, or it fails.
        OSError: the folder cannot be written.
    """
    name = name or processor_class()
    compiler, version = _compiler()
    source = SOURCES / f"{source_name}.cpp"
    key = [platform.machine(), *FLAGS, *compiler_flags(name), torch.__version__, version]
    digest = hashlib.sha256("\n".join(key).encode())
    for path in (source, *sorted(SOURCES.glob("*.h"))):
        digest.update(path.read_bytes())
    library = folder / f"{source_name}-{digest.hexdigest()[:20]}.so"
    if not anew and _whole(library):
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        data = _compile(compiler, source, name, work)
    write_bytes(str(library), data + hashlib.sha256(data).digest())
    return library


def _open(source_name: str, folder: Path, name: str) -> ctypes.CDLL:
    """The library, loaded; compiled anew if the one that the folder has is not for this system."""
    try:
        return ctypes.CDLL(str(compile_library(source_name, folder, name)))
    except OSError as error:
        if "undefined symbol" in str(error):  # another compilation would need it too
            raise Unavailable(f"torch has no OpenMP of its own here: {error}") from None
    return ctypes.CDLL(str(compile_library(source_name, folder, name, anew=True)))


@functools.cache
def _load(source_name: str, name: str) -> ctypes.CDLL | Unavailable:
    """The library, or why there is none: asked once per process and class."""
    failed = Unavailable("there is no folder to keep them in")
    try:
        for folder in cache_folders():
            try:
                return _open(source_name, folder, name)
            except OSError as error:
                failed = Unavailable(str(error))
                _say(f"{folder}: compiled kernels cannot be kept there ({error.strerror or error})")
    except (Unavailable, OSError) as error:
        failed = Unavailable(str(error))
    _say(f"no compiled {source_name} kernels, torch's are slower: {failed}")
    return failed


def library(source_name: str) -> ctypes.CDLL:
    """The compiled kernels of csrc/{source_name}.cpp.

    Raises:
        Unavailable: they were switched off, or cannot be had here.
        UserError: MEDISWIFT_KERNELS or MEDISWIFT_PROCESSOR has no such value.
    """
    if kernels_are_off():
        raise Unavailable(f"{KERNELS}=torch")
    loaded = _load(source_name, processor_class())
    if isinstance(loaded, Unavailable):
        raise loaded
    return loaded


def pointer(x: torch.Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's data lie, for a call of a library; null for None. The caller keeps `x` alive."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())
