"""Masks against brute force: exact counts, ties by index, even spreading, draws keyed by name and step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.kernels.compiled.rows import zero_dead
from modelzoo.sparsity import masks
from modelzoo.sparsity.algorithms import ALGORITHMS
from modelzoo.sparsity.select import live_count

# Few distinct values make ties; NaN and the infinities are drawn as often as numbers.
SCORES = st.lists(
    st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.5, -3.0, float("inf"), float("-inf"), float("nan")]), min_size=1
)


def brute(scores: list[float], k: int) -> list[bool]:
    """Sort by (score descending, index ascending); NaN ranks below every number but above -inf (never to be chosen)."""
    rank = lambda x: (1, 0.0) if x != x else (0, x) if x == float("-inf") else (2, x)
    order = sorted(range(len(scores)), key=lambda i: (tuple(-r for r in rank(scores[i])), i))
    return [i in set(order[:k]) for i in range(len(scores))]


@settings(max_examples=300, deadline=None)
@given(SCORES, st.data())
def test_top_k_equals_a_sort(scores, data):
    k = data.draw(st.integers(0, len(scores)))
    assert masks.top_k(torch.tensor(scores), k).tolist() == brute(scores, k)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.data())
def test_top_k_by_row(rows, n, data):
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=rows * n, max_size=rows * n))).view(rows, n)
    k = data.draw(st.integers(0, n))
    found = masks.top_k(scores.float(), k)
    assert found.tolist() == [brute(row, k) for row in scores.tolist()]


@pytest.mark.parametrize("k", [-1, 5])
def test_top_k_refuses_impossible_counts(k):
    with pytest.raises(ValueError, match="outside"):
        masks.top_k(torch.zeros(4), k)


def test_top_k_of_a_large_weight_is_exact():
    scores = torch.randint(0, 50, (300_000,), generator=torch.Generator().manual_seed(0)).float()
    found = masks.top_k(scores, 123_457)
    order = np.lexsort((np.arange(len(scores)), -scores.numpy()))[:123_457]
    assert int(found.sum()) == 123_457 and bool(found[torch.from_numpy(order)].all())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.data())
def test_zero_dead_selects_whatever_stands_there(values, data):
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))))
    x = torch.tensor(values)
    expected = torch.where(mask, x, 0.0)
    square = zero_dead(x, masks.bits(mask))
    assert torch.equal(x.view(torch.int32), expected.view(torch.int32))  # bit for bit: NaN payloads, +0.0
    if square is not None and abs(expected).max() < 1e18:
        assert square == pytest.approx(float(expected.double().square().sum()), rel=1e-6)


@pytest.mark.parametrize("n", [1, 63, 64, 16_384, 100_003])
def test_zero_dead_finds_the_same_square_for_any_number_of_threads(n):
    draw = torch.Generator().manual_seed(n)
    x, mask = torch.randn(n, generator=draw), torch.rand(n, generator=draw) < 0.3
    x[~mask] = float("nan")  # what is dead does not count
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(zero_dead(x.clone(), masks.bits(mask)))
    finally:
        torch.set_num_threads(1)
    if found[0] is None:
        pytest.skip("no compiled passes here")
    assert found[0] == found[1] == found[2]
    # a lane adds up to 256 squares in float32
    assert found[0] == pytest.approx(float(x[mask].double().square().sum()), rel=256 * 2**-24)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 17), st.integers(1, 17), st.data())
def test_checkerboard_is_exact_and_even(rows, columns, data):
    k = data.draw(st.integers(0, rows * columns))
    mask = masks.checkerboard(torch.Size((rows, columns)), k, torch.device("cpu"))
    assert int(mask.sum()) == k
    counts = mask.sum(1)  # no row holds more than one live weight above another
    assert int(counts.max() - counts.min()) <= 1
    for row in mask.tolist():  # and in a row, read as a ring, any two windows of one length differ by at most 2
        ring = row + row
        for width in range(1, columns):
            inside = [sum(ring[i : i + width]) for i in range(columns)]
            assert max(inside) - min(inside) <= 2


def test_checkerboard_is_one():
    mask = masks.checkerboard(torch.Size((4, 6)), 12, torch.device("cpu"))
    assert mask.int().tolist() == [[(i + j + 1) % 2 if mask[0, 0] else (i + j) % 2 for j in range(6)] for i in range(4)]


@pytest.mark.parametrize("ins,outs", [(3, None), (None, 4), (None, None)])
def test_rows_and_back(ins, outs):
    x = torch.arange(8 * 6).view(8, 6)
    rows = masks.as_rows(x, ins, outs)
    assert torch.equal(masks.from_rows(rows, x.shape, ins), x)
    if ins:  # a row holds all weights of a block of inputs
        assert [sorted(r.tolist()) for r in rows] == [sorted(x[:, i : i + 2].flatten().tolist()) for i in (0, 2, 4)]
    if outs:
        assert [r.tolist() for r in rows] == [x[i : i + 2].flatten().tolist() for i in (0, 2, 4, 6)]


def algorithm(kind="static", run_seed=0, **fields):
    return ALGORITHMS[kind](SparsityGroup.model_validate({"algorithm": kind, "sparsity": 0.5, **fields}), run_seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_first_masks_have_the_exact_count(rows, columns, permille):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(permille))
    k = live_count(rows * columns, permille / 1000)
    for method in ("random", "topk", "checkerboard"):
        mask = algorithm(init_method=method).init_mask("w", weight, k)
        assert mask.shape == weight.shape and mask.dtype == torch.bool and int(mask.sum()) == k
    kept = algorithm(init_method="topk").init_mask("w", weight, k)
    if 0 < k < weight.numel():
        assert weight[kept].abs().min() >= weight[~kept].abs().max()


def test_from_zeros_reads_the_weights():
    weight = torch.tensor([[0.0, 1.0], [-2.0, -0.0]])
    assert algorithm(init_method="from_zeros").init_mask("w", weight, 99).tolist() == [[False, True], [True, False]]


def test_random_masks_are_keyed_by_seed_and_name_alone():
    weight = torch.zeros(30, 40)
    draw = lambda run_seed, name, **own: algorithm("static", run_seed, **own).init_mask(name, weight, 600)
    torch.manual_seed(1)
    first = draw(0, "a")
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(first, draw(0, "a"))
    before = torch.get_rng_state()
    others = [draw(1, "a"), draw(0, "b"), draw(0, "a", seed=5)]
    assert torch.equal(before, torch.get_rng_state())  # and they leave the global generator alone
    for other in others:  # unrelated masks share about half of their live weights
        assert 230 < int((first & other).sum()) < 370
    assert torch.equal(draw(3, "a", seed=5), draw(4, "a", seed=5))  # a group's own seed wins over the run's


def test_random_masks_are_uniform():
    """Over many names every place is live about equally often."""
    count = sum(algorithm().init_mask(f"w{i}", torch.zeros(5, 8), 10).int() for i in range(800))
    assert (count - 200).abs().max() < 5 * (800 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("key,dim,groups", [("balance_in_groups", 1, 3), ("balance_out_groups", 0, 4)])
def test_balanced_groups_hold_equally_many(key, dim, groups):
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    rigl = algorithm("rigl", **{key: groups})
    mask = rigl.init_mask("w", weight, 36)
    for step in range(1, 6):
        per_group = [int(part.sum()) for part in mask.chunk(groups, dim)]
        assert per_group == [36 // groups] * groups
        weight = torch.where(mask, torch.randn(8, 12, generator=torch.Generator().manual_seed(step)), 0.0)
        grad = torch.randn(8, 12, generator=torch.Generator().manual_seed(100 + step))
        mask = rigl.update_mask("w", weight, mask, grad, step, 36)


def test_set_draws_are_keyed_by_seed_name_and_step():
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    mask = algorithm("set").init_mask("w", weight, 300)
    weight = torch.where(mask, weight, 0.0)
    update = lambda seed, name, step: algorithm("set", seed).update_mask(name, weight, mask, None, step, 300)
    first = update(0, "w", 10)
    torch.rand(3)
    assert torch.equal(first, update(0, "w", 10))
    for other in (update(1, "w", 10), update(0, "v", 10), update(0, "w", 11)):
        assert not torch.equal(first, other)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(2, 8), st.floats(0, 1), st.data())
def test_updates_keep_the_exact_count(rows, columns, drop, data):
    """Whatever the drop fraction, the target and the gradient hold (NaN too), k weights are live afterwards."""
    n = rows * columns
    live, k = data.draw(st.integers(1, n)), data.draw(st.integers(1, n))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    mask = masks.top_k(torch.rand(n, generator=draw), live).view(rows, columns)
    weight = torch.where(mask, torch.randn(rows, columns, generator=draw), 0.0)
    grad = torch.randn(rows, columns, generator=draw)
    if data.draw(st.booleans()):
        grad[~mask] = float("nan")
    for kind in ("set", "rigl", "gmp"):
        fields = {"drop_fraction": drop} if kind != "gmp" else {"sparsity": {"type": "cubic", "final": 0.9, "end": 9}}
        new = algorithm(kind, **fields).update_mask("w", weight, mask, grad, 5, k)
        assert int(new.sum()) == k, kind
        if kind == "gmp" and k <= live:
            assert not bool((new & ~mask).any())


def test_rigl_is_set_but_for_the_growth_score():
    """With SET's draws handed over as the gradient, RigL makes SET's masks."""
    for step in range(1, 6):
        weight = torch.randn(9, 11, generator=torch.Generator().manual_seed(step))
        mask = algorithm("set").init_mask("w", weight, 40)
        weight = torch.where(mask, weight, 0.0)
        scores = masks.random_scores(weight, 0, "w", step)
        by_set = algorithm("set").update_mask("w", weight, mask, None, step, 40)
        assert torch.equal(algorithm("rigl").update_mask("w", weight, mask, scores, step, 40), by_set)
