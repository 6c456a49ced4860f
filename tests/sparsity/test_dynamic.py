"""Where weights move: each algorithm's scores against plain loops, exact counts with ties, and what was explored."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.config.sections.sparsity import GRADUAL, REGROWING, SparsityGroup
from modelzoo.sparsity import masks, topology
from modelzoo.sparsity.algorithms import ALGORITHMS
from modelzoo.sparsity.explored import count_bits, pack_bits
from modelzoo.sparsity.schedules import value
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.support import batch, make_run, train_step

RISING = {"type": "cubic", "init": 0.25, "final": 0.75, "end": 20}
FEW = settings(max_examples=25, deadline=None)
SIDES = st.tuples(st.integers(1, 7), st.integers(1, 7))


def algorithm(name: str, **more):
    level = RISING if name in ("granet", "chtss") else 0.75
    group = SparsityGroup.model_validate({"algorithm": name, "sparsity": level, **more})
    return ALGORITHMS[name](group, seed=3)


def draw_mask(size: tuple[int, int], share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(size) < share


def link_score(mask: np.ndarray, u: int, v: int, predictor: str) -> float:
    """Equation 3 of arXiv 2501.19107 for output u and input v, path by path."""

    def share(common: int, links: int) -> float:
        outside = links - common - 1  # all of z's links but those to common neighbours and to the other seed
        return (common + 1 if predictor == "ch2_l3n" else 1) / (outside + 1)

    total = 0.0
    for z in range(mask.shape[0]):  # u - a - z - v
        common = sum(mask[u, a] and mask[z, a] for a in range(mask.shape[1]))
        if common and mask[z, v]:
            total += share(common, mask[z].sum())
    for z in range(mask.shape[1]):  # v - b - z - u
        common = sum(mask[b, v] and mask[b, z] for b in range(mask.shape[0]))
        if common and mask[u, z]:
            total += share(common, mask[:, z].sum())
    return total


@FEW
@given(SIDES, st.floats(0, 1), st.integers(0, 99), st.sampled_from(["ch2_l3n", "ch3_l3n"]))
def test_links_are_predicted_as_by_their_paths(size, share, seed, predictor):
    mask = draw_mask(size, share, seed)
    found = topology.predict_links(torch.from_numpy(mask), predictor)
    for u, v in itertools.product(*map(range, size)):
        if not mask[u, v]:
            assert float(found[u, v]) == pytest.approx(link_score(mask, u, v, predictor), rel=1e-5)


def test_links_have_the_same_bits_in_any_order():
    """Sums are of whole numbers, so no kernel's order of summation shows."""
    mask = torch.from_numpy(draw_mask((96, 160), 0.3, 5))
    rows, columns = (torch.from_numpy(np.random.default_rng(1).permutation(n)) for n in mask.shape)
    for predictor in ("ch2_l3n", "ch3_l3n"):
        found = topology.predict_links(mask, predictor)
        assert torch.equal(topology.predict_links(mask[rows][:, columns], predictor), found[rows][:, columns])


@FEW
@given(SIDES, st.integers(0, 99))
def test_relative_importance_is_a_share_of_row_and_column(size, seed):
    weight = np.random.default_rng(seed).integers(-2, 3, size).astype(np.float32)
    found = topology.relative_importance(torch.from_numpy(weight))
    for u, v in itertools.product(*map(range, size)):
        parts = [abs(weight[u, v]) / total for total in (abs(weight[u]).sum(), abs(weight[:, v]).sum()) if total]
        assert float(found[u, v]) == pytest.approx(sum(parts))


def test_soft_choice_draws_in_proportion_and_takes_zeros_last():
    odds, rows = torch.tensor([1.0, 2.0, 5.0, 0.0]), 20_000
    uniform = torch.rand((rows, 4), generator=torch.Generator().manual_seed(0))
    scores = masks.soften(odds.log().expand(rows, 4), uniform)
    assert scores.isfinite().all()
    first = masks.top_k(scores, 1).float().mean(0)
    torch.testing.assert_close(first, odds / odds.sum(), rtol=0, atol=0.02)
    two = masks.top_k(scores, 2)  # without replacement: first i, then j of what is left
    pair = float((two[:, 0] & two[:, 1]).float().mean())
    assert pair == pytest.approx(1 / 8 * 2 / 7 + 2 / 8 * 1 / 6, abs=0.01) and not two[:, 3].any()
    assert masks.top_k(scores, 4).all()
    edges = masks.soften(torch.zeros(2), torch.tensor([0.0, 1 - 2.0**-24]))
    assert edges.isfinite().all() and edges[0] < edges[1]


