"""The products of a packed weight in torch alone, live blocks only: block rows gather their inputs for BLAS.

Real savings on any CPU where block rows are tall; one product per block row is too little work for a GPU.
"""

from itertools import pairwise

import torch
from torch import Tensor

from modelzoo.kernels.layout import Layout

NAME = "torch, gathered"


def _block_rows(layout: Layout):
    """(outputs, blocks, inputs [live * C]) of each block row that is not empty."""
    (r, c), bounds = layout.block, layout.row_bounds
    for i, (begin, end) in enumerate(pairwise(bounds)):
        if begin < end:
            yield slice(i * r, (i + 1) * r), slice(begin, end), layout.columns[begin * c : end * c]


def _wide(blocks: Tensor) -> Tensor:
    """[live, R, C] -> [R, live * C]."""
    return blocks.transpose(0, 1).flatten(1)


def forward(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    """x [n, in] -> [n, out] in x's dtype."""
    y = x.new_zeros(x.shape[0], layout.shape[0])
    values = values.to(x.dtype)
    for outputs, blocks, inputs in _block_rows(layout):
        y[:, outputs] = x.index_select(1, inputs) @ _wide(values[blocks]).t()
    return y if bias is None else y.add_(bias.to(x.dtype))


def backward_x(dy: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """dy [n, out] -> [n, in] in dy's dtype; sums over block rows are at least float32."""
    total = torch.promote_types(dy.dtype, torch.float32)
    dx = torch.zeros(dy.shape[0], layout.shape[1], dtype=total, device=dy.device)
    values = values.to(dy.dtype)
    for outputs, blocks, inputs in _block_rows(layout):
        dx.index_add_(1, inputs, (dy[:, outputs] @ _wide(values[blocks])).to(total))
    return dx.to(dy.dtype)


def backward_w(dy: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """dy [n, out], x [n, in] -> the gradient of live blocks, [nnz, R, C] in dy's dtype."""
    r, c = layout.block
    dvalues = dy.new_empty(layout.nnz, r, c)
    for outputs, blocks, inputs in _block_rows(layout):
        dvalues[blocks] = (dy[:, outputs].t() @ x.index_select(1, inputs)).unflatten(1, (-1, c)).transpose(0, 1)
    return dvalues
