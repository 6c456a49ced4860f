"""FLOPs foretold for a run equal those it counts as it goes; a budget buys the number of steps that comes nearest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.trainer import Config
from modelzoo.study import budget
from tests.support import TINY, batch, config, make_run, train_step

METHODS = {
    "dense": [],
    "static": {"sparsity": 0.75},
    "gmp": {
        "algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.8, "end": 9}, "update": {"freq": 2, "stop": 10},
    },
    "set": {"algorithm": "set", "sparsity": [0.7, 0.8], "update": {"freq": 3, "start": 2}},
    "rigl": {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 4, "stop": 9}},
    "rigl at listed steps": {"algorithm": "rigl", "sparsity": 0.5, "update": {"steps": [1, 2, 11]}},
    "rigl at every step": {"algorithm": "rigl", "sparsity": 0.5},
    "erk": {"sparsity": 0.6, "distribution": "erk"},
    "two groups": [
        {"sparsity": 0.5, "param_filter": "*proj_q*weight"},
        {"algorithm": "rigl", "sparsity": 0.9, "param_filter": "*ffn*weight", "update": {"freq": 5}},
    ],
    "sparse embeddings save nothing": {"sparsity": 0.5, "param_filter": ["*word_embeddings.weight", "*ffn*weight"]},
}  # fmt: skip


@pytest.mark.parametrize("sparsity", METHODS.values(), ids=METHODS)
def test_what_is_foretold_is_what_is_counted(sparsity):
    run, whole = make_run(sparsity=sparsity), config(sparsity=sparsity)
    for step in range(12):
        train_step(run, batch(step), 1)
        assert budget.spent(whole, step + 1) == (run.ledger.sparse, run.ledger.dense), step + 1


@given(st.floats(1e7, 1e10), st.sampled_from(["static", "rigl", "gmp"]))
def test_no_other_number_of_steps_comes_nearer(flops, method):
    def make(steps: int) -> Config:
        stretched = {
            "static": {"sparsity": 0.75},
            "rigl": {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": max(1, steps // 20)}},
            "gmp": {
                "algorithm": "gmp",
                "sparsity": {"type": "cubic", "final": 0.8, "end": max(1, steps // 2)},
                "update": {"freq": max(1, steps // 20)},
            },
        }
        return config(sparsity=stretched[method], model=TINY)

    steps = budget.steps_for(flops, make)
    miss = lambda s: abs(budget.spent(make(s), s)[0] - flops)
    assert all(miss(steps) <= miss(s) for s in (steps - 1, steps + 1) if s > 0)
