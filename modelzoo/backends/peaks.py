"""What a run's devices can do at most, for MFU: a GPU by its maker's figure, a CPU by a product that is measured.

MFU is the FLOPs a second that live weights need, as counted (`sparsity.flops`), over that.
"""

import statistics
import time
from typing import NamedTuple

import torch

from modelzoo.backends.base import Backend
from modelzoo.kernels import processor

# TFLOP/s without structured sparsity, from NVIDIA's data sheets; the first name that the device's contains counts.
PEAKS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200 NVL": 835, "H200": 989, "GH200": 989, "B200": 2250,
    "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A40": 150, "A30": 165, "A10G": 70, "A10": 125, "V100": 125,
    "T4": 65,
}  # fmt: skip
WORTH = 30.0  # seconds of training from which a CPU's product is measured: a short run is not kept waiting
SIDES = 512, 1024, 2048  # of the matrices: the largest whose product takes milliseconds
LONG, ENOUGH, FEWEST = 0.003, 0.1, 3  # seconds of a product, after which no larger one is tried; of all; products


class Peak(NamedTuple):
    """FLOPs a second of all devices of a run together, and in words what that is."""

    flops: float
    what: str


def find_peak(backend: Backend, seconds: float = WORTH, leaving: bool = False) -> Peak | None:
    """What the run's devices can do. All ranks must call it; on CPUs each measures its own share at the same time.

    None where no figure is known: on a GPU without one, or in float32, whose products may or may not use the units that
    the figure is for; on a CPU after a short run; on the CS-2.

    Args:
        seconds: that rank 0 has trained for.
        leaving: a signal ends the run, so another rank may be gone already: none waits for the others.
    """
    ranks = backend.ranks
    if backend.kind == "GPU" and backend.dtype in (torch.bfloat16, torch.float16):
        return look_up(torch.cuda.get_device_name(backend.device), ranks.size)
    if backend.kind != "CPU" or (leaving and ranks.size > 1) or not ranks.first_does(lambda: seconds >= WORTH):
        return None
    native = backend.dtype == torch.bfloat16 and processor.multiplies_bf16()
    dtype = torch.bfloat16 if native else torch.float32  # an emulated format is no yardstick
    many = f"{ranks.size} x " if ranks.size > 1 else ""
    name = str(dtype).removeprefix("torch.")
    flops = sum(ranks.gather(measure_products(dtype)))
    threads = f"{many}{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    what = f"what plain {name} products reach here with {threads} (measured; no data sheet)"
    return Peak(flops, f"{flops / 1e9:,.0f} GFLOP/s, {what}")


def look_up(name: str, count: int) -> Peak | None:
    """The figure for `count` devices of that name; None for a part of one (MIG), which does a part of it."""
    words = set(name.replace("-", " ").split())
    if "MIG" in words:
        return None
    for known, tera in PEAKS.items():
        if set(known.split()) <= words:
            many = f"{count} x " if count > 1 else ""
            return Peak(1e12 * tera * count, f"{many}{name}'s {tera} TFLOP/s (16-bit, by its data sheet)")
    return None


def measure_products(dtype: torch.dtype) -> float:
    """FLOPs a second of square products on this CPU with the threads in use: the median of some, in about 0.2 s.

    The numbers multiplied come from a generator of their own, so that a run's draws stay as they are.
    """
    draw, x = torch.Generator().manual_seed(0), torch.ones(1, 1)
    with torch.inference_mode():
        for side in SIDES:
            x = torch.rand(side, side, generator=draw).to(dtype)
            _time_product(x)  # the first one builds and warms things up
            if _time_product(x) > LONG:
                break
        times: list[float] = []
        while len(times) < FEWEST or sum(times) < ENOUGH:
            times.append(_time_product(x))
    return 2 * len(x) ** 3 / statistics.median(times)


def _time_product(x: torch.Tensor) -> float:
    begin = time.perf_counter()
    torch.mm(x, x)
    return time.perf_counter() - begin
