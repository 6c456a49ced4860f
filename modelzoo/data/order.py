"""The order in which a run takes its examples: a pure function of seed and position."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from modelzoo.data.mixture import share_epoch


@lru_cache(maxsize=2)
def draw_permutation(n: int, seed: int) -> Tensor:
    """0..n-1 as an epoch shuffles them: torch's randperm, as Model Zoo's map reader draws it."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@lru_cache(maxsize=2)
def mix_datasets(sizes: tuple[int, ...], weights: tuple[float, ...], total: int, seed: int, epoch: int) -> np.ndarray:
    """Example numbers of an epoch of `total` in which dataset j has its weight's share.

    A dataset gives all of its examples as often as they go into its share whole. The rest is drawn: from a permutation
    of the dataset that goes on from epoch to epoch, so that none comes again before all others came.
    """
    starts, parts = np.cumsum([0, *sizes]), []
    for j, (size, n) in enumerate(zip(sizes, share_epoch(total, weights), strict=True)):
        whole, rest = divmod(n, size)
        parts.append(starts[j] + np.tile(np.arange(size), whole))
        if rest:
            drawn = draw_permutation(size, seed - 1 - j).numpy()  # the seeds below those of the epochs
            parts.append(starts[j] + np.sort(drawn[(epoch * rest + np.arange(rest)) % size]))
    return np.concatenate(parts)
