"""What a GPU can do at most, for MFU: its maker's figure for dense 16-bit products, by the device's name."""

import torch

from modelzoo.backends.base import Backend

# TFLOP/s without structured sparsity, from NVIDIA's data sheets; the first name that the device's contains counts.
PEAKS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200 NVL": 835, "H200": 989, "GH200": 989, "B200": 2250,
    "A100": 312, "L40S": 362, "L40": 181, "L4": 121, "A40": 150, "A30": 165, "A10G": 70, "A10": 125, "V100": 125,
    "T4": 65,
}  # fmt: skip


def find_peak(backend: Backend) -> tuple[float, str] | None:
    """FLOPs a second of all devices of a run together, and in words what that is; None where no figure is known.

    None too for float32, whose products may or may not use the units that the figure is for, and for CPUs: theirs
    would have to be measured.
    """
    if backend.kind != "GPU" or backend.dtype not in (torch.bfloat16, torch.float16):
        return None
    return look_up(torch.cuda.get_device_name(backend.device), backend.ranks.size)


def look_up(name: str, count: int) -> tuple[float, str] | None:
    """The figure for `count` devices of that name."""
    words = set(name.replace("-", " ").split())
    for known, tera in PEAKS.items():
        if set(known.split()) <= words:
            many = f"{count} x " if count > 1 else ""
            return 1e12 * tera * count, f"{many}{name}'s {tera} TFLOP/s (16-bit; FLOPs of live weights, as counted)"
    return None
