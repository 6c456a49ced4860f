"""Metrics, from scikit-learn and SciPy where they have them. All lie in [0, 1], correlations in [-1, 1]."""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np


def classification(golds: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Accuracy, and macro-F1 over the labels that occur in either (scikit-learn's default, as PubMedQA's script)."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(golds, predictions)),
        "macro_f1": float(f1_score(golds, predictions, average="macro", zero_division=0)),
    }


def micro_f1(golds: Sequence[str], predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 pooled over `labels` (leave the negative class out of them)."""
    from sklearn.metrics import precision_recall_fscore_support

    p, r, f, _ = precision_recall_fscore_support(
        golds, predictions, labels=list(labels), average="micro", zero_division=0
    )
    return {"micro_f1": float(f), "precision": float(p), "recall": float(r)}


def indicator(sets: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """[n, labels] 0/1."""
    place = {label: i for i, label in enumerate(labels)}
    out = np.zeros((len(sets), len(labels)), np.int8)
    for row, found in zip(out, sets, strict=True):
        row[[place[label] for label in found]] = 1
    return out


def multilabel(golds: Sequence, predictions: Sequence, labels: Sequence[str]) -> dict[str, float]:
    """Micro- and macro-F1 over `labels`, and the share of examples whose set is exactly right."""
    from sklearn.metrics import f1_score

    y, z = indicator(golds, labels), indicator(predictions, labels)
    return {
        "micro_f1": float(f1_score(y, z, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(y, z, average="macro", zero_division=0)),
        "exact": float((y == z).all(1).mean()),
    }


def example_f1(golds: Sequence, predictions: Sequence) -> dict[str, float]:
    """BLUE's example-based scores: mean precision and recall over examples, and the F1 of these two means.

    Every gold set must hold a label (BLUE leaves out documents without one).
    """
    right = np.array([len(set(g) & set(p)) for g, p in zip(golds, predictions, strict=True)], float)
    said = np.array([len(p) for p in predictions], float)
    p = float(np.divide(right, said, out=np.zeros_like(right), where=said > 0).mean())
    r = float((right / np.array([len(g) for g in golds], float)).mean())
    return {"example_f1": 2 * p * r / (p + r) if p + r else 0.0, "precision": p, "recall": r}


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


def entity_f1(golds: Sequence[tuple[str, ...]], predictions: Sequence[tuple[str, ...]]) -> dict[str, float]:
    """Exact-match precision, recall and F1 over entities, pooled (seqeval's strict IOB2, micro average)."""
    right = said = true = 0
    for gold, found in zip(golds, predictions, strict=True):
        g, p = entities(tuple(gold)), entities(tuple(found))
        right, said, true = right + len(g & p), said + len(p), true + len(g)
    p, r = right / said if said else 0.0, right / true if true else 0.0
    return {"entity_f1": 2 * p * r / (p + r) if p + r else 0.0, "precision": p, "recall": r}


def correlation(golds: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's; nan where either side is constant."""
    from scipy.stats import pearsonr, spearmanr

    if len(golds) < 2:
        return {"pearson": math.nan, "spearman": math.nan}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input, for which the answer is nan
        return {
            "pearson": float(pearsonr(golds, predictions).statistic),
            "spearman": float(spearmanr(golds, predictions).statistic),
        }
