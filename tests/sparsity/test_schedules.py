"""Sparsity schedules against their published forms, and update steps against counting them one by one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.config.sections import sparsity_schedules as c
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.sparsity import schedules as s

STEPS = np.arange(0, 101)


def values(schedule, update=None) -> np.ndarray:
    return np.array([s.value(schedule, int(step), update) for step in STEPS])


FORMS = [
    (c.Constant(value=0.75), np.full(101, 0.75)),
    (c.Linear(init=0.1, slope=0.005), 0.1 + 0.005 * STEPS),
    (c.Linear(init=0.1, slope=0.01, final=0.6), np.minimum(0.1 + 0.01 * STEPS, 0.6)),
    (c.Linear(init=0.9, slope=-0.01, final=0.3), np.maximum(0.9 - 0.01 * STEPS, 0.3)),
    (c.Exp(init=0.1, gamma=-0.05), 1 - (1 - 0.1) * np.exp(-0.05 * STEPS)),
    (c.Exp(init=0.9, gamma=-0.05, final=0.2), 0.2 + 0.7 * np.exp(-0.05 * STEPS)),
    (c.Power(init=0.3, beta=0.95), 0.3 * 0.95**STEPS),
    (c.Cosine(init=0.3, half_period=40), 0.15 + 0.15 * np.cos(np.pi * STEPS / 40)),
    (c.Cosine(init=0.3, half_period=40, minimum=0.1), 0.2 + 0.1 * np.cos(np.pi * STEPS / 40)),
]


@pytest.mark.parametrize("schedule,expected", FORMS, ids=lambda x: getattr(x, "type", None))
def test_forms(schedule, expected):
    np.testing.assert_allclose(values(schedule), expected, rtol=1e-12, atol=1e-15)


def test_linear_reaches_final_exactly():
    assert s.value(c.Linear(init=0.0, slope=0.1, final=0.75), 8) == 0.75


@given(st.integers(0, 999), st.integers(0, 99), st.integers(0, 100))
def test_linear_is_exact_in_decimals(init, slope, step):
    schedule = c.Linear(init=init / 1000, slope=slope / 1000)
    assert s.value(schedule, step) == (init + step * slope) / 1000


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 20))
def test_cubic_is_exact_in_decimals(init, final, step):
    # at twentieths of the way the cube has 20 ** 3 = 8,000 parts, and tenths of those are whole
    schedule = c.Cubic(init=init / 10, final=final / 10, end=20)
    assert s.value(schedule, step) == (final * 8000 + (init - final) * (20 - step) ** 3) / 80_000


def test_cosine_corners():
    schedule = c.Cosine(init=0.3, half_period=225)
    assert s.value(schedule, 0) == 0.3 and s.value(schedule, 225) == 0.0


@given(st.floats(0, 0.9), st.floats(0, 0.9), st.integers(1, 50))
def test_ends_are_the_numbers_that_were_written(init, final, length):
    assert s.value(c.Exp(init=init, gamma=-0.1, final=final), 0) == init
    cosine = c.Cosine(init=init, half_period=length, minimum=final)
    assert (s.value(cosine, 0), s.value(cosine, length)) == (init, final)
    cubic = c.Cubic(init=init, final=final, begin=2, end=2 + length)
    assert (s.value(cubic, 2), s.value(cubic, 2 + length)) == (init, final)


@given(st.integers(0, 20), st.integers(1, 50), st.integers(1, 9), st.floats(0, 0.9), st.floats(0, 0.9))
def test_cubic_is_zhu_and_guptas(begin, pruning_steps, freq, initial, final):
    # s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt)) ** 3 for t in t_0, t_0 + dt, ..., t_0 + n dt
    schedule = c.Cubic(init=initial, final=final, begin=begin, end=begin + pruning_steps * freq)
    for i in range(pruning_steps + 1):
        expected = final + (initial - final) * (1 - i / pruning_steps) ** 3
        assert s.value(schedule, begin + i * freq) == pytest.approx(expected, abs=1e-12)
    assert s.value(schedule, 0) == initial
    assert s.value(schedule, schedule.end) == s.value(schedule, schedule.end + 1000) == final


UPDATES = st.one_of(
    st.none(),
    st.builds(lambda f, a, n: c.Update(freq=f, start=a, stop=None if n is None else a + n),
              st.none() | st.integers(1, 7), st.integers(0, 15), st.none() | st.integers(1, 25)),
    st.builds(lambda x: c.Update(steps=tuple(x)), st.lists(st.integers(0, 40), min_size=1, max_size=6)),
)  # fmt: skip

share, length = st.integers(0, 19).map(lambda n: n / 20), st.integers(1, 40)
EXACT = st.one_of(  # to the last digit
    st.builds(c.Constant, value=share),
    st.builds(c.Linear, init=share, slope=st.integers(-9, 9).map(lambda n: n / 100), final=st.none() | share),
    st.builds(lambda i, f, a, n: c.Cubic(init=i, final=f, begin=a, end=a + n), share, share, length, length),
    st.builds(lambda v: c.Cycling(values=tuple(v)), st.lists(share, min_size=1, max_size=5)),
)
LEVELS = EXACT | st.one_of(
    st.builds(lambda i, f, a, n: c.Sigmoid(init=i, final=f, begin=a, end=a + n), share, share, length, length),
    st.builds(c.Exp, init=share, gamma=st.just(-0.1), final=share),
    st.builds(c.Power, init=share, beta=st.sampled_from([0.5, 0.9, 1.0])),
    st.builds(c.Cosine, init=share, half_period=st.sampled_from([0.7, 3.0, 11.5, 100.0]), minimum=share),
)
LONG = [
    c.Constant(value=0.75), c.Linear(init=0.0, slope=1e-5, final=0.9), c.Exp(init=0.0, gamma=-1e-4, final=0.9),
    c.Power(init=0.9, beta=0.9999), c.Cosine(init=0.9, half_period=50_000), c.Cycling(values=(0.5, 0.75, 0.6)),
    c.Cubic(final=0.9, end=150_000), c.Sigmoid(final=0.9, end=150_000),
]  # fmt: skip


def brute(update: c.Update | None, step: int) -> bool:
    """The definition: every freq steps from start on, stop excluded; or the listed steps."""
    if update is None:
        return True
    if update.steps is not None:
        return any(x == step for x in update.steps)
    return step in range(update.start, 10**6 if update.stop is None else update.stop, update.freq or 1)


@given(UPDATES, st.integers(0, 45))
def test_update_steps_are_those_that_counting_finds(update, step):
    assert s.is_update(update, step) == brute(update, step)
    assert s.updates_before(update, step) == sum(brute(update, x) for x in range(step))
    assert list(s.update_steps(update, step)) == [x for x in range(1, step + 1) if brute(update, x)]
    assert s.last_update(update, step) == max((x for x in range(step + 1) if brute(update, x)), default=0)


@given(UPDATES, st.lists(st.floats(0, 0.9), min_size=1, max_size=4))
def test_cycling_takes_the_next_value_at_each_update(update, cycle):
    # cerebras.pytorch counts on: an index that each update step advances, after its value was used
    schedule, index = c.Cycling(values=tuple(cycle)), 0
    for step in range(45):
        if brute(update, step):
            assert s.value(schedule, step, update) == cycle[index]
            index = (index + 1) % len(cycle)


def test_cycling_has_no_memory():
    update, schedule = c.Update(freq=3, start=2), c.Cycling(values=(0.1, 0.2, 0.3))
    forwards = [s.value(schedule, x, update) for x in range(40)]
    assert [s.value(schedule, x, update) for x in reversed(range(40))][::-1] == forwards


def group(sparsity, algorithm="gmp", **fields) -> SparsityGroup:
    return SparsityGroup(algorithm=algorithm, sparsity=sparsity, **fields)


LINEAR = {"type": "linear", "init": 0.0, "slope": 0.01}


def test_masks_hold_the_value_of_the_last_update():
    gmp = group(LINEAR, update={"freq": 10, "start": 5, "stop": 40})
    held = [s.held(gmp, x) for x in range(60)]
    assert held[:5] == [0.0] * 5  # the first masks
    assert held[5:15] == [0.05] * 10 and held[35:] == [0.35] * 25
    assert s.held(group(0.75, "static"), 10**6) == 0.75
    cycling = group([0.5, 0.6], "set", update={"freq": 10})
    assert [s.held(cycling, x) for x in (0, 9, 10, 19, 20)] == [0.5, 0.5, 0.6, 0.6, 0.5]


def refused(config: SparsityGroup, steps: int) -> str:
    with pytest.raises(UserError) as e:
        s.check_schedule(config, steps)
    return str(e.value)


def test_a_linear_schedule_that_reaches_one_is_refused_at_the_step_where_it_does():
    message = refused(group(LINEAR, update={"freq": 10}), 200)
    assert "gmp" in message and "reaches 1 at step 100 of 200" in message and "`final`" in message
    assert s.check_schedule(group(LINEAR, update={"freq": 10}), 99) == (0.9, 90)
    assert s.check_schedule(group(LINEAR, update={"freq": 10, "stop": 100}), 200) == (0.9, 90)
    assert s.check_schedule(group({**LINEAR, "final": 0.75}, update={"freq": 10}), 200) == (0.75, 80)


@pytest.mark.parametrize(
    "schedule,step",
    [
        ({"type": "linear", "init": 0.5, "slope": -0.1}, 6),  # falls below 0
        ({"type": "exp", "init": 0.5, "gamma": 1.0}, 1),  # 1 - 0.5 e^t
        ({"type": "power", "init": 0.5, "beta": 1.5}, 2),  # 0.5 * 1.5^t
        ({"type": "cosine", "init": 0.0, "half_period": 5, "minimum": 1.0}, 5),
        ([0.5, 0.9, 1.0], 2),
        ({"type": "cubic", "final": 1.0, "end": 9}, 9),
    ],
    ids=lambda x: x["type"] if isinstance(x, dict) else None,
)
def test_every_schedule_is_bounded(schedule, step):
    assert f"at step {step} of 5000" in refused(group(schedule), 5000)
    assert s.check_schedule(group(schedule), step - 1)[0] < 1


@pytest.mark.parametrize(
    "schedule", [{"type": "exp", "init": 0.5, "gamma": 9}, {"type": "power", "init": 0.5, "beta": 9}]
)
def test_what_overflows_is_refused_too(schedule):
    assert "inf at step 400" in refused(group(schedule, update={"steps": [400]}), 400)


def test_max_sparsity_is_a_bound_that_can_be_moved():
    high = {"type": "linear", "init": 0.0, "slope": 0.01, "final": 0.9}
    assert "passes max_sparsity 0.8" in refused(group(high, max_sparsity=0.8), 200)
    assert s.check_schedule(group(high, max_sparsity=0.9), 200)[0] == 0.9
    assert "passes max_sparsity 0.999" in refused(group(0.9995, "static"), 10)


def test_drop_fractions_are_shares():
    assert "drop_fraction is 1.1 at step 11" in refused(
        group(0.5, "rigl", drop_fraction={"type": "linear", "init": 0.0, "slope": 0.1}), 20
    )
    assert s.check_schedule(group(0.5, "set", drop_fraction=1.0), 20) == (0.5, 0)


@given(
    UPDATES,
    st.floats(0, 0.9),
    st.floats(-0.1, 0.1).filter(lambda x: x == 0 or abs(x) > 1e-9),
    st.integers(1, 40),
)
def test_a_schedule_that_passes_stays_in_bounds_all_the_way(update, init, slope, steps):
    config = group({"type": "linear", "init": init, "slope": slope}, update=update)
    if not any(brute(update, x) for x in range(1, 100)):
        assert "names no step" in refused(config, steps)
        return
    levels = [s.held(config, x) for x in range(steps + 1)]
    if all(0 <= x <= config.max_sparsity for x in levels):
        highest, at = s.check_schedule(config, steps)
        assert highest == max(levels) == levels[at]
        assert all(x < highest for x in levels[:at])
    else:
        assert "sparsity reaches" in refused(config, steps)


@given(EXACT, st.none() | EXACT, UPDATES, st.integers(0, 60))
def test_a_check_finds_what_reading_every_update_finds(sparsity, dropped, update, steps):
    config = group(sparsity, "set", update=update, drop_fraction=dropped, max_sparsity=0.9)
    if not any(brute(update, x) for x in range(1, 100)):
        return
    seen = [0, *(x for x in range(1, steps + 1) if brute(update, x))]
    levels = [s.value(sparsity, x, update) for x in seen]
    drops = [0.0 if dropped is None else s.value(dropped, x, update) for x in seen]
    wrong = [(x, 0 <= a <= 0.9) for x, a, d in zip(seen, levels, drops) if not (0 <= a <= 0.9 and 0 <= d <= 1)]
    assert s.lowest(config, steps) == min(levels)
    if wrong:
        step, is_drop = wrong[0]
        message = refused(config, steps)
        assert f" at step {step}" in message and ("drop_fraction is" in message) == is_drop
    else:
        assert s.check_schedule(config, steps) == (max(levels), seen[levels.index(max(levels))])


@given(LEVELS, UPDATES, st.integers(0, 60))
def test_the_highest_and_the_lowest_are_those_of_reading_every_update(sparsity, update, steps):
    """Of schedules whose last digit hangs on the processor, too, up to that digit."""
    config = group(sparsity, "set", update=update, max_sparsity=0.9999)
    levels = [s.held(config, x) for x in range(steps + 1)]
    assert s.lowest(config, steps) == pytest.approx(min(levels), abs=1e-12)
    if any(brute(update, x) for x in range(1, 100)) and min(levels) >= 0 and max(levels) <= 0.9999:
        highest, step = s.check_schedule(config, steps)
        assert highest == pytest.approx(max(levels), abs=1e-12) == s.value(sparsity, step, update)


@pytest.mark.parametrize("updates,refuses", [({"steps": [2, 4]}, False), ({"steps": [2, 3, 4]}, True)])
def test_a_power_of_a_negative_base_is_read_update_by_update(updates, refuses):
    config = group({"type": "power", "init": 0.5, "beta": -0.9}, update=updates)
    if refuses:
        assert "reaches -0.3645 at step 3 " in refused(config, 9)
    else:
        assert s.check_schedule(config, 9) == (0.5, 0)


def test_what_is_no_schedule_is_refused():
    with pytest.raises(TypeError):
        s.value(0.5, 3)
    assert math.isclose(s.value(c.Constant(value=0.5), 3), 0.5)
