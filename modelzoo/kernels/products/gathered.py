"""The products of a packed weight in torch alone, live blocks only: block rows gather their inputs for BLAS.

Real savings where block rows are tall and dense products not too quick: at 75 % 1.1x to 1.5x on AVX2, 0.7x to 1.04x in
float32 with AVX-512, 1.3x to 1.5x in bfloat16 there from 64 rows on, none with AMX (`choose.find_densest`). One product
per block row is too little work for a GPU.
"""

from itertools import pairwise

import torch
from torch import Tensor

from modelzoo.kernels.blocks.layout import Layout

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
    xt, yt = x.t().contiguous(), x.new_zeros(layout.shape[0], x.shape[0])  # whole rows are quick to gather
    values = values.to(x.dtype)
    for outputs, blocks, inputs in _block_rows(layout):
        torch.mm(_wide(values[blocks]), xt[inputs], out=yt[outputs])
    y = yt.t().contiguous()
    return y if bias is None else y.add_(bias.to(x.dtype))


def backward_x(dy: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """dy [n, out] -> [n, in] in dy's dtype; sums over block rows are at least float32."""
    total = torch.promote_types(dy.dtype, torch.float32)
    dyt = dy.t().contiguous()
    dxt = torch.zeros(layout.shape[1], dy.shape[0], dtype=total, device=dy.device)
    values = values.to(dy.dtype)
    for outputs, blocks, inputs in _block_rows(layout):
        dxt.index_add_(0, inputs, (_wide(values[blocks]).t() @ dyt[outputs]).to(total))
    return dxt.t().to(dy.dtype).contiguous()


def backward_w(dy: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """dy [n, out], x [n, in] -> the gradient of live blocks, [nnz, R, C] in dy's dtype."""
    r, c = layout.block
    xt, dyt = x.t().contiguous(), dy.t().contiguous()
    dvalues = dy.new_empty(layout.nnz, r, c)
    for outputs, blocks, inputs in _block_rows(layout):
        dvalues[blocks] = (dyt[outputs] @ xt[inputs].t()).unflatten(1, (-1, c)).transpose(0, 1)
    return dvalues
