"""Patterns: blocks live and die whole, just as single weights would on the matrix of block sums; counts are exact."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.kernels.blocks import tiling
from modelzoo.sparsity.algorithms import ALGORITHMS
from modelzoo.sparsity.group import Group
from modelzoo.sparsity.parameter import SparseParameter
from modelzoo.sparsity.select import block_of, check_sides, group_counts
from tests.support import batch, make_run, train_step

SIDES = st.integers(1, 5)
PERMILLE = st.integers(0, 999)


def block_sums(x: torch.Tensor, block) -> np.ndarray:
    """Sums of magnitudes by NumPy, one block at a time."""
    (r, c), a = block, np.abs(x.numpy().astype(np.float64))
    return np.array([[a[i : i + r, j : j + c].sum() for j in range(0, a.shape[1], c)] for i in range(0, len(a), r)])


def ranked(scores: np.ndarray, k: int, among: np.ndarray) -> set[int]:
    """Flat indices of the k largest where `among` holds, ties to the lower index."""
    flat, allowed = scores.flatten(), np.flatnonzero(among.flatten())
    return set(sorted(allowed.tolist(), key=lambda i: (-flat[i], i))[:k])


def group(shape, block, kind="static", **fields) -> tuple[Group, SparseParameter]:
    config = SparsityGroup.model_validate(
        {"algorithm": kind, "block": list(block), "update": None if kind == "static" else {"freq": 1},
         "sparsity": {"type": "linear", "init": 0.1, "slope": 0.1} if kind == "gmp" else 0.5, **fields}
    )  # fmt: skip
    p = SparseParameter("w", torch.nn.Parameter(torch.zeros(shape)), block_of(config, shape))
    return Group(ALGORITHMS[kind](config, 3), [p]), p


def integers(data, shape, high: int = 3) -> torch.Tensor:
    """Small integers: sums are exact and ties are common."""
    draw = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    return torch.from_numpy(draw.integers(-high, high + 1, shape).astype(np.float32))


def whole_blocks(mask: torch.Tensor, block) -> np.ndarray:
    """The mask of blocks; fails if a block is partly live."""
    r, c = block
    coarse = mask.numpy()[::r, ::c]
    assert np.array_equal(np.kron(coarse, np.ones(block, bool)), mask.numpy())
    return coarse


@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.data())
def test_sums_spread_and_gather(rows, columns, r, c, data):
    x = integers(data, (rows * r, columns * c))
    if (r, c) != (1, 1):
        assert np.array_equal(tiling.scores(x, (r, c)).numpy(), block_sums(x, (r, c)))
    live = integers(data, (rows, columns)) > 0
    mask = tiling.spread(live, (r, c))
    assert np.array_equal(mask.numpy(), np.kron(live.numpy(), np.ones((r, c), bool)))
    assert torch.equal(tiling.gathered(mask, (r, c)), live)


@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.data())
def test_first_masks_are_those_of_the_matrix_of_blocks(rows, columns, r, c, data):
    k = data.draw(st.integers(0, rows * columns))
    weight = integers(data, (rows * r, columns * c))
    sums = block_sums(weight, (r, c)) if (r, c) != (1, 1) else weight.numpy()
    for method in ("topk", "random", "checkerboard", "from_zeros"):
        g, p = group(weight.shape, (r, c), init_method=method)
        found = whole_blocks(g.first_mask(p, weight, k * r * c), (r, c))
        if method == "topk":
            assert set(np.flatnonzero(found)) == ranked(np.abs(sums), k, np.ones_like(sums, bool))
        elif method == "from_zeros":
            assert np.array_equal(found, sums != 0)
        else:  # what the same rule draws for a small matrix of single weights
            single, q = group((rows, columns), (1, 1), init_method=method)
            assert np.array_equal(found, single.first_mask(q, torch.ones(rows, columns), k).numpy())
        assert method == "from_zeros" or found.sum() == k


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["gmp", "set", "rigl"]), SIDES, SIDES, SIDES, SIDES, st.data())
def test_updates_are_those_of_the_matrix_of_blocks(kind, rows, columns, r, c, data):
    """Against rules written out on NumPy's block sums: drop the smallest blocks, grow the largest gradient (RigL)."""
    shape, n = (rows * r, columns * c), rows * columns
    before = data.draw(st.integers(0, n))
    k = data.draw(st.integers(0, before if kind == "gmp" else n))
    g, p = group(shape, (r, c), kind, **({} if kind == "gmp" else {"drop_fraction": 0.5}))
    first = np.zeros(n, bool)
    first[np.random.default_rng(data.draw(st.integers(0, 99))).permutation(n)[:before]] = True
    first = first.reshape(rows, columns)
    p.set_mask(torch.from_numpy(np.kron(first, np.ones((r, c), bool))))
    p.weight.data = torch.where(p.mask, integers(data, shape), 0.0)
    p.dense_grad = integers(data, shape) if kind == "rigl" else None
    found = whole_blocks(g.next_mask(p, 7, k * r * c), (r, c))
    size = block_sums(p.weight.detach(), (r, c))
    keep = k if kind == "gmp" else min(before - math.ceil(before / 2), k)
    kept = ranked(size, keep, first)
    free = np.ones(n, bool)
    free[list(kept)] = False
    if kind == "rigl":
        assert set(np.flatnonzero(found)) == kept | ranked(block_sums(p.dense_grad, (r, c)), k - keep, free)
    elif kind == "gmp":
        assert set(np.flatnonzero(found)) == kept
    else:  # SET's draws are those of a small matrix of single weights with these sums
        single, q = group((rows, columns), (1, 1), kind, drop_fraction=0.5)
        q.set_mask(torch.from_numpy(first))
        q.weight.data = torch.from_numpy(size.astype(np.float32))
        assert np.array_equal(found, single.next_mask(q, 7, k).numpy()) and kept <= set(np.flatnonzero(found))
    assert found.sum() == k


