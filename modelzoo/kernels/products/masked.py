"""The products of a packed weight through its dense form: BLAS at the dense cost, for any pattern, device and dtype."""

import torch
from torch import Tensor

from modelzoo.kernels.blocks.layout import Layout, pack, unpack

NAME = "torch, masked-dense"


def forward(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    """x [n, in] -> [n, out] in x's dtype."""
    return torch.nn.functional.linear(x, unpack(values.to(x.dtype), layout), None if bias is None else bias.to(x.dtype))


def backward_x(dy: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """dy [n, out] -> [n, in] in dy's dtype."""
    return dy @ unpack(values.to(dy.dtype), layout)


def backward_w(dy: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """dy [n, out], x [n, in] -> the gradient of live blocks, [nnz, R, C] in dy's dtype."""
    return pack(dy.t() @ x, layout)
