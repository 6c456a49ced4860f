"""Compiled passes over memory that torch makes in two or three: what they cost is the bytes they touch."""

import ctypes

import torch
from torch import Tensor

from modelzoo.kernels.build import Unavailable, library, pointer

DTYPES = (torch.float32, torch.bfloat16)


def _served(x: Tensor, dtypes=DTYPES) -> bool:
    """Whether the compiled passes can take `x`."""
    return x.device.type == "cpu" and x.dtype in dtypes and x.is_contiguous() and _library() is not None


def _library() -> ctypes.CDLL | None:
    try:
        return library("rows")
    except Unavailable:
        return None


def _bf16(x: Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def sum_rows(x: Tensor) -> Tensor:
    """x [n, dim] -> its sum over n, [dim] float32 (float64 of float64): a bias's gradient.

    torch would make a float32 copy of a bfloat16 `x` first.
    """
    if not _served(x):
        return x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))
    sums = torch.empty(x.shape[1])
    _library().rows_sum(_bf16(x), torch.get_num_threads(), *map(ctypes.c_int64, x.shape), pointer(x), pointer(sums))
    return sums


def zero_dead(x: Tensor, keep: Tensor) -> float | None:
    """Set float32 `x` to +0.0 in place where `keep` is 0, whatever stands there, NaN too.

    Args:
        keep: int8 of x's shape: -1 (all bits set) where live, 0 where dead.

    Returns:
        The sum of squares of what is left, where it could be had on the way (in float64, added in a fixed order for
        any number of threads), else None.
    """
    if _served(x, (torch.float32,)) and keep.is_contiguous():
        square = ctypes.c_double()
        arguments = torch.get_num_threads(), ctypes.c_int64(x.numel()), pointer(x), pointer(keep), ctypes.byref(square)
        _library().rows_zero_dead(*arguments)
        return square.value
    # AND on the bits: selection like masked_fill, at a third of its time (it vectorises; masked_fill does not).
    x.view(torch.int32).bitwise_and_(keep)
    return None