@given(SIDES, SIDES, SIDES, SIDES, PERMILLE)
def test_counts_are_whole_blocks(rows, columns, r, c, permille):
    config = SparsityGroup(sparsity=permille / 1000, block=(r, c))
    counts = group_counts(config, {"w": (rows * r, columns * c)}, permille / 1000)
    assert counts == {"w": rows * columns * (1000 - permille) // 1000 * r * c}


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5), SIDES, SIDES, PERMILLE)
def test_erk_keeps_its_exact_total_in_blocks(grids, r, c, permille):
    sizes = {f"w{i}": (rows * r, columns * c) for i, (rows, columns) in enumerate(grids)}
    config = SparsityGroup(sparsity=permille / 1000, block=(r, c), distribution="erk")
    counts = group_counts(config, sizes, permille / 1000)
    units = sum(rows * columns for rows, columns in grids)
    assert sum(counts.values()) == units * (1000 - permille) // 1000 * r * c
    for name, size in sizes.items():
        assert counts[name] % (r * c) == 0 and 0 <= counts[name] <= math.prod(size)


@settings(max_examples=50, deadline=None)
@given(SIDES, SIDES, st.integers(2, 12), PERMILLE, st.integers(0, 9))
def test_outputs_that_share_inputs(groups, outputs, inputs, permille, seed):
    """Each group of consecutive outputs reads one set of inputs, all sets of one size."""
    shape = (groups * outputs, inputs)
    config = SparsityGroup(sparsity=permille / 1000, shared_inputs=groups, seed=seed)
    k = group_counts(config, {"w": shape}, permille / 1000)["w"]
    each = groups * inputs * (1000 - permille) // 1000 // groups
    assert k == each * groups * outputs
    p = SparseParameter("w", torch.nn.Parameter(torch.zeros(shape)), block_of(config, shape))
    mask = Group(ALGORITHMS["static"](config, 0), [p]).first_mask(p, torch.randn(shape), k)
    sets = mask.view(groups, outputs, inputs)
    assert (sets == sets[:, :1]).all() and sets[:, 0].sum(1).tolist() == [each] * groups


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["topk", "random", "checkerboard"]), st.sampled_from([(2, 4), (1, 2), (1, 4), (3, 7)]), SIDES,
       SIDES, st.data())  # fmt: skip
