"""Study files: the matrix is the cross product they ask for, and mistakes are named."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelzoo.config.errors import UserError
from modelzoo.config.study import LearningRate, Study, schedule
from modelzoo.optim.lr import learning_rate
from modelzoo.study.matrix.matrix import read_matrix
from tests.support import config

NAMES = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True)


def study(**keys) -> Study:
    return Study.model_validate({"base": "b.yaml", "budget": {"steps": 10}, "axes": {"x": {"a": {}}}, **keys})


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_without_cells_every_combination_runs_once(values):
    axes = {f"axis{i}": dict.fromkeys(names) for i, names in enumerate(values)}
    expected = [dict(zip(axes, row)) for row in itertools.product(*values)]
    assert study(axes=axes).settings() == expected


def test_blocks_are_products_and_what_they_leave_out_stands_at_its_first_value():
    axes = {"size": dict.fromkeys(("s", "l")), "method": dict.fromkeys(("dense", "set", "rigl")), "lr": {"low": {}}}
    blocks = [{"size": "all", "method": ["dense", "rigl"]}, {"method": "set"}, {"method": "dense"}]
    got = [tuple(s.values()) for s in study(axes=axes, cells=blocks).settings()]
    assert got == [
        ("s", "dense", "low"), ("s", "rigl", "low"), ("l", "dense", "low"), ("l", "rigl", "low"), ("s", "set", "low"),
    ]  # fmt: skip


@given(st.integers(2, 5000), st.floats(1e-5, 1e-1), st.floats(0, 0.99), st.floats(0, 0.99))
def test_the_rate_rises_to_its_peak_and_falls_to_its_end(steps, peak, warmup, final):
    made = schedule(LearningRate(peak=(peak,), warmup=warmup, final=final), peak, steps)
    schedulers = config(optimizer={"AdamW": {}}, schedulers=made).trainer.init.schedulers
    rise = max(1, round(warmup * steps))
    rates = [learning_rate(schedulers[0].value, s) for s in range(steps + 1)]
    assert rates[0] == 0 and rates[rise] == pytest.approx(peak)
    assert all(a <= b for a, b in itertools.pairwise(rates[: rise + 1]))
    assert all(a >= b for a, b in itertools.pairwise(rates[rise:]))
    if rise < steps:
        assert rates[steps] == pytest.approx(peak * final)


def test_a_value_may_change_the_budget_and_the_rate():
    axes = {"size": {"s": {}, "l": {"budget.steps": 20, "learning_rate.peak": 1e-2}}}
    s = study(axes=axes, learning_rate={"peak": [1e-3, 2e-3], "final": 0.5})
    (small, rates), (large, rate) = ((own.budget, own.learning_rate) for own in map(s.of, s.settings()))
    assert (small.steps, rates.peak) == (10, (1e-3, 2e-3))
    assert (large.steps, rate.peak, rate.final) == (20, (1e-2,), 0.5)


@pytest.mark.parametrize(
    "keys,said",
    [
        ({"budget": {"steps": 3, "tokens": 3}}, "exactly one"),
        ({"budget": {}}, "exactly one"),
        ({"axes": {"x": {}}}, "has no values"),
        ({"axes": {"x": {"a/b": {}}}}, "names a folder"),
        ({"axes": {"x": {"a": {"model.hidden_size": 3}}}}, "is no key"),
        ({"common": {"seed": 3}}, "is no key"),
        ({"cells": [{"y": "a"}]}, "unknown axis 'y'"),
        ({"cells": [{"x": "b"}]}, "unknown value 'b'"),
        ({"seeds": [1, 1]}, "each once"),
        ({"budgets": {}}, "Extra inputs"),
    ],
)
def test_mistakes_are_named(keys, said):
    with pytest.raises(ValidationError, match=said):
        study(**keys)


def test_a_runs_key_on_the_command_line_is_every_runs(tmp_path):
    """As it is, or below study.common, over what stands there; one that no run has is refused."""
    for place in ("", "study.common."):
        keys = [f"{place}trainer.init.loop.eval_steps=8", f"{place}trainer.init.logging.log_steps=7"]
        found = read_matrix("configs/study/mini.yaml", keys, str(tmp_path / "out")).study.common
        assert found["trainer.init.loop"] == {"eval_frequency": 0.25, "eval_steps": 8}
        assert found["trainer.init.logging"] == {"log_steps": 7} and found["trainer.init.model.num_heads"] == 2
    with pytest.raises(UserError, match=r"unknown key 'trainer\.init\.sead'; did you mean 'seed'"):
        read_matrix("configs/study/mini.yaml", ["trainer.init.sead=3"], str(tmp_path / "out"))
