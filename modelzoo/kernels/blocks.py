"""Weights that live in blocks: one score per block, and a weight's mask from its blocks' mask."""

from collections.abc import Sequence

import torch
from torch import Tensor


def tiles(x: Tensor, block: Sequence[int]) -> Tensor:
    """[out, in] as a view [out / R, in / C, R, C]."""
    return x.unflatten(0, (-1, block[0])).unflatten(2, (-1, block[1])).transpose(1, 2)


def scores(x: Tensor, block: Sequence[int]) -> Tensor:
    """Sums of magnitudes, [out / R, in / C]; for blocks of one weight x itself.

    Summed in float64, so that the order of summation, which is the kernel's, decides nothing.
    """
    return x if tuple(block) == (1, 1) else tiles(x.abs(), block).sum((2, 3), dtype=torch.float64)


def spread(mask: Tensor, block: Sequence[int]) -> Tensor:
    """The inverse for masks: [out / R, in / C] to [out, in]."""
    return mask if tuple(block) == (1, 1) else mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)


def gathered(mask: Tensor, block: Sequence[int]) -> Tensor:
    """[out, in] to [out / R, in / C]: whether a block has a live weight."""
    return mask if tuple(block) == (1, 1) else tiles(mask, block).any(3).any(2)