PATTERNS = {
    "single": {}, "shared": {"shared_inputs": 2}, "nm": {"nm": [2, 8], "sparsity": 0.75},
}  # fmt: skip


@FEW
@given(st.sampled_from(REGROWING), st.sampled_from(sorted(PATTERNS)), st.integers(0, 99), st.integers(1, 3))
def test_counts_are_exact_whatever_ties(name, pattern, seed, sizes):
    """Few distinct weights and gradients, so ties abound; each row has its share, and the same call the same mask."""
    if pattern == "nm" and name in ("granet", "chtss"):
        return  # their level moves, N:M's does not
    made = algorithm(name, **PATTERNS[pattern])
    draw = np.random.default_rng(seed)
    rows = made.rows(torch.zeros(4, 16)).shape[0]
    most = 64 // rows
    before, after = (2, 2) if pattern == "nm" else draw.integers(0, most + 1, 2)
    if name not in ("granet", "chtss"):
        after = min(after, before) if pattern != "nm" else after
    mask = made.choose(torch.from_numpy(draw.random((4, 16))), int(before) * rows)
    weight, grad = (torch.from_numpy(draw.integers(-sizes, sizes + 1, (4, 16)).astype(np.float32)) for _ in range(2))
    weight, k = weight * mask, int(after) * rows
    grad = grad * mask if made.needs_live_gradient else grad
    found = made.update_mask("w", weight, mask, grad, 4, k)
    assert found.dtype == torch.bool and found.shape == mask.shape
    assert made.rows(found).sum(-1).tolist() == [int(after)] * rows
    assert torch.equal(found, made.update_mask("w", weight.clone(), mask.clone(), grad.clone(), 4, k))


def kept(size: np.ndarray, live: np.ndarray, n: int) -> set[int]:
    """The n live places of the highest score, ties to the lower index."""
    return set(sorted(np.flatnonzero(live), key=lambda i: (-size[i], i))[:n])


