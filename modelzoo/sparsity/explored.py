"""Which weights were ever live: the in-time over-parameterisation of dynamic sparse training (ITOP, arXiv 2102.02887).

One bit a weight, or a block of weights: what a run has explored is part of its state, and resumes with it.
"""

import math

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.kernels.blocks import tiling
from modelzoo.sparsity.parameter import SparseParameter

_PLACES = (1, 2, 4, 8, 16, 32, 64, 128)
_ONES = bytes(i.bit_count() for i in range(256))


def pack_bits(mask: Tensor) -> Tensor:
    """A bool mask as uint8, eight places a byte, the lowest bit first; the last byte is filled up with zeros."""
    flat = torch.nn.functional.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % 8))
    return (flat.view(-1, 8) * torch.tensor(_PLACES, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


def count_bits(bits: Tensor) -> int:
    """How many bits are set."""
    return int(torch.tensor(list(_ONES), dtype=torch.uint8, device=bits.device)[bits.int()].sum())


class Explored:
    """The weights of changing masks that were ever live.

    Attributes:
        bits: by parameter name, as `pack_bits` has them, a bit a block; one a block's column, where orders may change.
    """

    def __init__(self) -> None:
        self.bits: dict[str, Tensor] = {}
        self._live: dict[str, int] = {}
        self._all: dict[str, int] = {}

    def begin(self, p: SparseParameter, mask: Tensor, before: Tensor | None = None) -> None:
        """Start from a first mask [out, in], or one that a run went on with, and the bits `before` it.

        Raises:
            UserError: the bits are of another shape.
        """
        bits = pack_bits(tiling.gathered(mask, p.grain))
        if before is not None and (before.dtype != torch.uint8 or before.shape != bits.shape):
            raise UserError(f"{p.name}: what its masks have explored is on record for another shape or block")
        self._all[p.name] = mask.numel()
        self._set(p, bits if before is None else bits | before.to(bits.device))

    def add(self, p: SparseParameter, mask: Tensor) -> None:
        """Take note of the next mask [out, in]."""
        bits = pack_bits(tiling.gathered(mask, p.grain))
        # the first mask of a model whose shares are moved to their devices later was drawn on the host
        self._set(p, self.bits[p.name].to(bits.device) | bits)

    def _set(self, p: SparseParameter, bits: Tensor) -> None:
        self.bits[p.name], self._live[p.name] = bits, count_bits(bits) * math.prod(p.grain)

    def share(self) -> float | None:
        """The share of these weights that was ever live (R_s); None where no masks change."""
        return sum(self._live.values()) / sum(self._all.values()) if self.bits else None

    def forget(self) -> None:
        """Follow no more: masks change elsewhere."""
        self.bits, self._live, self._all = {}, {}, {}
