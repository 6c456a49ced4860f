"""The products of a packed weight in C++, compiled on first use for the processor at hand (compiled/csrc/).

Serves float32 anywhere, and bfloat16 where the kernels were compiled for a processor that multiplies it. Elsewhere a
run computes in float32; one that insists on bfloat16 has its activations widened to float32 here, which is as exact
and no slower than torch's emulation.
"""

import ctypes

import torch
from torch import Tensor

from modelzoo.kernels.blocks.c_struct import weight_of
from modelzoo.kernels.blocks.layout import Layout
from modelzoo.kernels.compiled.build import library, pointer

NAME = "C++"


def serves(layout: Layout, dtype: torch.dtype) -> bool:
    """Whether there is a kernel: unstructured, or blocks in whole groups of 32 outputs; sides are multiples of 32."""
    sides = layout.shape[0] % 32 == layout.shape[1] % 32 == 0
    return dtype in (torch.float32, torch.bfloat16) and sides and (layout.block == (1, 1) or layout.block[0] % 32 == 0)


def name_library(layout: Layout) -> str:
    """The file of compiled/csrc/ that holds the pattern's kernels, and the first part of their names."""
    return "single" if layout.block == (1, 1) else "block"


def _call(name: str, values: Tensor, layout: Layout, x: Tensor, *others: Tensor | None) -> None:
    """Hand pointers over. All tensors are contiguous; x is [n, ...], bfloat16 or float32."""
    weight = weight_of(values, layout)
    n = ctypes.c_int64(x.shape[0])
    kind = name_library(layout)
    getattr(library(kind), f"{kind}_{name}")(
        ctypes.byref(weight), int(x.dtype == torch.bfloat16), torch.get_num_threads(), n, *map(pointer, (x, *others))
    )


def _activations(x: Tensor, layout: Layout) -> Tensor:
    """`x` contiguous, in a dtype with kernels."""
    return (x if x.dtype == torch.float32 or library(name_library(layout)).has_bf16() else x.float()).contiguous()


def _master(values: Tensor) -> Tensor:
    return values.detach().float().contiguous()


def forward(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    """x [n, in] -> [n, out] in x's dtype; bias is added before rounding."""
    rows = _activations(x, layout)
    y = rows.new_empty(x.shape[0], layout.shape[0])
    _call("forward", _master(values), layout, rows, None if bias is None else _master(bias), y)
    return y.to(x.dtype)


def backward_x(dy: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """dy [n, out] -> [n, in] in dy's dtype."""
    rows = _activations(dy, layout)
    dx = rows.new_empty(dy.shape[0], layout.shape[1])
    _call("backward_x", _master(values), layout, rows, dx)
    return dx.to(dy.dtype)


def backward_w(dy: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """dy [n, out], x [n, in] -> the gradient of live blocks, [nnz, R, C] float32, never rounded to bfloat16."""
    rows = _activations(dy, layout)
    dvalues = torch.empty(layout.nnz, *layout.block)
    _call("backward_w", dvalues, layout, rows, _activations(x, layout), dvalues)
    return dvalues
