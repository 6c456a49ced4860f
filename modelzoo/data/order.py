"""The order in which a run takes its examples: a pure function of seed and position."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from modelzoo.data.mixture import share_epoch


@lru_cache(maxsize=2)
def draw_permutation(n: int, seed: int) -> Tensor:
    """0..n-1 as an epoch shuffles them: torch's randperm, as Model Zoo's map reader draws it."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def mix_datasets(sizes: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """Example numbers of one epoch in which dataset j has its weight's share: each cycles through its own examples."""
    counts = share_epoch(sizes, weights)
    starts = np.cumsum([0, *sizes])
    return np.concatenate([starts[j] + np.arange(n) % sizes[j] for j, n in enumerate(counts)])
