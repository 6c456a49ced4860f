"""Unstructured weights in their dense form, scattered and gathered in C++: where dense products outrun sparse ones.

AMX multiplies sixteen times as many bfloat16 numbers in a cycle as vector instructions do. No kernel that picks weights
one by one can make up for that at the sparsities of training, so these weights are spread out and their products dense.
"""

import ctypes

import torch
from torch import Tensor

from modelzoo.kernels.blocks.c_struct import weight_of
from modelzoo.kernels.blocks.layout import Layout
from modelzoo.kernels.compiled.build import library, pointer

NAME = "dense products on AMX"


def serves(layout: Layout, dtype: torch.dtype) -> bool:
    """Whether this is the way for unstructured weights of `dtype` on this processor (asked after `native.serves`)."""
    return layout.block == (1, 1) and dtype == torch.bfloat16 and bool(library("single").has_tiles())


def _whole(values: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The dense [out, in] in `dtype`."""
    dense = torch.empty(layout.shape, dtype=dtype)
    values = values.detach().float().contiguous()
    bf16, threads = int(dtype == torch.bfloat16), torch.get_num_threads()
    library("single").single_unpack(ctypes.byref(weight_of(values, layout)), bf16, threads, pointer(dense))
    return dense


def forward(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    """x [n, in] -> [n, out] in x's dtype."""
    return torch.nn.functional.linear(x, _whole(values, layout, x.dtype), None if bias is None else bias.to(x.dtype))


def backward_x(dy: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """dy [n, out] -> [n, in] in dy's dtype."""
    return dy @ _whole(values, layout, dy.dtype)


def backward_w(dy: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """dy [n, out], x [n, in] -> the gradient of live weights, [nnz, 1, 1] float32, rounded to dy's dtype on the way."""
    dense, dvalues = dy.t() @ x, torch.empty(layout.nnz, 1, 1)
    bf16, threads = int(dense.dtype == torch.bfloat16), torch.get_num_threads()
    library("single").single_pack(
        ctypes.byref(weight_of(dvalues, layout)), bf16, threads, pointer(dense), pointer(dvalues)
    )
    return dvalues
