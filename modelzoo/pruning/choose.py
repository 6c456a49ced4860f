"""Which weights stay by given scores: exactly as many as the masks of training have, in the same patterns."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.kernels.blocks import tiling
from modelzoo.sparsity import compat, masks
from modelzoo.sparsity.algorithms import ALGORITHMS, Static
from modelzoo.sparsity.order import Choose
from modelzoo.sparsity.select import block_of


class Plan(NamedTuple):
    """What is to become of one weight.

    Attributes:
        size: (out, in). block: (rows, columns) that stay or go together. live: weights that stay.
    """

    name: str
    size: tuple[int, int]
    block: tuple[int, int]
    live: int
    algorithm: Static

    @classmethod
    def of(cls, name: str, size: tuple[int, int], live: int, algorithm: Static) -> "Plan":
        """The plan for a weight of `size` in the group of `algorithm`."""
        return cls(name, size, block_of(algorithm.group, size), live, algorithm)

    @property
    def group(self) -> SparsityGroup:
        return self.algorithm.group

    @property
    def total(self) -> int:
        """Weights in all."""
        return math.prod(self.size)

    @property
    def live_blocks(self) -> int:
        """Blocks that stay."""
        return self.live // math.prod(self.block)


def make_algorithm(group: SparsityGroup, seed: int) -> Static:
    """The algorithm by whose rules a group's masks are chosen."""
    return (compat.ALGORITHMS if group.compat else ALGORITHMS)[group.algorithm](group, seed)


class Kept(NamedTuple):
    """Which weights stay: a mask [out, in], and the order of inputs in which its blocks are, where it has one."""

    mask: Tensor
    order: Tensor | None


def keep_largest(plan: Plan, weight: Tensor) -> Kept:
    """The largest magnitudes, chosen over the whole matrix as `init_method: topk` does."""
    return keep_best(plan, weight, lambda scores: plan.algorithm.choose(scores, plan.live_blocks))


def keep_best(plan: Plan, scores: Tensor, choose: Choose) -> Kept:
    """What `choose` takes of the blocks' scores, in the order of inputs in which it holds most, where that may change.

    Args:
        scores: [out, in], of single weights, by their magnitudes.
    """
    order = None if plan.group.permute_inputs is None else plan.algorithm.find_order(scores, plan.block, choose)
    found = choose(tiling.scores(scores, plan.block, order).abs())
    return Kept(tiling.spread(found, plan.block, order), order)


def keep_wanda(plan: Plan, weight: Tensor, norms: Tensor) -> Kept:
    """The best by |W| * ||X|| (Wanda, arXiv 2306.11695, eq. 1), compared within each output.

    Each row keeps as many (rows of blocks, where weights live in blocks: then a block's score is its weights' sum).
    What does not divide among the rows goes to rows spread evenly, one more each, so that the total is exact.
    N:M and balanced groups are compared as these patterns say.

    Args:
        norms: [in], the inputs' L2 norms over the calibration tokens.
    """
    g = plan.group
    whole = g.nm or g.shared_inputs or g.balance_in_groups or g.balance_out_groups

    def choose(scores: Tensor) -> Tensor:
        if whole:
            return plan.algorithm.choose(scores, plan.live_blocks)
        ends = torch.arange(len(scores) + 1, device=scores.device) * plan.live_blocks // len(scores)
        counts, mask = ends.diff(), torch.zeros_like(scores, dtype=torch.bool)
        for k in counts.unique().tolist():  # two numbers at most
            mask[counts == k] = masks.top_k(scores[counts == k], k)
        return mask

    return keep_best(plan, weight.abs().double() * norms.double(), choose)
