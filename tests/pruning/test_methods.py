"""Wanda and SparseGPT against plain NumPy, written from the papers' formulas with explicit inverses."""

import numpy as np
import pytest
import torch

from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.kernels.blocks.tiling import has_blocks
from modelzoo.pruning.choose import Plan, keep_largest, keep_wanda, make_algorithm
from modelzoo.pruning.sparsegpt import factor_inverse, measure_error, prune_in_best_order, prune_matrix
from modelzoo.sparsity.select import group_counts

OUT, IN = 12, 24
PATTERNS = [
    {"sparsity": 0.5},
    {"sparsity": 0.7},  # 24 * 0.3 is no whole number
    {"nm": [2, 4]},
    {"sparsity": 0.5, "block": [2, 4]},
    {"sparsity": 0.75, "block": [3, 2]},
    {"sparsity": 0.5, "shared_inputs": 4},
]


def make_plan(out: int = OUT, into: int = IN, **keys) -> Plan:
    group = SparsityGroup.model_validate(keys)
    algorithm = make_algorithm(group, 0)
    return Plan.of("w", (out, into), group_counts(group, {"w": (out, into)}, algorithm.target(0))["w"], algorithm)


def make_case(seed: int, out: int = OUT, into: int = IN) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and inputs [tokens, in] whose directions differ much in size and hang together."""
    draw = np.random.default_rng(seed)
    mix = draw.normal(size=(into, into)) * np.exp(draw.normal(size=into))
    return draw.normal(size=(out, into)), draw.normal(size=(200, into)) @ mix


def tile_sums(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return x.reshape(len(x) // rows, rows, -1, columns).sum((1, 3))


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The k largest of all, ties to the lower index."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


def widen(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.kron(mask, np.ones((rows, columns), bool)).astype(bool)


def wanda(w: np.ndarray, x: np.ndarray, plan: Plan) -> np.ndarray:
    """Eq. 1: |W_ij| * ||X_j||_2, compared within each output; with blocks within each row of blocks."""
    rows, columns = plan.block
    scores = np.abs(w) * np.linalg.norm(x, axis=0)
    if plan.group.nm:
        n, m = plan.group.nm
        return np.concatenate([[best(part, n) for part in row.reshape(-1, m)] for row in scores]).reshape(w.shape)
    sums = tile_sums(scores, rows, columns)
    counts = np.diff([plan.live_blocks * i // len(sums) for i in range(len(sums) + 1)])
    return widen(np.array([best(row, k) for row, k in zip(sums, counts, strict=True)]), rows, columns)


def sparsegpt(w: np.ndarray, h: np.ndarray, plan: Plan, width: int) -> np.ndarray:
    """Optimal brain surgeon, row by row and column by column, each time with the inverse of what is left of H."""
    w, (out, into) = w.copy(), w.shape
    rows, columns = plan.block
    groups, nm = plan.group.shared_inputs or 1, plan.group.nm
    inverse = [np.linalg.inv(h[c:, c:]) for c in range(into)]
    saliency = lambda a, b: np.stack([w[:, c] ** 2 / inverse[c][0, 0] for c in range(a, b)], 1)
    mask, before = np.ones_like(w, bool), 0
    for first in range(0, into, width):
        last = min(first + width, into)
        if not nm:
            until = plan.live_blocks // groups * (last // columns) // (into // columns)
            parts = np.split(tile_sums(saliency(first, last), rows, columns), groups)
            chosen = np.concatenate([best(part, until - before) for part in parts])
            mask[:, first:last], before = widen(chosen, rows, columns), until
        for c in range(first, last):
            if nm and c % nm[1] == 0:
                mask[:, c : c + nm[1]] = [best(row, nm[0]) for row in saliency(c, c + nm[1])]
            for r in range(out):
                if not mask[r, c]:
                    w[r, c:] -= w[r, c] / inverse[c][0, 0] * inverse[c][0]
    return np.where(mask, w, 0.0)


def damp(h: np.ndarray) -> np.ndarray:
    return h + 0.01 * np.trace(h) / len(h) * np.eye(len(h))


@pytest.mark.parametrize("keys", PATTERNS, ids=str)
def test_wanda_is_the_papers(keys):
    plan, (w, x) = make_plan(**keys), make_case(1)
    mask = keep_wanda(plan, torch.tensor(w), torch.tensor(x).square().sum(0).sqrt()).mask.numpy()
    assert mask.sum() == plan.live
    if plan.group.shared_inputs:  # compared within each group of outputs: a group reads the same inputs
        rows, _ = plan.block
        assert (tile_sums(mask, rows, 1) % rows == 0).all() and len(set(tile_sums(mask, rows, IN).ravel())) == 1
    assert np.array_equal(mask, wanda(w, x, plan))


@pytest.mark.parametrize("keys", PATTERNS, ids=str)
@pytest.mark.parametrize("width", [8, 128])
def test_sparsegpt_is_optimal_brain_surgery_column_by_column(keys, width):
    plan, (w, x) = make_plan(**keys), make_case(2)
    h = x.T @ x
    kept, mask = prune_matrix(plan, torch.tensor(w), factor_inverse(torch.tensor(h), 0.01), width)
    assert int(mask.sum()) == plan.live and not kept[~mask].any()
    np.testing.assert_allclose(kept, sparsegpt(w, damp(h), plan, width), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("keys", PATTERNS, ids=str)
def test_errors_fall_from_magnitude_to_wanda_to_sparsegpt(keys):
    sums = np.zeros(3)
    for seed in range(5):
        plan, (w, x) = make_plan(36, 48, **keys), make_case(seed, 36, 48)
        w, gram = torch.tensor(w), torch.tensor(x.T @ x)
        masks = keep_largest(plan, w).mask, keep_wanda(plan, w, gram.diagonal().sqrt()).mask
        kept = [torch.where(m, w, 0.0) for m in masks]
        kept.append(prune_matrix(plan, w, factor_inverse(gram, 0.01))[0])
        errors = [measure_error(w, k, gram) for k in kept]
        direct = [np.linalg.norm(x @ (w - k).numpy().T) / np.linalg.norm(x @ w.numpy().T) for k in kept]
        np.testing.assert_allclose(errors, direct, rtol=1e-9)
        sums += errors
    assert sums[2] < sums[1] < sums[0]


def test_inputs_that_are_always_0_are_left_alone():
    """They make up for nothing, and nothing makes up for them; all zeros are no division by zero."""
    plan, (w, x) = make_plan(sparsity=0.5), make_case(3)
    x[:, ::3] = 0.0
    kept, mask = prune_matrix(plan, torch.tensor(w), factor_inverse(torch.tensor(x.T @ x), 0.01))
    still = mask.numpy() & (np.arange(IN) % 3 == 0)
    assert int(mask.sum()) == plan.live and np.array_equal(kept.numpy()[still], w[still])
    kept, mask = prune_matrix(plan, torch.tensor(w), factor_inverse(torch.zeros(IN, IN).double(), 0.01))
    assert np.array_equal(kept.numpy(), np.where(best(w**2, plan.live), w, 0.0))


@pytest.mark.parametrize("seed", range(3))
def test_in_an_order_more_of_the_score_stays(seed):
    """Exact counts of blocks in permuted coordinates; no method keeps less than without an order."""
    keys = {"sparsity": 0.75, "block": [3, 4], "init_method": "topk"}
    plain, free = make_plan(**keys), make_plan(**keys, permute_inputs="start")
    w, x = (torch.tensor(a) for a in make_case(seed))
    gram, norms = x.t() @ x, x.square().sum(0).sqrt()
    factor = factor_inverse(gram, 0.01)
    pairs = [
        (keep_largest(free, w), float(w.abs()[keep_largest(plain, w).mask].sum()), w.abs()),
        (keep_wanda(free, w, norms), float((w.abs() * norms)[keep_wanda(plain, w, norms).mask].sum()), w.abs() * norms),
    ]
    for (mask, order), before, scores in pairs:
        assert int(mask.sum()) == free.live and has_blocks(mask, (3, 4), order) and not has_blocks(mask, (3, 4))
        assert float(scores[mask].sum()) > before
    left, mask, order = prune_in_best_order(free, w, gram, factor, 0.01)
    assert int(mask.sum()) == free.live and has_blocks(mask, (3, 4), order) and not left[~mask].any()
    assert measure_error(w, left, gram) <= measure_error(w, prune_matrix(plain, w, factor)[0], gram)
