"""Metrics, in [0, 1] (correlations in [-1, 1]): scikit-learn's and SciPy's where they have them.

Each takes golds and predictions, and perhaps `weights` [resamples, n]: how often each resample draws each example.
Without them it gives numbers; with them arrays [resamples], all at once in closed form (tests hold the two together).
"""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

Weights = np.ndarray | None
ZERO: Any = 0  # what a ratio of nothing counts as; scikit-learn's own types know its default alone, which is text
Values = dict[str, Any]  # a float each; with weights an array [resamples] each


def rank(score: float) -> float:
    """A score for comparison; one that is undefined (a correlation with one value) is below all others."""
    return score if score == score else -math.inf


def _ratio(a, b) -> np.ndarray:
    """a / b, and 0 where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    return np.divide(a, b, out=np.zeros(a.shape), where=b > 0)


def _f1(right, predicted, true) -> np.ndarray:
    return _ratio(2 * np.asarray(right, float), np.asarray(predicted, float) + true)


def _one_hot(values: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """[n, labels] float; all zero for what is none of them."""
    return np.array([[v == label for label in labels] for v in values], float).reshape(len(values), len(labels))


def classification(golds: Sequence[str], predictions: Sequence[str], weights: Weights = None) -> Values:
    """Accuracy, and macro-F1 over the labels that occur in either (scikit-learn's default, as PubMedQA's script)."""
    if weights is None:
        from sklearn.metrics import accuracy_score, f1_score

        return {
            "accuracy": float(accuracy_score(golds, predictions)),
            "macro_f1": float(f1_score(golds, predictions, average="macro", zero_division=ZERO)),
        }
    labels = sorted({*golds, *predictions})
    g, p = _one_hot(golds, labels), _one_hot(predictions, labels)
    right, predicted, true = weights @ (g * p), weights @ p, weights @ g
    return {
        "accuracy": right.sum(1) / weights.sum(1),
        "macro_f1": _ratio(_f1(right, predicted, true).sum(1), (predicted + true > 0).sum(1)),
    }


def micro_f1(
    golds: Sequence[str], predictions: Sequence[str], labels: Sequence[str], weights: Weights = None
) -> Values:
    """Precision, recall and F1 pooled over `labels` (leave the negative class out of them)."""
    if weights is None:
        from sklearn.metrics import precision_recall_fscore_support

        p, r, f, _ = precision_recall_fscore_support(
            golds, predictions, labels=list(labels), average="micro", zero_division=ZERO
        )
        return {"micro_f1": float(f), "precision": float(p), "recall": float(r)}
    g, p = _one_hot(golds, labels), _one_hot(predictions, labels)
    return _pooled("micro_f1", (g * p).sum(1), p.sum(1), g.sum(1), weights)


def _pooled(name: str, right: np.ndarray, predicted: np.ndarray, true: np.ndarray, weights: Weights) -> Values:
    """F1, precision and recall of counts summed over examples, each [n]."""
    w = np.ones((1, len(right))) if weights is None else weights
    right, predicted, true = w @ right, w @ predicted, w @ true
    values = {name: _f1(right, predicted, true), "precision": _ratio(right, predicted), "recall": _ratio(right, true)}
    return values if weights is not None else {k: float(v[0]) for k, v in values.items()}


def indicator(sets: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """[n, labels] 0/1."""
    place = {label: i for i, label in enumerate(labels)}
    out = np.zeros((len(sets), len(labels)), np.int8)
    for row, found in zip(out, sets, strict=True):
        row[[place[label] for label in found]] = 1
    return out


def multilabel(golds: Sequence, predictions: Sequence, labels: Sequence[str], weights: Weights = None) -> Values:
    """Micro- and macro-F1 over `labels`, and the share of examples whose set is exactly right."""
    y, z = indicator(golds, labels), indicator(predictions, labels)
    if weights is None:
        from sklearn.metrics import f1_score

        return {
            "micro_f1": float(f1_score(y, z, average="micro", zero_division=ZERO)),
            "macro_f1": float(f1_score(y, z, average="macro", zero_division=ZERO)),
            "exact": float((y == z).all(1).mean()),
        }
    right, predicted, true = weights @ (y * z), weights @ z, weights @ y
    return {
        "micro_f1": _f1(right.sum(1), predicted.sum(1), true.sum(1)),
        "macro_f1": _f1(right, predicted, true).mean(1),
        "exact": weights @ (y == z).all(1) / weights.sum(1),
    }


def example_f1(golds: Sequence, predictions: Sequence, weights: Weights = None) -> Values:
    """BLUE's example-based scores: mean precision and recall over examples, and the F1 of these two means.

    Every gold set must hold a label (BLUE leaves out documents without one).
    """
    right = np.array([len(set(g) & set(p)) for g, p in zip(golds, predictions, strict=True)], float)
    w = np.ones((1, len(right))) if weights is None else weights
    p = w @ _ratio(right, [len(p) for p in predictions]) / w.sum(1)
    r = w @ _ratio(right, [len(g) for g in golds]) / w.sum(1)
    values = {"example_f1": _ratio(2 * p * r, p + r), "precision": p, "recall": r}
    return values if weights is not None else {k: float(v[0]) for k, v in values.items()}


@lru_cache(maxsize=1 << 16)
def entities(tags: tuple[str, ...]) -> frozenset[tuple[str, int, int]]:
    """(type, first, last) of each IOB2 entity. Strict: an I- tag that goes on from no entity of its type is none."""
    found, kind, begin = set(), None, 0
    for i, tag in enumerate((*tags, "O")):
        if tag.startswith("I-") and tag[2:] == kind:
            continue
        if kind is not None:
            found.add((kind, begin, i - 1))
        kind, begin = (tag[2:], i) if tag.startswith("B-") else (None, 0)
    return frozenset(found)


def entity_f1(golds: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]], weights: Weights = None) -> Values:
    """Exact-match precision, recall and F1 over entities, pooled (seqeval's strict IOB2, micro average)."""
    g, p = ([entities(tuple(tags)) for tags in side] for side in (golds, predictions))
    right = np.array([len(a & b) for a, b in zip(g, p, strict=True)])
    return _pooled("entity_f1", right, np.array([len(x) for x in p]), np.array([len(x) for x in g]), weights)


def correlation(golds: Sequence[float], predictions: Sequence[float], weights: Weights = None) -> Values:
    """Pearson's and Spearman's; nan where either side is constant."""
    from scipy.stats import pearsonr, spearmanr

    if weights is not None:
        rows = [np.repeat(np.arange(len(golds)), w) for w in weights.astype(int)]
        found = [correlation(np.take(golds, r).tolist(), np.take(predictions, r).tolist()) for r in rows]
        return {name: np.array([f[name] for f in found]) for name in ("pearson", "spearman")}
    if len(golds) < 2:
        return {"pearson": math.nan, "spearman": math.nan}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input, for which the answer is nan
        found: list[Any] = [pearsonr(golds, predictions), spearmanr(golds, predictions)]  # named tuples, untyped
        pearson, spearman = (float(x.statistic) for x in found)
        return {"pearson": pearson, "spearman": spearman}
