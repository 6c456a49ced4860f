"""Memory that a change of masks takes while it scores a weight and moves it, in bytes. No torch."""

import math

from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.trainer import Init
from modelzoo.planning.stored import changes_masks, count_live, group_sizes
from modelzoo.sparsity.select import block_of

# Bytes of what is live at most, measured of `Sparsity.update` and rounded up; what a selection takes inside of torch
# (a copy and indices of its scores, and on a GPU a sort's) is added.
SCORE, SORTED = 24, 12  # of a score; beyond that where it is sorted
PRUNED, DRAWN = 8, 24  # of a score: beyond that where masks are pruned first; of float64, where weights are drawn
PAIR = 40  # of two nodes of one side, where topology predicts links
SUMMED = 9  # of a weight, where its block's is the score
PACKED, MOVED = 13, 36  # of a weight that is stored packed, and comes and goes whole; of a live block's place
WHOLE = 4  # of the gradient of a packed weight, made whole
ORDERED = 20  # of a weight whose inputs are put in order


def count_update(init: Init, kind: str, steps: int) -> int:
    """The most that changing one weight's mask takes beyond what the run holds all along; weights go one by one.

    Args:
        kind: of device. steps: of the run.
    """
    changing = [(g, sizes) for g, sizes in group_sizes(init) if changes_masks(init, g, sizes)]
    return max(
        (_count_weight(g, size, k, kind) for g, sizes in changing for size, k in _live(g, sizes, steps)), default=0
    )


def _live(group: SparsityGroup, sizes: dict[str, tuple[int, ...]], steps: int) -> set[tuple[tuple[int, ...], int]]:
    return {(sizes[n], k) for n, k in count_live(group, sizes, steps).items()}


def _count_weight(group: SparsityGroup, size: tuple[int, ...], live: int, kind: str) -> int:
    block, weights = block_of(group, size), math.prod(size)
    area, sides = math.prod(block), [n // side for n, side in zip(size, block, strict=True)]
    drawn = group.algorithm in ("chts", "chtss")
    score = SCORE + SORTED * (kind == "GPU") + PRUNED * (group.algorithm in ("granet", "chtss")) + DRAWN * drawn
    of_weight = SUMMED * (area > 1) + ORDERED * (group.permute_inputs == "updates")
    found = weights // area * score + PAIR * max(sides) ** 2 * drawn
    if group.may_pack and group.storage == "packed":
        of_weight += PACKED + WHOLE * (group.algorithm == "mest")
        found += MOVED * (live // area)
    return found + of_weight * weights
