"""Linears of few rows in C++: a token at a time, a product costs what reading its weight costs (compiled/csrc/few.cpp).

A row's result has the same bits whatever other rows there are, up to MOST of them. In float32 on CPUs, without
gradients; all else goes the way that it goes in training. Weights are float32, or bfloat16 of half the bytes, which are
widened to float32, exactly, where they are multiplied.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzoo.kernels.blocks.c_struct import weight_of
from modelzoo.kernels.blocks.layout import Layout
from modelzoo.kernels.compiled.build import Unavailable, library, pointer

MOST = 16  # rows: beyond, the kernels of training are quicker
WEIGHTS = (torch.float32, torch.bfloat16)
DENSEST = {True: 0.8, False: 0.4}  # live share up to which blocks, or single weights, are quicker than the dense weight


def compiled() -> ctypes.CDLL | None:
    """The kernels, where they can be had."""
    try:
        found = library("few")
    except Unavailable:
        return None
    if found.few_dense.argtypes is None:  # plain integers are quicker to hand over than ctypes' own
        size, at = ctypes.c_int64, ctypes.c_void_p
        found.few_dense.argtypes = [ctypes.c_int, ctypes.c_int, size, size, size, at, at, at, at]
    return found


def takes(x: Tensor) -> bool:
    """Whether `x` [..., in] has few rows, and is what the kernels multiply."""
    if torch.is_grad_enabled() or not 0 < x.numel() <= MOST * x.shape[-1]:
        return False
    return x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def serves(block: tuple[int, int]) -> bool:
    """Whether the kernels know a pattern."""
    rows, columns = block
    return block == (1, 1) or (rows % 16 == 0 and (columns in (1, 2, 4, 8) or columns % 16 == 0))


def pays(layout: Layout) -> bool:
    """Whether a weight is better stored as its live blocks, for products of few rows."""
    known = serves(layout.block) and compiled() is not None
    return known and 0 < layout.density <= DENSEST[layout.block != (1, 1)]


def multiply_dense(kernels: ctypes.CDLL, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias for a weight [out, in] of WEIGHTS, contiguous, and a float32 bias; `takes(x)`."""
    out, inputs = weight.shape
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], out)
    add = None if bias is None else bias.data_ptr()
    places = x.data_ptr(), weight.data_ptr(), add, y.data_ptr()
    narrow = int(weight.dtype == torch.bfloat16)
    kernels.few_dense(narrow, torch.get_num_threads(), x.numel() // inputs, inputs, out, *places)
    return y


def multiply_packed(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None) -> Tensor | None:
    """x W^T + bias for a packed weight of WEIGHTS; `takes(x)`. None where there is no kernel for it."""
    kernels = compiled() if serves(layout.block) and values.dtype in WEIGHTS else None
    if kernels is None:
        return None
    x, values, y = x.contiguous(), values.contiguous(), x.new_empty(*x.shape[:-1], layout.shape[0])
    n, weight = ctypes.c_int64(x.numel() // x.shape[-1]), weight_of(values, layout)
    narrow, threads = int(values.dtype == torch.bfloat16), torch.get_num_threads()
    kernels.few_packed(ctypes.byref(weight), narrow, threads, n, *map(pointer, (x, bias, y)))
    return y


class _Attend(ctypes.Structure):
    """`struct Attend` of compiled/csrc/few.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("b", "heads", "groups", "t", "n", "d")),
        *((name, ctypes.c_int64 * 3) for name in ("q", "k", "v", "mask")),
        ("scale", ctypes.c_float),
    ]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor | None:
    """softmax(scale * q k^T + mask) v of few new tokens and many cached ones; arguments as of `kernels.attention`.

    Returns:
        [b, heads, t, head_dim]; None where there is no kernel for it.
    """
    b, h, t, d = q.shape
    given = (q, k, v) if mask is None else (q, k, v, mask)
    plain = q.is_cpu and b * t <= MOST and all(x.dtype == torch.float32 and x.stride(-1) == 1 for x in given)
    if not plain or torch.is_grad_enabled() or (kernels := compiled()) is None:
        return None
    n, y = k.shape[2], q.new_empty(b, t, h, d)
    sizes = (
        [0, 0, 0] if mask is None else [s if x > 1 else 0 for s, x in zip(mask.stride(), mask.shape[:3], strict=False)]
    )
    strides = [(ctypes.c_int64 * 3)(*x) for x in (*(x.stride()[:3] for x in (q, k, v)), sizes)]
    shape = _Attend(b, h, k.shape[1], t, n, d, *strides, scale)
    kernels.few_attend(ctypes.byref(shape), torch.get_num_threads(), *map(pointer, (q, k, v, mask, y)))
    return y.transpose(1, 2)


class FewRowsLinear(nn.Linear):
    """A linear that multiplies few rows by the kernels here. Weight and bias are the very ones that it had.

    The weight may be of less precision than what it multiplies. Without kernels torch multiplies.
    """

    def __init__(self, linear: nn.Linear, kernels: ctypes.CDLL | None):
        nn.Module.__init__(self)  # not Linear's: the weight is there already
        self.kernels = kernels
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        weight = self.weight
        if self.kernels is not None and takes(input) and weight.dtype in WEIGHTS and weight.is_contiguous():
            return multiply_dense(self.kernels, input, weight, self.bias)
        return F.linear(input, weight.to(input.dtype), self.bias)


def use_few(model: nn.Module) -> None:
    """Let the plain linears of `model` multiply few rows by the kernels here, where these can be had."""
    kernels = compiled()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, FewRowsLinear(child, kernels))
