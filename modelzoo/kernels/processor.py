"""What this machine's processor multiplies, and the class that figures, kernels and arithmetic are named by.

The classes, weakest first: `plain` (any other processor), `neon` and `neon_bf16` (Arm), `avx2`, `avx512`,
`avx512_bf16` and `amx` (x86). A class is what a processor can do, not what it is called: two machines of one class
run the same kernels in the same arithmetic. No torch here, so that `plan` can describe a run.
"""

import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from modelzoo.config.errors import UserError

KERNELS = "MEDISWIFT_KERNELS"  # "torch": never compile; unset or "auto": compile where it can be done
SWITCH = "MEDISWIFT_PROCESSOR"  # a weaker class to act as; unset or "native": what the machine has
TITLES = {
    "plain": "no vector class",
    "neon": "Arm",
    "neon_bf16": "Arm with bf16",
    "avx2": "AVX2",
    "avx512": "AVX-512",
    "avx512_bf16": "AVX-512 with bf16",
    "amx": "AVX-512 with bf16 and AMX",
}
X86 = ("avx2", "avx512", "avx512_bf16", "amx")
ARM = ("neon", "neon_bf16")
NEEDS = {  # Linux's names of what a class has beyond the weaker one
    "avx2": {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"},
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
    "amx": {"amx_tile", "amx_bf16"},
}
_AVX2 = ("-march=x86-64", "-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mmovbe")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl")
FLAGS = {  # the compiler's: no instruction beyond NEEDS, so that a class's code runs on every processor of the class
    "neon": ("-march=armv8-a",),
    "neon_bf16": ("-march=armv8-a",),  # no kernel of ours multiplies bfloat16 there
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": (*_AVX512, "-mavx512bf16"),
    "amx": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}


def cpuinfo() -> str:
    """Linux's /proc/cpuinfo of the first core; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return ""


def _field(*names: str) -> str:
    """The value of the first line of cpuinfo that has one of these names."""
    for line in cpuinfo().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""


def _sysctl(name: str) -> str:
    """One of macOS's answers; empty where there is none."""
    try:
        command = ["sysctl", "-n", name]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def model_name() -> str:
    """What the system calls the processor."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return _field("model name") or platform.processor() or platform.machine() or "CPU"


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


@functools.cache
def native_class() -> str:
    """The class of this machine, whatever MEDISWIFT_PROCESSOR is."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        bf16 = (
            _sysctl("hw.optional.arm.FEAT_BF16") == "1"
            if sys.platform == "darwin"
            else "bf16" in _field("Features").split()
        )
        return "neon_bf16" if bf16 else "neon"
    if not _is_x86():
        return "plain"
    if sys.platform == "darwin":
        words = (_sysctl("machdep.cpu.features") + " " + _sysctl("machdep.cpu.leaf7_features")).lower().split()
        return "avx2" if {"avx2", "fma"} <= set(words) else "plain"
    flags, found = set(_field("flags").split()), "plain"
    for name in X86:
        if not NEEDS[name] <= flags:
            break
        found = name
    return found


def classes_up_to(name: str) -> list[str]:
    """The classes whose code runs on a processor of this class, weakest first, itself last."""
    line = next((line for line in (X86, ARM) if name in line), ())
    return ["plain", *line[: line.index(name) + 1 if line else 0]]


def compiler_flags(name: str) -> tuple[str, ...]:
    """What makes a compiler emit code for every processor of this class; `plain`: what the architecture always has."""
    return FLAGS.get(name) or (("-march=x86-64",) if _is_x86() else ())


def find_compiler() -> tuple[list[str], str | None]:
    """The words of $CXX, or g++, which compile the kernels; and where that program is, if it is here.

    Raises:
        UserError: $CXX is no command.
    """
    text = os.environ.get("CXX", "")
    try:
        command = shlex.split(text) or ["g++"]
    except ValueError as e:
        raise UserError(f"CXX={text[:80]!a}: is no command ({str(e).lower()}); correct or unset it") from None
    return command, shutil.which(command[0])


def kernels_are_off() -> bool:
    """Whether MEDISWIFT_KERNELS asks for torch's own kernels, and for none that would be compiled.

    Raises:
        UserError: it has another value than auto (the default) and torch.
    """
    switch = os.environ.get(KERNELS) or "auto"
    if switch not in ("auto", "torch"):
        raise UserError(f"{KERNELS}={switch[:80]!a}: it is auto (the default) or torch")
    return switch == "torch"


def processor_class() -> str:
    """The class that this process acts as: the machine's own, or a weaker one that MEDISWIFT_PROCESSOR names.

    Raises:
        UserError: the variable names no class, or one that this machine does not have.
    """
    native, wanted = native_class(), os.environ.get(SWITCH) or "native"
    if wanted == "native":
        return native
    weaker = classes_up_to(native)
    if wanted not in weaker:
        raise UserError(f"{SWITCH}={wanted}: this machine can act as {', '.join(weaker)} or native")
    return wanted


def check_switches() -> None:
    """Refuse values of MEDISWIFT_PROCESSOR and MEDISWIFT_KERNELS that mean nothing here, before anything runs.

    Raises:
        UserError: names the variable, and its values.
    """
    processor_class()
    kernels_are_off()


def title() -> str:
    """The class in words, for device lines and figures."""
    name = processor_class()
    return TITLES[name] + ("" if name == native_class() else f", forced by {SWITCH}")


def multiplies_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself. Elsewhere torch emulates it, many times slower than float32."""
    return processor_class() in ("avx512_bf16", "amx", "neon_bf16")
