"""FLOPs foretold for a run equal those it counts as it goes; a budget buys the number of steps that comes nearest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.trainer import Config
from modelzoo.planning import plan
from modelzoo.study.matrix import budget
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


RIGL = METHODS["rigl"]
RUNS = {name: {"sparsity": sparsity} for name, sparsity in METHODS.items()} | {
    "untied head": {"sparsity": 0.5, "model": {**TINY, "share_embedding_weights": False}},
    "glu": {"sparsity": RIGL, "model": {**TINY, "nonlinearity": "swiglu"}},
    "LoRA": {"lora": {"r": 4}},
    "LoRA on masked weights": {"lora": {"r": 4, "target_modules": "*ffn*"}, "sparsity": 0.75},
    "LoRA, rigl that cannot move": {"lora": {}, "sparsity": RIGL},
    "LoRA, gmp that cannot move": {"lora": {}, "sparsity": METHODS["gmp"]},
    "LoRA, untied head": {"lora": {}, "model": {**TINY, "share_embedding_weights": False}},
    "soft prompt, frozen": {"soft_prompt": {"tokens": 3}, "sparsity": 0.5},
    "soft prompt, all": {"soft_prompt": {"tokens": 3, "train": "all"}, "sparsity": RIGL},
    "soft prompt and LoRA": {"soft_prompt": {"tokens": 3}, "lora": {}},
}


@pytest.mark.parametrize("sections", RUNS.values(), ids=RUNS)
def test_what_is_foretold_is_what_is_counted(sections):
    """Budget, plan and the run's own ledger, step by step."""
    run, tokens = make_run(**sections), 4 * 12
    for step in range(12):
        train_step(run, batch(step), 1)
        whole = config(**sections, loop={"max_steps": step + 1})
        counted = (run.ledger.sparse, run.ledger.dense)
        assert budget.count_flops(whole, step + 1) == counted, step + 1
        planned = plan.make_plan(whole)
        assert planned.mean * planned.tokens == pytest.approx(counted[0], rel=1e-14)
        assert planned.dense.total * planned.tokens == counted[1]
        if step == 0 and not any(g.algorithm == "rigl" and g.update is None for g in run.init.sparsity):
            asks = any(g.algorithm == "rigl" and 1 in (g.update.steps or ()) for g in run.init.sparsity)
            assert (planned.start.total * tokens == counted[0]) is not asks


def test_a_frozen_base_costs_four_passes_in_all_counts():
    """LoRA of rank 8 on queries and values, by hand: W twice forward and backward, A and B three times."""
    whole = config(lora={})
    weights, low = 2 * (4 * 16 * 16 + 2 * 16 * 32), 2 * 2 * 8 * (16 + 16)
    by_hand = 4 * (weights + 16 * 37) + 6 * low + 12 * 2 * 12 * 16
    assert budget.count_flops(whole, 7) == (7 * 48 * by_hand,) * 2
    assert (
        plan.make_plan(whole).dense.total == plan.make_plan(whole).start.total == plan.make_plan(whole).mean == by_hand
    )


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

    steps = budget.find_steps(flops, make)
    miss = lambda s: abs(budget.count_flops(make(s), s)[0] - flops)
    assert all(miss(steps) <= miss(s) for s in (steps - 1, steps + 1) if s > 0)
