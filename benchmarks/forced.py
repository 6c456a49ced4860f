"""A stronger processor made to act as a weaker class: our kernels by one variable, torch's products by its own."""

import os

from modelzoo.config.errors import UserError
from modelzoo.kernels.processor import SWITCH, TITLES, classes_up_to, native_class, processor_class, title

TORCH = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
VALUES = {
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512"),
    "avx512_bf16": ("avx512", "AVX512_CORE_BF16", "AVX512"),
}


def switches_of(name: str) -> dict[str, str]:
    """The variables that hold a process to a class."""
    return {SWITCH: name, **dict(zip(TORCH, VALUES[name]))}


def choose_class(wanted: str | None) -> str:
    """The class to measure as: the one asked for (or MEDISWIFT_PROCESSOR), else the machine's.

    Raises:
        UserError: the machine lacks it, torch has no switch for it, or torch alone is held to some class.
    """
    native = native_class()
    name = wanted or processor_class()
    if name != native and (name not in VALUES or name not in classes_up_to(native)):
        can = [c for c in classes_up_to(native) if c in VALUES and c != native]
        asked = f"--as {name}" if wanted else f"{SWITCH}={name}"
        raise UserError(
            f"{asked}: this machine's class is {native} ({TITLES[native]}); "
            + (f"it can be measured as {', '.join(can)}" if can else "it can be measured as no other")
        )
    held = {} if name == native else switches_of(name)
    if stray := [f"{v}={os.environ[v]}" for v in TORCH if os.environ.get(v, held.get(v)) != held.get(v)]:
        raise UserError(f"{', '.join(stray)} would hold torch to another class than {name}: unset it or use --as")
    return name


def describe() -> str:
    """The class that this process measures, and what is held to it."""
    name, native = processor_class(), native_class()
    stray = [f"{v}={os.environ[v]}" for v in TORCH if os.environ.get(v)]
    if name == native:
        return title() + (f" (torch with {' '.join(stray)})" if stray else "")
    held = name in VALUES and all(os.environ.get(v) == value for v, value in switches_of(name).items())
    return f"{title()} on {TITLES[native]}" + ("" if held else " (torch's own products are not held to it)")
