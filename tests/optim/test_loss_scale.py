"""The loss scale of float16: when it halves, doubles, and when it can do no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.sections.device import Precision
from modelzoo.optim.loss_scale import LossScale


def make(dtype="float16", asked="float16", **fields):
    return LossScale.make(Precision(fp16_type=asked, **fields), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_and_bfloat16_need_none(dtype):
    scale = make(dtype, loss_scaling_factor="dynamic", initial_loss_scale=128.0)
    scale.update(False)
    assert (scale.scale, scale.can_fall) == (1.0, False)


def test_the_cs2s_format_has_the_scale_that_was_asked_for():
    assert make("cbfloat16", "cbfloat16", loss_scaling_factor=512.0).scale == 512.0
    assert make("cbfloat16", "cbfloat16", loss_scaling_factor="dynamic").dynamic


def test_a_stand_in_begins_where_the_config_says():
    scale = make("float16", "bfloat16", loss_scaling_factor=1.0, initial_loss_scale=128.0)
    assert (scale.scale, scale.dynamic) == (128.0, True)


@pytest.mark.parametrize("fields,expected", [
    ({}, 1.0), ({"loss_scaling_factor": 512.0}, 512.0), ({"loss_scaling_factor": None}, 1.0),
    ({"loss_scaling_factor": 512.0, "initial_loss_scale": 64.0}, 64.0),
])  # fmt: skip
def test_a_fixed_scale_stays(fields, expected):
    scale = make(**fields)
    for finite in (True, False, True):
        scale.update(finite)
    assert (scale.scale, scale.can_fall) == (expected, False)


def test_dynamic_defaults_are_those_of_the_paper_and_the_zoo():
    scale = make(loss_scaling_factor="dynamic")
    assert (scale.scale, scale.patience, scale.low, scale.high) == (2.0**16, 2000, 2.0**-14, 2.0**24)


@given(st.lists(st.booleans(), max_size=80), st.integers(1, 5))
def test_dynamic_follows_a_replay(history, patience):
    """Halved at each overflow, doubled after `patience` good steps in a row, within its bounds."""
    bounds = {"min_loss_scale": 2.0, "max_loss_scale": 64.0}
    scale = make(loss_scaling_factor="dynamic", initial_loss_scale=16.0, steps_per_increase=patience, **bounds)
    power, streak = 4, 0
    for finite in history:
        scale.update(finite)
        streak = streak + 1 if finite else 0
        if not finite:
            power = max(power - 1, 1)
        elif streak == patience:
            power, streak = min(power + 1, 6), 0
        assert scale.scale == 2.0**power
        assert scale.can_fall == (power > 1)
