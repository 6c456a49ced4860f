"""What a sparse config will throw away of an imported model's weights, before its first step."""

import math
import shlex
from collections.abc import Mapping

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.trainer import Init
from modelzoo.kernels.blocks import tiling
from modelzoo.models.shapes import list_parameters
from modelzoo.sparsity import compat, schedules
from modelzoo.sparsity.algorithms import ALGORITHMS
from modelzoo.sparsity.select import block_of, check_sides, group_counts, select_parameters


def describe_initial_masks(init: Init, weights: Mapping[str, Tensor], out: str) -> list[str]:
    """A line for each group of `init.sparsity`: live weights, and the share of their squared norm that masks take.

    The masks are those that training draws from `weights` (ours by name, dense). Where they take any, a last line has
    the command that chooses masks of the same numbers by text.

    Args:
        out: the run folder that is made of them.

    Raises:
        UserError: the config's sparsity does not fit the model: a filter matches nothing, or blocks do not divide.
    """
    try:
        chosen = select_parameters(list_parameters(init.model), init.sparsity)
        pairs = list(zip(init.sparsity, chosen, strict=True))
        lines = [_describe_group(i, g, {n: weights[n] for n in names}, init.seed) for i, (g, names) in enumerate(pairs)]
    except UserError as e:
        raise UserError(f"the config's sparsity does not fit this model: {e}") from None
    if all(schedules.held(g, 0) > 0 for g in init.sparsity):
        lines.append(
            f"           masks by calibration text: python run.py prune {shlex.quote(out)} OUT --method sparsegpt "
            "--data SHARDS"
        )
    return lines


@torch.no_grad()
def _describe_group(i: int, config: SparsityGroup, weights: Mapping[str, Tensor], seed: int) -> str:
    sizes = {n: tuple(x.shape) for n, x in weights.items()}
    check_sides(config, sizes)
    algorithm = (compat.ALGORITHMS if config.compat else ALGORITHMS)[config.algorithm](config, seed)
    counts, live, norm, kept, largest = group_counts(config, sizes, algorithm.target(0)), 0, 0.0, 0.0, 0.0
    for name, x in weights.items():
        block, square = block_of(config, sizes[name]), x.double().square()
        k = counts[name] // math.prod(block)
        order = algorithm.first_order(x, block, k)
        scores = tiling.scores(x.float(), block, order)
        mask = tiling.spread(algorithm.init_mask(name, scores, k), block, order)
        best = tiling.spread(algorithm.choose(scores.abs(), k), block, order)
        live, norm = live + int(mask.sum()), norm + float(square.sum())
        kept, largest = kept + float(square[mask].sum()), largest + float(square[best].sum())
    lost, least = (100 * (1 - x / norm) if norm else 0.0 for x in (kept, largest))
    total = sum(map(math.prod, sizes.values()))
    text = (
        f"masks      group {i} ({config.algorithm}, init_method: {config.init_method}): {live:,} of {total:,} weights "
    )
    text += f"stay ({100 * live / total:.1f} %), and {lost:.1f} % of their squared norm is thrown away"
    if lost > least + 0.05:
        text += f" (init_method: topk: {least:.1f} %)"
    return text + ("; its schedule goes on from there" if config.algorithm == "gmp" else "")
