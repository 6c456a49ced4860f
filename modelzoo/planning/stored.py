"""What masks leave of a model: live weights, and what is stored of them. No torch."""

import math
from collections.abc import Collection

from modelzoo.config.sections import sparsity as c
from modelzoo.config.sections.optim import Adam
from modelzoo.config.trainer import Init
from modelzoo.models.shapes import frozen, list_parameters
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


def count_live(group: c.SparsityGroup, sizes: dict[str, tuple[int, ...]], steps: int) -> dict[str, int]:
    """Live weights of each parameter of `group` when most are, in a run of `steps` steps; 0: of the first masks."""
    return group_counts(group, sizes, schedules.lowest(group, steps))


def count_stored(init: Init, packed: tuple[str, ...], steps: int = 0) -> tuple[int, int]:
    """Dead weights that are not stored, and the bytes of masks (or indices), ages and `explored` bits.

    Args:
        packed: the values of `storage` that count as storing live blocks alone.
        steps: of the run, at its fullest; 0: at the start.
    """
    gone, masks = 0, count_indices(init, packed, steps) + count_explored(init)
    for group, sizes in group_sizes(init):
        total = sum(math.prod(size) for size in sizes.values())
        live = sum(count_live(group, sizes, steps).values())
        ages = 4 * (group.algorithm == "sr_ste" or _counts_ages(init, group, sizes))
        if group.may_pack and group.storage in packed:
            gone, masks = gone + total - live, masks + ages * live
        else:  # SR-STE's weights that are off take the place of ages
            masks += (2 + ages) * total
    return gone, masks


def find_largest(init: Init, packed: tuple[str, ...]) -> int:
    """Values of the largest weight whose live blocks alone are stored; `packed` as in `count_stored`."""
    stored = [s for g, s in group_sizes(init) if g.may_pack and g.storage in packed]
    return max((math.prod(size) for sizes in stored for size in sizes.values()), default=0)


def _counts_ages(init: Init, group: c.SparsityGroup, sizes: Collection[str]) -> bool:
    """Whether Adam corrects the bias of a group's weights by their own age."""
    adam = init.optimizer is None or (isinstance(init.optimizer.value, Adam) and init.optimizer.value.correct_bias)
    return adam and group.compat is None and changes_masks(init, group, sizes)


def changes_masks(init: Init, group: c.SparsityGroup, names: Collection[str]) -> bool:
    """Whether masks of the weights `names` change: not those of frozen ones."""
    return group.algorithm != "static" and not frozen(init).issuperset(names)


def count_explored(init: Init) -> int:
    """Bytes that say which weights were ever live, where masks change: a bit a block, whole in every process."""
    changing = [(g, sizes) for g, sizes in group_sizes(init) if changes_masks(init, g, sizes)]
    blocks = [math.prod(size) // math.prod(block_of(g, size)) for g, sizes in changing for size in sizes.values()]
    return sum(-(-n // 8) for n in blocks)


def count_indices(init: Init, packed: tuple[str, ...], steps: int = 0) -> int:
    """Bytes that say where blocks are that are stored alone (`kernels.blocks.layout`): each process has all of them.

    Args:
        packed, steps: as in `count_stored`.
    """
    found = 0
    for group, sizes in group_sizes(init):
        if not (group.may_pack and group.storage in packed):
            continue
        for name, live in count_live(group, sizes, steps).items():
            block = block_of(group, sizes[name])
            edges = [size // side + 1 for size, side in zip(sizes[name], block, strict=True)]
            found += ORDER * sizes[name][1] * (group.permute_inputs is not None)
            found += INDEX * (4 * (live // math.prod(block)) + sum(edges))  # row and column, in both orders
    return found
