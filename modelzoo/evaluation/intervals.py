"""How sure a score is: bootstrap over examples, paired differences, spread over seeds."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES, LEVEL = 1000, 0.95

Metrics = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]


def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n, (resamples, n))


def bootstrap(
    metrics: Metrics, golds: Sequence[Any], predictions: Sequence[Any], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of each metric over resampled examples (Efron 1979)."""
    values: dict[str, list[float]] = {}
    for draw in _draws(len(golds), resamples, seed):
        for name, value in metrics([golds[i] for i in draw], [predictions[i] for i in draw]).items():
            values.setdefault(name, []).append(value)
    return {name: _middle(x) for name, x in values.items()}


def paired(
    metric: Callable[[Sequence[Any], Sequence[Any]], float],
    golds: Sequence[Any],
    ours: Sequence[Any],
    theirs: Sequence[Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Difference of one metric, ours less theirs, on the same examples, and its 95 % bootstrap interval."""
    differences = []
    for draw in _draws(len(golds), resamples, seed):
        gold = [golds[i] for i in draw]
        differences.append(metric(gold, [ours[i] for i in draw]) - metric(gold, [theirs[i] for i in draw]))
    return metric(golds, ours) - metric(golds, theirs), *_middle(differences)


def _middle(values: Sequence[float]) -> tuple[float, float]:
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]  # a resample may leave a correlation undefined
    if not len(finite):
        return math.nan, math.nan
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


class Spread(NamedTuple):
    """Over seeds: mean, sample standard deviation, and the mean's 95 % interval by Student's t."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Of one score per seed; a single seed has no spread (nan)."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Spread(mean, math.nan, math.nan, math.nan, n)
    from scipy.stats import t

    sd = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Spread(mean, sd, mean - half, mean + half, n)
