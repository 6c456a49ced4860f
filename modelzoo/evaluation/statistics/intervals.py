"""How sure a score is: bootstrap over examples or documents, paired differences, spread over seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES, LEVEL = 1000, 0.95

# Of golds, predictions and weights [resamples, n]: arrays [resamples] by name (modelzoo.evaluation.statistics.metrics).
Metrics = Callable[[Sequence[Any], Sequence[Any], np.ndarray], Mapping[str, np.ndarray]]


def draw_weights(n: int, resamples: int, seed: int = 0, units: Sequence[str] | None = None) -> np.ndarray:
    """[resamples, n] float: how often each example is drawn when as many as there are are drawn with replacement.

    Args:
        units: which of the n examples are drawn together (those of a document, which are alike); default: each alone.
    """
    numbers = {unit: i for i, unit in enumerate(dict.fromkeys(units if units is not None else range(n)))}
    draws = np.random.default_rng(seed).multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), resamples)
    return draws.astype(float) if units is None else draws[:, [numbers[unit] for unit in units]].astype(float)


def bootstrap(
    metrics: Metrics,
    golds: Sequence[Any],
    predictions: Sequence[Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
    units: Sequence[str] | None = None,
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of each metric over resampled examples (Efron 1979); `units` as in `draw_weights`."""
    values = metrics(golds, predictions, draw_weights(len(golds), resamples, seed, units))
    return {name: find_middle(x) for name, x in values.items()}


def compare_paired(
    metrics: Metrics,
    name: str,
    golds: Sequence[Any],
    ours: Sequence[Any],
    theirs: Sequence[Any],
    resamples: int = RESAMPLES,
    seed: int = 0,
    units: Sequence[str] | None = None,
) -> tuple[float, float, float]:
    """Difference of the metric `name`, ours less theirs, on the same examples, and its 95 % bootstrap interval.

    Args:
        units: as in `draw_weights`.
    """
    w = draw_weights(len(golds), resamples, seed, units)
    once = np.ones((1, len(golds)))
    differences, (whole,) = (metrics(golds, ours, x)[name] - metrics(golds, theirs, x)[name] for x in (w, once))
    return float(whole), *find_middle(differences)


def find_middle(values: ArrayLike) -> tuple[float, float]:
    """The ends of what holds the middle 95 % of resampled values."""
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


def measure_spread(values: Sequence[float]) -> Spread:
    """The spread of one score per seed; one seed alone has none (nan)."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Spread(mean, math.nan, math.nan, math.nan, n)
    from scipy.stats import t

    sd = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Spread(mean, sd, mean - half, mean + half, n)
