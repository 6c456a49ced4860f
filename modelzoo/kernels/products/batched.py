"""Shared inputs: every block row has as many live blocks, so one gather and one batched dense product serve them all.

G groups of outputs that share one set of k live inputs are blocks [out / G, 1] with k blocks in each block row, packed
as [G * k, out / G, 1]. Torch alone, for CPUs; a GPU spends more on picking inputs so than the weights save there.
"""

import torch
from torch import Tensor

from modelzoo.kernels.blocks.layout import Layout

NAME = "torch, batched"


def _gather(x: Tensor, layout: Layout) -> Tensor:
    """x [n, in] -> what each block row reads, [G, n, live inputs]; whole rows are copied, from the transpose of x."""
    groups = layout.row_ptr.numel() - 1
    return x.t().contiguous()[layout.columns].view(groups, len(layout.columns) // groups, x.shape[0]).transpose(1, 2)


def _weights(values: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """[nnz, R, C] -> [G, live inputs, R]."""
    return values.to(dtype).transpose(1, 2).reshape(layout.row_ptr.numel() - 1, -1, layout.block[0])


def _by_group(y: Tensor, layout: Layout) -> Tensor:
    """[n, out] -> a view [G, n, R]."""
    return y.view(y.shape[0], layout.row_ptr.numel() - 1, layout.block[0]).transpose(0, 1)


def forward(x: Tensor, values: Tensor, layout: Layout, bias: Tensor | None) -> Tensor:
    """x [n, in] -> [n, out] in x's dtype."""
    y = torch.bmm(_gather(x, layout), _weights(values, layout, x.dtype)).transpose(0, 1).flatten(1)
    return y if bias is None else y.add_(bias.to(x.dtype))


def backward_x(dy: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """dy [n, out] -> [n, in] in dy's dtype; summed group by group, at least in float32: equal bits each time."""
    parts = torch.bmm(_by_group(dy, layout), _weights(values, layout, dy.dtype).transpose(1, 2))  # [G, n, live]
    total = torch.promote_types(dy.dtype, torch.float32)
    dx = torch.zeros(dy.shape[0], layout.shape[1], dtype=total, device=dy.device)
    for part, inputs in zip(parts, layout.columns.view(parts.shape[0], -1)):
        dx.index_add_(1, inputs, part.to(total))
    return dx.to(dy.dtype)


def backward_w(dy: Tensor, x: Tensor, layout: Layout) -> Tensor:
    """dy [n, out], x [n, in] -> the gradient of live blocks, [nnz, R, C] in dy's dtype."""
    dvalues = torch.bmm(_gather(x, layout).transpose(1, 2), _by_group(dy, layout))  # [G, live inputs, R]
    return dvalues.view(layout.nnz, layout.block[1], -1).transpose(1, 2).contiguous()
