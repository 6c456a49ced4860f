"""What masks leave of a model: live weights, and what is stored of them. No torch."""

import math

from modelzoo.config import sparsity as c
from modelzoo.config.trainer import Init
from modelzoo.models.shapes import list_parameters
from modelzoo.sparsity import schedules
from modelzoo.sparsity.select import block_of, group_counts, select_parameters

INDEX = 4  # bytes of a number of a block
ORDER = 16  # of an input's place in an order, and back


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
    gone, masks = 0, count_indices(init, packed)
    for group, sizes in group_sizes(init):
        total = sum(math.prod(size) for size in sizes.values())
        counts = group_counts(group, sizes, schedules.held(group, 0))
        live = sum(counts.values())
        ages = 4 * (group.algorithm != "static")
        if group.may_pack and group.storage in packed:
            gone, masks = gone + total - live, masks + ages * live
        else:  # SR-STE's weights that are off take the place of ages
            masks += (2 + ages) * total
    return gone, masks


def count_indices(init: Init, packed: tuple[str, ...]) -> int:
    """Bytes that say where the live blocks are that are stored alone (`kernels.layout`): every process has all of them.

    Args:
        packed: as in `count_stored`.
    """
    found = 0
    for group, sizes in group_sizes(init):
        if not (group.may_pack and group.storage in packed):
            continue
        for name, live in group_counts(group, sizes, schedules.held(group, 0)).items():
            block = block_of(group, sizes[name])
            edges = [size // side + 1 for size, side in zip(sizes[name], block, strict=True)]
            found += ORDER * sizes[name][1] * (group.permute_inputs is not None)
            found += INDEX * (4 * (live // math.prod(block)) + sum(edges))  # row and column, in both orders
    return found