@FEW
@given(st.integers(0, 99), st.integers(1, 12))
def test_granet_prunes_then_exchanges_half(seed, k):
    draw = np.random.default_rng(seed)
    live = draw.random(24) < 0.7
    weight, grad = draw.integers(-3, 4, 24) * live, draw.integers(-3, 4, 24)
    left = kept(abs(weight), live, k)
    stays = kept(abs(weight), np.isin(np.arange(24), list(left)), len(left) // 2)  # (1 - 0.5) of what pruning left
    grown = kept(abs(grad), ~np.isin(np.arange(24), list(stays)), k - len(stays))
    w, m, g = (torch.from_numpy(x).view(4, 6) for x in (weight.astype(np.float32), live, grad.astype(np.float32)))
    found = algorithm("granet").update_mask("w", w, m, g, 4, k)
    assert set(found.flatten().nonzero().flatten().tolist()) == stays | grown


@FEW
@given(st.integers(0, 99), st.sampled_from([None, 0.0, 0.5]))
def test_mest_drops_the_smallest_sum_of_size_and_gradient(seed, gamma):
    draw = np.random.default_rng(seed)
    live = draw.random(24) < 0.6
    weight, grad = ((draw.normal(size=24) * live).astype(np.float32) for _ in range(2))
    made = algorithm("mest", drop_fraction=0.25, **({} if gamma is None else {"gamma": gamma}))
    w, m, g = (torch.from_numpy(x).view(4, 6) for x in (weight, live, grad))
    found = made.update_mask("w", w, m, g, 4, int(live.sum())).flatten().numpy()
    score = abs(weight) + np.float32(0.01 if gamma is None else gamma) * abs(grad)
    assert kept(score, live, int(0.75 * live.sum())) <= set(np.flatnonzero(found))


def test_mest_takes_the_gradient_of_the_step():
    """That which the optimizer took, clipped; whole or of packed blocks, it chooses the same."""
    section = {"algorithm": "mest", "sparsity": 0.75, "update": {"freq": 2}, "gamma": 5.0, "block": [2, 2]}
    chosen = []
    for more in ({}, {"storage": "packed"}, {"gamma": 0.0}):
        run = make_run(sparsity=section | more, precision={"enabled": False, "max_gradient_norm": 0.1})
        for step in (1, 2):
            train_step(run, batch(step), 1)
        chosen.append([p.mask for p in run.sparsity.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*chosen[:2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(chosen[0], chosen[2], strict=True))


def test_smet_regrows_elsewhere_while_there_is_room():
    made, draw = algorithm("smet", drop_fraction=0.5), torch.Generator().manual_seed(0)
    for live, room in ((16, True), (60, False)):  # of 64; 8 and 30 are dropped
        mask = masks.top_k(torch.rand(64, generator=draw), live).view(8, 8)
        weight = torch.rand((8, 8), generator=draw).add(0.1) * mask
        found = made.update_mask("w", weight, mask, None, 4, live)
        stays = masks.top_k(weight.flatten(), live // 2).view(8, 8)
        assert int(found.sum()) == live and (found & stays).sum() == live // 2
        back = int((found & mask & ~stays).sum())
        assert back == (0 if room else live // 2 - 4)


@pytest.mark.parametrize("name", ["chts", "chtss"])
def test_a_cold_choice_is_that_of_the_largest(name):
    """As the temperature's exponent rises, the draw becomes the deterministic rule."""
    made, draw = algorithm(name, drop_fraction=0.5, temperature=1e4), torch.Generator().manual_seed(0)
    mask = masks.top_k(torch.rand(64, generator=draw), 32).view(8, 8)
    weight = torch.rand((8, 8), generator=draw).add(0.1) * mask
    found = made.update_mask("w", weight, mask, None, 4, 32)
    stays = masks.top_k(weight.flatten(), 16).view(8, 8)
    assert torch.equal(found & stays, stays)
    warm = algorithm(name, drop_fraction=0.5).update_mask("w", weight, mask, None, 4, 32)
    assert not torch.equal(warm & stays, stays)


def test_sigmoid_runs_from_end_to_end_and_is_odd_about_its_middle():
    (s,) = (g.sparsity for g in [SparsityGroup.model_validate(
        {"algorithm": "chtss", "sparsity": {"type": "sigmoid", "init": 0.5, "final": 0.9, "begin": 10, "end": 30}})]
    )  # fmt: skip
    found = [value(s, step) for step in range(41)]
    assert found[:11] == [0.5] * 11 and found[30:] == [0.9] * 11 and found[20] == pytest.approx(0.7)
    assert all(a < b for a, b in itertools.pairwise(found[10:31]))
    assert all(found[20 + i] + found[20 - i] == pytest.approx(1.4) for i in range(11))
    logistic = [1 / (1 + np.exp(-6 * (t - 20) / 10)) for t in (10, 15, 30)]
    share = (logistic[1] - logistic[0]) / (logistic[2] - logistic[0])
    assert found[15] == pytest.approx(0.5 + 0.4 * share)


def test_the_schema_knows_which_algorithms_want_dense_gradients():
    """Plans and budgets count them without torch."""
    assert set(ALGORITHMS) == {"static", "gmp", "sr_ste", *REGROWING}
    for name, made in ALGORITHMS.items():
        level = {"nm": [2, 4]} if name == "sr_ste" else {"sparsity": RISING if name in GRADUAL else 0.5}
        group = SparsityGroup.model_validate({"algorithm": name, **level})
        assert group.needs_dense_gradient == made.needs_gradient
        assert (name in REGROWING) == hasattr(made, "grow_score")


@FEW
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_bits_are_numpys(places):
    bits = pack_bits(torch.tensor(places))
    assert bits.numpy().tolist() == np.packbits(places, bitorder="little").tolist()
    assert count_bits(bits) == sum(places)


@pytest.mark.parametrize("more", [{}, {"block": [2, 2], "storage": "packed"}], ids=["single", "packed"])
@pytest.mark.parametrize("name", ["set", "rigl"])
def test_ever_active_is_the_union_of_all_masks(name, more):
    """Over a run, and over one that goes on from a checkpoint on the way, its file included; older ones have none."""
    section = {"algorithm": name, "sparsity": 0.75, "update": {"freq": 3}, **more}
    run, other, older = (make_run(sparsity=section) for _ in range(3))
    ever = [p.mask.clone() for p in run.sparsity.parameters]
    share = run.sparsity.explored.share
    assert share() == pytest.approx(0.25)
    for step in range(1, 11):
        train_step(run, batch(step), 1)
        ever = [a | p.mask for a, p in zip(ever, run.sparsity.parameters, strict=True)]
        assert share() == sum(int(x.sum()) for x in ever) / sum(x.numel() for x in ever)
        if step == 5:
            files, saved = snapshot(run, "data")
            files = {stem: {n: x.clone() for n, x in tensors.items()} for stem, tensors in files.items()}
            assert all(x.dtype == torch.uint8 for x in files["explored"].values())
    restore(other, "here", files, saved, "data")
    restore(older, "here", {k: v for k, v in files.items() if k != "explored"}, saved, "data")
    assert 0.25 <= older.sparsity.explored.share() < other.sparsity.explored.share()
    for step in range(6, 11):
        train_step(other, batch(step), 1)
    assert other.sparsity.explored.share() == share() > 0.26
    assert make_run(sparsity=0.75).sparsity.explored.share() is None  # no masks that move, no file


def test_sr_ste_is_its_rule():
    """arXiv 2102.04010, eq. 9, in float64: w - AdamW(g(masked w) + lambda (off) w), and masks by |w|, at every step."""
    decay, lr, betas, eps = 0.05, 1e-2, (0.9, 0.95), 1e-8
    run = make_run(sparsity={"algorithm": "sr_ste", "nm": [2, 4], "lambda_w": decay})
    weights, seen, wake = run.sparsity.parameters, {}, run.sparsity.wake
    whole = lambda p: (p.weight.detach() + p.dormant).double().numpy()
    first = make_run(sparsity=[])  # the same draws, dense
    for p in weights:
        assert np.array_equal(whole(p), dict(first.model.named_parameters())[p.name].detach().numpy())

    def look():
        seen.update({p.name: (p.weight.grad.double().numpy().copy(), whole(p), ~p.mask.numpy()) for p in weights})
        wake()

    run.sparsity.wake = look
    moments, swaps = {p.name: np.zeros((2, *p.shape)) for p in weights}, 0
    for step in range(1, 9):
        b = batch(step)
        run.model(b, b["attention_mask"].sum()).backward()  # the gradient of the masked weights, apart from the step
        dense = {p.name: p.weight.grad.double().numpy().copy() for p in weights}
        run.optimizer.zero_grad()
        swaps += train_step(run, b, 1).churn
        for p in weights:
            grad, before, off = seen[p.name]
            np.testing.assert_allclose(grad, dense[p.name], rtol=1e-3, atol=1e-5 * abs(grad).max())
            assert grad[off].any()
            grad = grad + decay * off * before
            m, v = moments[p.name] = [
                beta * x + (1 - beta) * g for beta, x, g in zip(betas, moments[p.name], (grad, grad**2), strict=True)
            ]
            update = m / (1 - betas[0] ** step) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
            np.testing.assert_allclose(whole(p), before * (1 - lr * 0.1) - lr * update, rtol=1e-4, atol=1e-4 * lr)
            size = abs(whole(p)).reshape(-1, 4)
            largest = np.argsort(-size, axis=1, kind="stable")[:, :2]  # ties to the lower place
            assert np.array_equal(np.argwhere(p.mask.numpy().reshape(-1, 4))[:, 1].reshape(-1, 2), np.sort(largest))
            assert not p.weight.detach()[~p.mask].any() and not p.dormant[p.mask].any()
    assert swaps > 0


def test_sr_ste_passes_over_a_step_that_is_not_finite():
    """Nothing wakes: weights, what is kept apart and moments are those of before it."""
    run = make_run(sparsity={"algorithm": "sr_ste", "nm": [1, 4]})
    train_step(run, batch(1), 1)
    before = {k: v.clone() for stem in snapshot(run, "data")[0].values() for k, v in stem.items()}
    forward = run.model.forward
    run.model.forward = lambda *a: forward(*a) * float("nan")
    assert train_step(run, batch(2), 1).skipped
    after = {k: v for stem in snapshot(run, "data")[0].values() for k, v in stem.items()}
    assert all(torch.equal(x, after[k]) for k, x in before.items()) and before.keys() == after.keys()
    assert any(k.endswith("/dormant") and x.any() for k, x in before.items())
