"""Which arithmetic a run gets: a 16-bit format where the device multiplies it, elsewhere float32 (float16 on GPUs).

Every way to run asks here. No torch, so that `plan` can say what a run would do.
"""

from typing import NamedTuple

from modelzoo.config.sections.device import Backend, Precision
from modelzoo.kernels import processor

INSIST = "trainer.init.precision.emulate"


class Arithmetic(NamedTuple):
    """The format of matrix products. Weights, moments and sums are float32 in all of them."""

    dtype: str  # float32, bfloat16 or float16; cbfloat16 on the CS-2
    reason: str  # why it is that one
    note: str | None = None  # what was asked for, where that is done otherwise


def decide_arithmetic(kind: str, precision: Precision, bf16: bool, device: str) -> Arithmetic:
    """The arithmetic of `precision` on a CPU or a GPU.

    Args:
        kind: CPU or GPU. GPUs multiply float16; CPUs are not asked to.
        bf16: whether the device multiplies bfloat16 itself.
        device: its name, for the reason.
    """
    if not precision.enabled:
        return Arithmetic("float32", "trainer.init.precision.enabled is false")
    asked = precision.fp16_type
    wanted = "bfloat16" if asked == "cbfloat16" else asked
    multiplied = {"bfloat16": bf16, "float16": kind == "GPU"}
    if multiplied[wanted]:
        note = "cbfloat16 is the CS-2's format; bfloat16 here" if asked == "cbfloat16" else None
        return Arithmetic(wanted, f"{device} multiplies it", note)
    if precision.emulate:
        lacking = f"{device} does not multiply it" if wanted == "bfloat16" else "it is a format for GPUs"
        return Arithmetic(wanted, f"{INSIST} is true", f"{wanted} is emulated, as {INSIST} asks: {lacking}")
    here = next((dtype for dtype, known in multiplied.items() if known), "float32")
    lacks = f"{device} does not multiply"
    why = {
        "bfloat16": f"{lacks} it",
        "cbfloat16": f"it is the CS-2's format, and {lacks} bfloat16",
        "float16": "it is a format for GPUs" + ("" if bf16 else f", and {lacks} bfloat16"),
    }[asked]
    scaled = " with a dynamic loss scale" if here == "float16" else ""
    reason = "float16 is a format for GPUs" if bf16 else f"{lacks} bfloat16"
    return Arithmetic(here, reason, f"{asked} was asked for; {why}, so {here}{scaled} here ({INSIST}=true insists)")


def decide_on_cpu(precision: Precision) -> Arithmetic:
    """The arithmetic of `precision` on this machine's processor."""
    return decide_arithmetic("CPU", precision, processor.multiplies_bf16(), f"this processor ({processor.title()})")


def uses_amx(precision: Precision) -> bool:
    """Whether products on this CPU are AMX's, whose dense ones outrun what picks single weights."""
    return processor.processor_class() == "amx" and decide_on_cpu(precision).dtype == "bfloat16"


def expect_arithmetic(kind: str, precision: Precision) -> Arithmetic:
    """What can be known of a run on CPU, GPU or CSX without looking at any device but this processor."""
    if kind == "CSX":
        return Arithmetic(precision.fp16_type, "the CS-2 always computes in mixed precision")
    return (
        decide_on_cpu(precision) if kind == "CPU" else decide_arithmetic("GPU", precision, True, "a GPU from Ampere on")
    )


def describe(target: str, backend: Backend, precision: Precision) -> list[str]:
    """The expected arithmetic, a line for each device that `target` may select, this CPU first."""
    lines = []
    for kind in reversed(backend.candidates(target)):
        found = expect_arithmetic(kind, precision)
        if kind == "CPU":
            lines.append(f"{found.dtype} on this CPU: {found.note or found.reason}")
        elif kind == "CSX":
            lines.append(f"{found.dtype} on the CS-2" + ("" if precision.enabled else f": {found.reason}"))
        else:
            older = decide_arithmetic("GPU", precision, False, "")
            other = f" that multiplies it, else {older.dtype} with a dynamic loss scale"
            lines.append(f"{found.dtype} on a GPU{other if older.dtype != found.dtype else ''}")
    return lines
