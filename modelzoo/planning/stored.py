"""What masks leave of a model: live weights, and what is stored of them. No torch."""

import math

from modelzoo.config import sparsity as c
from modelzoo.config.trainer import Init
from modelzoo.models.shapes import list_parameters
from modelzoo.sparsity import schedules
from modelzoo.sparsity.select import block_of, group_counts, select_parameters

INDEX = 12  # bytes that say where a live block is: its row, its column and its place by column


def group_sizes(init: Init) -> list[tuple[c.SparsityGroup, dict[str, tuple[int, ...]]]]:
    """Each sparsity group with the sizes of the parameters it acts on."""
    shapes = list_parameters(init.model)
    return [
        (g, {n: shapes[n].size for n in names})
        for g, names in zip(init.sparsity, select_parameters(shapes, init.sparsity), strict=True)
    ]


def count_stored(init: Init, packed: tuple[str, ...]) -> tuple[int, int]:
    """Dead weights that are not stored at the start, and the bytes of masks (or indices) and ages, off the CS-2.

    Args:
        packed: the values of `storage` that count as storing live blocks alone.
    """
    gone = masks = 0
    for group, sizes in group_sizes(init):
        total = sum(math.prod(size) for size in sizes.values())
        counts = group_counts(group, sizes, schedules.held(group, 0))
        live = sum(counts.values())
        ages = 4 * (group.algorithm != "static")
        if group.may_pack and group.storage in packed:
            blocks = sum(k // math.prod(block_of(group, sizes[n])) for n, k in counts.items())
            gone, masks = gone + total - live, masks + ages * live + INDEX * blocks
        else:
            masks += (2 + ages) * total
    return gone, masks
