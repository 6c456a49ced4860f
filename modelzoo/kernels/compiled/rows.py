"""Compiled passes over memory that torch makes in two or three: what they cost is the bytes they touch."""

import ctypes

import torch
from torch import Tensor

from modelzoo.kernels.compiled.build import Unavailable, library, pointer

DTYPES = (torch.float32, torch.bfloat16)
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def _compiled(x: Tensor, dtypes=DTYPES) -> ctypes.CDLL | None:
    """The compiled passes, where they can take `x`."""
    if x.device.type != "cpu" or x.dtype not in dtypes or not x.is_contiguous():
        return None
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
    compiled = _compiled(x)
    if compiled is None:
        return x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))
    sums = torch.empty(x.shape[1])
    compiled.rows_sum(_bf16(x), torch.get_num_threads(), *map(ctypes.c_int64, x.shape), pointer(x), pointer(sums))
    return sums


def gather_columns(x: Tensor, order: Tensor) -> Tensor:
    """x [..., dim] -> x[..., order], for `order` [dim] int64 on x's device.

    Raises:
        IndexError: a place in `order` is not one of x.
    """
    watched = x.requires_grad and torch.is_grad_enabled()  # autograd sees torch's own operators alone
    compiled = None if watched or torch.compiler.is_compiling() else _compiled(x, (x.dtype,))
    known = order.shape == x.shape[-1:] and order.dtype == torch.int64 and x.element_size() in _INTEGERS
    if compiled is None or not known:
        return x.index_select(-1, order)
    y, order = torch.empty_like(x), order.contiguous()
    rows, dim = x.numel() // max(1, x.shape[-1]), x.shape[-1]
    sizes = x.element_size(), torch.get_num_threads(), ctypes.c_int64(rows), ctypes.c_int64(dim)
    if not compiled.rows_gather(*sizes, pointer(x), pointer(order), pointer(y)):
        raise IndexError(f"an order of inputs has a place that is not one of {dim}")
    return y


def zero_dead(x: Tensor, keep: Tensor) -> float | None:
    """Set floats `x` to +0.0 in place where `keep` is 0, whatever its value, NaN too.

    Args:
        keep: int8 of x's shape: -1 (all bits set) where live, 0 where dead.

    Returns:
        The sum of squares of what is left, where it could be had on the way (in float64, added in a fixed order for
        any number of threads), else None.
    """
    compiled = _compiled(x, (torch.float32,))
    if compiled is not None and keep.is_contiguous():
        square = ctypes.c_double()
        arguments = torch.get_num_threads(), ctypes.c_int64(x.numel()), pointer(x), pointer(keep), ctypes.byref(square)
        compiled.rows_zero_dead(*arguments)
        return square.value
    # AND on the bits: selection like masked_fill, at a third of its time (it vectorises; masked_fill does not).
    x.view(_INTEGERS[x.element_size()]).bitwise_and_(keep)
    return None