def test_n_of_every_m(method, nm, rows, spans, data):
    n, m = nm
    config = SparsityGroup.model_validate({"nm": list(nm), "init_method": method})
    shape = (rows, spans * m)
    k = group_counts(config, {"w": shape}, config.sparsity.value)["w"]
    assert Fraction(k, math.prod(shape)) == Fraction(n, m)
    weight = integers(data, shape)
    p = SparseParameter("w", torch.nn.Parameter(torch.zeros(shape)))
    mask = Group(ALGORITHMS["static"](config, 0), [p]).first_mask(p, weight, k).view(-1, m)
    assert (mask.sum(1) == n).all()
    if method == "topk":
        for live, span in zip(mask.numpy(), weight.view(-1, m).abs().numpy(), strict=True):
            assert set(np.flatnonzero(live)) == ranked(span, n, np.ones(m, bool))


@pytest.mark.parametrize("fields,words", [
    ({"block": [32, 32]}, r"sparsity\.block: 32 does not divide a \(48, 96\); .* outputs \(16, 24, 48\)"),
    ({"block": [1, 7]}, r"sparsity\.block: 7 does not divide a \(48, 96\); use a divisor of its inputs \(4, 6, 8\)"),
    ({"shared_inputs": 5}, r"sparsity\.shared_inputs: 5 does not divide a \(48, 96\)"),
    ({"nm": [2, 5]}, r"sparsity\.nm: 5 does not divide a \(48, 96\); use a divisor of its inputs"),
])  # fmt: skip
def test_sides_that_do_not_divide_are_refused_with_what_would(fields, words):
    config = SparsityGroup.model_validate({"sparsity": 0.5 if "nm" not in fields else 0.6, **fields})
    with pytest.raises(UserError, match=words):
        check_sides(config, {"a": (48, 96)})
    with pytest.raises(UserError, match=r"does not divide .*; use a divisor"):
        make_run(sparsity={"sparsity": 0.5 if "nm" not in fields else 0.6, **fields, "param_filter": "*word_emb*"})


PATTERNS = {"blocks": {"block": [4, 8]}, "vectors": {"block": [8, 1]}, "inputs": {"shared_inputs": 2}}
UPDATE = {"freq": 3, "stop": 13}
RULES = {
    "static": {"sparsity": 0.75},
    "gmp": {"algorithm": "gmp", "sparsity": {"type": "cubic", "init": 0.1, "final": 0.75, "end": 12}, "update": UPDATE},
    "set": {"algorithm": "set", "sparsity": 0.75, "update": UPDATE},
    "rigl": {"algorithm": "rigl", "sparsity": 0.75, "update": UPDATE},
    "rigl, erk": {"algorithm": "rigl", "sparsity": 0.75, "update": UPDATE, "distribution": "erk"},
}


@pytest.mark.parametrize("storage", ["masked", "packed"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("rule", RULES)
def test_training_keeps_blocks_whole_and_counted(rule, pattern, storage):
    if rule.endswith("erk") and pattern == "inputs":
        pytest.skip("shared inputs are uniform (refused by the config)")
    run = make_run(sparsity={**RULES[rule], **PATTERNS[pattern], "storage": storage})
    for step in range(1, 16):
        before = [p.mask.clone() for p in run.sparsity.parameters]
        churn = train_step(run, batch(step, uneven=True), 2).churn
        assert churn == sum(int((a & ~p.mask).sum()) for a, p in zip(before, run.sparsity.parameters, strict=True))
        counts = run.sparsity.groups[0].counts(run.optimizer_step)
        for p, old in zip(run.sparsity.parameters, before, strict=True):
            whole_blocks(p.mask, p.block)
            state = run.optimizer.state[p.weight]
            assert p.live == int(p.mask.sum()) == counts[p.name] and p.live % p.area == 0
            weight = p.whole(p.weight.detach())
            assert not weight[~p.mask].any()
            for key in ("exp_avg", "exp_avg_sq"):
                assert not p.whole(state[key])[~p.mask].any()
                assert not p.whole(state[key])[p.mask & ~old].any()
            if "born" in state:
                assert (p.whole(state["born"])[p.mask & ~old] == step).all() and not weight[p.mask & ~old].any()
    assert rule == "static" or run.sparsity.changes
