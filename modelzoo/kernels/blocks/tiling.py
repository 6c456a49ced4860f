"""Weights that live in blocks: one score per block, and a weight's mask from its blocks' mask.

Blocks are of inputs next to each other, or next to each other in an `order` of the inputs, [in] int64: `x[:, order]` is
what divides into blocks then.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modelzoo.kernels.compiled.rows import gather_columns


def arrange(x: Tensor, order: Tensor | None) -> Tensor:
    """[..., in] with its inputs in `order`; None leaves them as they are."""
    return x if order is None else gather_columns(x, order.to(x.device))


def restore(x: Tensor, order: Tensor | None) -> Tensor:
    """The inverse of `arrange`."""
    return x if order is None else arrange(x, order.argsort())


def tiles(x: Tensor, block: Sequence[int]) -> Tensor:
    """[out, in] as a view [out / R, in / C, R, C]."""
    return x.unflatten(0, (-1, block[0])).unflatten(2, (-1, block[1])).transpose(1, 2)


def scores(x: Tensor, block: Sequence[int], order: Tensor | None = None) -> Tensor:
    """Sums of magnitudes, [out / R, in / C]; for blocks of one weight x itself.

    Summed in float64, so that the order of summation, which is the kernel's, decides nothing.
    """
    if tuple(block) == (1, 1):
        return x
    return tiles(arrange(x, order).abs(), block).sum((2, 3), dtype=torch.float64)


def spread(mask: Tensor, block: Sequence[int], order: Tensor | None = None) -> Tensor:
    """The inverse for masks: [out / R, in / C] to [out, in]."""
    if tuple(block) == (1, 1):
        return mask
    return restore(mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1), order)


def gathered(mask: Tensor, block: Sequence[int], order: Tensor | None = None) -> Tensor:
    """[out, in] to [out / R, in / C]: whether a block has a live weight."""
    return mask if tuple(block) == (1, 1) else tiles(arrange(mask, order), block).any(3).any(2)


def find_live(mask: Tensor, block: Sequence[int], order: Tensor | None = None) -> Tensor | None:
    """`gathered` of a mask [out, in] that is constant on each block of its inputs, in `order`; None of another."""
    live = gathered(mask, block, order)
    return live if torch.equal(spread(live, block, order), mask) else None


def has_blocks(mask: Tensor, block: Sequence[int], order: Tensor | None = None) -> bool:
    """Whether a mask [out, in] is constant on each block of its inputs, in `order`."""
    return find_live(mask, block, order) is not None
