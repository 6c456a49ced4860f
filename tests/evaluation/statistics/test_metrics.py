"""Metrics against counts made by hand in NumPy, BLUE's script retold, and seqeval."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.evaluation.statistics import intervals, metrics

LABELS = ["yes", "no", "maybe"]
label_lists = st.integers(1, 40).flatmap(
    lambda n: st.tuples(*(st.lists(st.sampled_from(LABELS), min_size=n, max_size=n) for _ in range(2)))
)
KINDS = ["O", "B-Drug", "I-Drug", "B-Gene", "I-Gene"]
tag_lists = st.lists(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(*(st.lists(st.sampled_from(KINDS), min_size=n, max_size=n) for _ in range(2)))
    ),
    min_size=1,
    max_size=8,
)


def f1(gold: np.ndarray, found: np.ndarray) -> float:
    right = float((gold & found).sum())
    total = float(gold.sum() + found.sum())
    return 2 * right / total if total else 0.0


@settings(deadline=None)
@given(label_lists)
def test_accuracy_and_macro_f1_are_pubmedqas(pair):
    gold, found = map(np.array, pair)
    got = metrics.classification(*pair)
    seen = sorted(set(pair[0]) | set(pair[1]))
    assert got["accuracy"] == pytest.approx((gold == found).mean())
    assert got["macro_f1"] == pytest.approx(np.mean([f1(gold == x, found == x) for x in seen]))


@settings(deadline=None)
@given(label_lists)
def test_micro_f1_leaves_the_negative_class_out(pair):
    gold, found = map(np.array, pair)
    positive = LABELS[:2]
    a, b = (np.stack([x == label for label in positive]) for x in (gold, found))
    assert metrics.micro_f1(*pair, positive)["micro_f1"] == pytest.approx(f1(a, b))


@settings(deadline=None)
@given(st.data())
def test_multilabel_and_example_based_f1(data):
    n = data.draw(st.integers(1, 12))
    some = st.sets(st.sampled_from(LABELS)).map(lambda s: tuple(sorted(s)))
    gold = data.draw(st.lists(some.filter(len), min_size=n, max_size=n))
    found = data.draw(st.lists(some, min_size=n, max_size=n))
    a, b = (np.array([[label in x for label in LABELS] for x in side]) for side in (gold, found))
    got = metrics.multilabel(gold, found, LABELS)
    assert got["micro_f1"] == pytest.approx(f1(a, b))
    assert got["macro_f1"] == pytest.approx(np.mean([f1(a[:, i], b[:, i]) for i in range(3)]))
    assert got["exact"] == pytest.approx((a == b).all(1).mean())
    # BLUE, as its eval_hoc.py goes about it: per document, then means, then the F1 of the means.
    precision = [len(set(g) & set(p)) / len(p) if p else 0 for g, p in zip(gold, found, strict=True)]
    recall = [len(set(g) & set(p)) / len(g) for g, p in zip(gold, found, strict=True)]
    p, r = np.mean(precision), np.mean(recall)
    assert metrics.example_f1(gold, found)["example_f1"] == pytest.approx(2 * p * r / (p + r) if p + r else 0)


def test_entities_are_strict():
    tags = ("B-Drug", "I-Drug", "O", "I-Gene", "B-Gene", "I-Drug", "B-Drug", "B-Drug")
    assert metrics.entities(tags) == {("Drug", 0, 1), ("Gene", 4, 4), ("Drug", 6, 6), ("Drug", 7, 7)}


@settings(deadline=None, max_examples=60)
@given(tag_lists)
def test_entity_f1_is_seqevals_strict(pairs):
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed; it is a reference here only")
    from seqeval.scheme import IOB2

    gold, found = [p[0] for p in pairs], [p[1] for p in pairs]
    if not any(metrics.entities(tuple(g)) for g in gold):
        return  # seqeval refuses sets without an entity
    expected = seqeval.f1_score(gold, found, mode="strict", scheme=IOB2, zero_division=0)
    assert metrics.entity_f1(gold, found)["entity_f1"] == pytest.approx(expected)


@settings(deadline=None)
@given(tag_lists)
def test_entity_f1_counts_spans_that_agree_in_type_and_ends(pairs):
    def spans(tags):
        """Each B-, and how far I- of its type go on after it."""
        found = set()
        for i, tag in enumerate(tags):
            if tag[0] == "B":
                end = i + 1
                while end < len(tags) and tags[end] == f"I-{tag[2:]}":
                    end += 1
                found.add((tag[2:], i, end))
        return found

    gold, found = ([spans(p[k]) for p in pairs] for k in (0, 1))
    right = sum(len(a & b) for a, b in zip(gold, found, strict=True))
    total = sum(map(len, gold)) + sum(map(len, found))
    got = metrics.entity_f1([p[0] for p in pairs], [p[1] for p in pairs])
    assert got["entity_f1"] == pytest.approx(2 * right / total if total else 0)


def test_correlations():
    x, y = np.random.default_rng(0).normal(size=(2, 30))
    got = metrics.correlation(list(x), list(y))
    ranks = [np.argsort(np.argsort(v)) for v in (x, y)]
    assert got["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert got["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert math.isnan(metrics.correlation([1.0, 1.0], [0.0, 2.0])["pearson"])


def test_bootstrap_interval_of_an_accuracy_is_the_binomials():
    draw = np.random.default_rng(0)
    gold = ["yes"] * 400
    found = list(draw.choice(["yes", "no"], 400, p=[0.7, 0.3]))
    p = found.count("yes") / 400
    low, high = intervals.bootstrap(metrics.classification, gold, found, 400)["accuracy"]
    half = 1.96 * math.sqrt(p * (1 - p) / 400)
    assert low == pytest.approx(p - half, abs=0.01) and high == pytest.approx(p + half, abs=0.01)


def test_examples_of_a_document_are_drawn_together():
    """60 documents of 10 sentences, all right or all wrong: as sure as 60 answers, not as 600."""
    right = np.random.default_rng(0).random(60) < 0.7
    gold, found = ["yes"] * 600, np.where(np.repeat(right, 10), "yes", "no").tolist()
    units = [f"{i // 10}" for i in range(600)]
    p, of = right.mean(), metrics.classification
    for size, drawn in ((600, None), (60, units)):
        low, high = intervals.bootstrap(of, gold, found, 2000, units=drawn)["accuracy"]
        half = 1.96 * math.sqrt(p * (1 - p) / size)
        assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    one = list(of(gold[::10], found[::10], intervals.draw_weights(60, 50, 3))["accuracy"])
    assert list(of(gold, found, intervals.draw_weights(600, 50, 3, units))["accuracy"]) == pytest.approx(one)
    alone = intervals.draw_weights(5, 9, 1, list("abcde"))
    assert (alone == intervals.draw_weights(5, 9, 1)).all()


def test_paired_difference_is_surer_than_two_intervals_apart():
    draw = np.random.default_rng(1)
    gold = list(draw.choice(LABELS, 200))
    theirs = [g if draw.random() < 0.5 else "other" for g in gold]
    ours = [g if draw.random() < 0.1 else t for g, t in zip(gold, theirs, strict=True)]  # never worse, a tenth better
    difference, low, high = intervals.compare_paired(metrics.classification, "accuracy", gold, ours, theirs, 300)
    gained = sum(o == g for o, g in zip(ours, gold, strict=True)) - sum(
        t == g for t, g in zip(theirs, gold, strict=True)
    )
    assert difference == pytest.approx(gained / 200)
    assert 0 < low <= difference <= high < 0.12
    assert intervals.compare_paired(metrics.classification, "accuracy", gold, ours, ours, 50) == (0, 0, 0)


def test_spread_over_seeds():
    found = intervals.measure_spread([0.5, 0.6, 0.7])
    assert found.mean == pytest.approx(0.6) and found.sd == pytest.approx(0.1)
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)  # t(0.975, 2)
    assert math.isnan(intervals.measure_spread([0.5]).sd)


some = st.sets(st.sampled_from(LABELS)).map(lambda s: tuple(sorted(s)))
CASES = {
    "classification": (st.sampled_from(LABELS), st.sampled_from(LABELS), metrics.classification),
    "micro_f1": (
        st.sampled_from(LABELS), st.sampled_from(LABELS), lambda g, p, w=None: metrics.micro_f1(g, p, LABELS[:2], w),
    ),
    "multilabel": (some, some, lambda g, p, w=None: metrics.multilabel(g, p, LABELS, w)),
    "example_f1": (some.filter(len), some, metrics.example_f1),
    "entity_f1": (
        st.lists(st.sampled_from(KINDS), min_size=4, max_size=4).map(tuple),
        st.lists(st.sampled_from(KINDS), min_size=4, max_size=4).map(tuple),
        metrics.entity_f1,
    ),
    "correlation": (st.floats(0, 4), st.floats(0, 4), metrics.correlation),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_resample_scores_as_the_examples_drawn(name, data):
    """What is computed for all resamples at once equals the metric of each one's examples, repeats and all."""
    golds, predictions, metric = CASES[name]
    n = data.draw(st.integers(2, 9))
    g, p = (data.draw(st.lists(x, min_size=n, max_size=n)) for x in (golds, predictions))
    weights = intervals.draw_weights(n, 3, data.draw(st.integers(0, 99)))
    assert (weights.sum(1) == n).all()
    at_once = metric(g, p, weights)
    for i, w in enumerate(weights.astype(int)):
        drawn = [k for k in range(n) for _ in range(w[k])]
        one = metric([g[k] for k in drawn], [p[k] for k in drawn])
        for key, value in one.items():
            assert at_once[key][i] == pytest.approx(value, nan_ok=True)
