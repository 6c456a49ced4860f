"""Learning rates against torch's schedulers where the two agree, else against cerebras.pytorch's published forms."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as theirs

from modelzoo.config.sections import optim as c
from modelzoo.optim.lr import learning_rate

STEPS = 60


def ours(config: c.LR, steps: int = STEPS) -> list[float]:
    return [learning_rate(config, s) for s in range(steps)]


def torchs(lr: float, make, steps: int = STEPS) -> list[float]:
    """The rates that a torch scheduler gives the first `steps` optimizer steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return rates


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15)


PAIRS = {
    "constant": (
        c.ConstantLR(learning_rate=0.3),
        lambda o: theirs.ConstantLR(o, factor=1.0)),
    "linear": (
        c.LinearLR(initial_learning_rate=0.3, end_learning_rate=0.03, total_iters=20),
        lambda o: theirs.LinearLR(o, 1.0, 0.1, total_iters=20)),
    "polynomial": (
        c.PolynomialLR(initial_learning_rate=0.3, end_learning_rate=0.0, total_iters=20, power=2.5),
        lambda o: theirs.PolynomialLR(o, total_iters=20, power=2.5)),
    "exponential": (
        c.ExponentialLR(initial_learning_rate=0.3, total_iters=1, decay_rate=0.9),
        lambda o: theirs.ExponentialLR(o, gamma=0.9)),
    "multiplicative": (
        c.MultiplicativeLR(initial_learning_rate=0.3, coefficient=0.95),
        lambda o: theirs.MultiplicativeLR(o, lambda step: 0.95)),
    "multistep": (
        c.MultiStepLR(initial_learning_rate=0.3, gamma=0.5, milestones=(3, 7, 7, 30)),
        lambda o: theirs.MultiStepLR(o, [3, 7, 7, 30], gamma=0.5)),
    "step": (
        c.StepLR(initial_learning_rate=0.3, step_size=7, gamma=0.5),
        lambda o: theirs.StepLR(o, 7, gamma=0.5)),
    "cosine annealing": (
        c.CosineAnnealingLR(initial_learning_rate=0.3, T_max=25, eta_min=0.01),
        lambda o: theirs.CosineAnnealingLR(o, 25, eta_min=0.01)),
    "warm restarts": (
        c.CosineAnnealingWarmRestarts(initial_learning_rate=0.3, T_0=7, eta_min=0.01),
        lambda o: theirs.CosineAnnealingWarmRestarts(o, 7, eta_min=0.01)),
    "warm restarts, doubling": (
        c.CosineAnnealingWarmRestarts(initial_learning_rate=0.3, T_0=7, T_mult=2),
        lambda o: theirs.CosineAnnealingWarmRestarts(o, 7, T_mult=2)),
    "sequential": (
        c.SequentialLR(schedulers=[
            {"LinearLR": {"initial_learning_rate": 0.03, "end_learning_rate": 0.3, "total_iters": 10}},
            {"CosineAnnealingLR": {"initial_learning_rate": 0.3, "T_max": 50}}]),
        lambda o: theirs.SequentialLR(o, [
            theirs.LinearLR(o, 0.1, 1.0, total_iters=10), theirs.CosineAnnealingLR(o, 50)], [10])),
    "chained": (
        c.ChainedLR(schedulers=[
            {"ExponentialLR": {"initial_learning_rate": 0.3, "decay_rate": 0.9, "total_iters": 1}},
            {"StepLR": {"initial_learning_rate": 0.3, "step_size": 5, "gamma": 0.5}}]),
        lambda o: theirs.ChainedScheduler([theirs.ExponentialLR(o, 0.9), theirs.StepLR(o, 5, gamma=0.5)])),
    "scaled per parameter": (
        c.ScalePerParamLR(scheduler={"StepLR": {"initial_learning_rate": 0.3, "step_size": 7, "gamma": 0.5}}),
        lambda o: theirs.StepLR(o, 7, gamma=0.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_as_torch(name):
    config, make = PAIRS[name]
    close(ours(config), torchs(0.3, make))


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize("down", [None, 4])
def test_cyclic_as_torch(mode, down):
    config = c.CyclicLR(base_lr=0.1, max_lr=0.9, step_size_up=7, step_size_down=down, mode=mode, gamma=0.97)
    close(ours(config), torchs(0.1, lambda o: theirs.CyclicLR(
        o, 0.1, 0.9, step_size_up=7, step_size_down=down, mode=mode, gamma=0.97, cycle_momentum=False)))  # fmt: skip


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("start", [0.25, 0.3, 0.5])
def test_one_cycle_as_torch(three_phase, anneal, start):
    # torch gives max_lr / div_factor at the start and the same / final_div_factor at the end
    config = c.OneCycleLR(initial_learning_rate=0.02, max_lr=0.5, total_steps=STEPS, pct_start=start,
                          final_div_factor=100.0, three_phase=three_phase, anneal_strategy=anneal)  # fmt: skip
    with_torch = torchs(0.1, lambda o: theirs.OneCycleLR(
        o, 0.5, total_steps=STEPS, pct_start=start, anneal_strategy=anneal, cycle_momentum=False, div_factor=25.0,
        final_div_factor=100.0, three_phase=three_phase), STEPS - 1)  # fmt: skip
    close(ours(config, STEPS - 1), with_torch)
    assert learning_rate(config, STEPS - 1) == pytest.approx(0.0002)
    assert learning_rate(config, 10 * STEPS) == pytest.approx(0.0002)  # and it stays there


# --- forms that torch does not have


def test_staircase_exponential():
    s = c.ExponentialLR(initial_learning_rate=0.3, total_iters=7, decay_rate=0.5, staircase=True)
    close(ours(s), 0.3 * 0.5 ** (np.arange(STEPS) // 7))
    s = c.ExponentialLR(initial_learning_rate=0.3, total_iters=7, decay_rate=0.5)
    close(ours(s), 0.3 * 0.5 ** (np.arange(STEPS) / 7))


@pytest.mark.parametrize("staircase", [False, True])
@pytest.mark.parametrize("exponent", [0, 1, 2])
def test_inverse_exponential_time_decay(staircase, exponent):
    s = c.InverseExponentialTimeDecayLR(
        initial_learning_rate=0.3, step_exponent=exponent, total_iters=7, decay_rate=0.4, staircase=staircase
    )
    alpha = np.arange(STEPS, dtype=float) ** exponent / 7
    close(ours(s), 0.3 / (1 + 0.4 * (np.floor(alpha) if staircase else alpha)))


def test_inverse_square_root():
    s = c.InverseSquareRootDecayLR(initial_learning_rate=0.3, scale=2.0, warmup_steps=9)
    close(ours(s), 0.3 * 2.0 / np.sqrt(np.maximum(np.arange(STEPS), 9)))
    close(learning_rate(c.InverseSquareRootDecayLR(), 0), 1.0)


def test_cosine_decay_ends_and_stays():
    s = c.CosineDecayLR(initial_learning_rate=0.3, end_learning_rate=0.03, total_iters=20)
    close(ours(s)[:20], torchs(0.3, lambda o: theirs.CosineAnnealingLR(o, 20, eta_min=0.03))[:20])
    assert set(ours(s)[20:]) == {0.03}


@pytest.mark.parametrize("kind", [c.LinearLR, c.PolynomialLR])
def test_linear_ends_exactly_and_cycle_changes_nothing(kind):
    # cerebras.pytorch holds the end from total_iters on, so that its `cycle` has one cycle too
    args = dict(initial_learning_rate=0.0, end_learning_rate=6e-4, total_iters=20)
    assert ours(kind(**args)) == ours(kind(**args, cycle=True))
    assert learning_rate(kind(**args), 0) == 0.0
    assert {learning_rate(kind(**args), s) for s in (20, 21, 1000)} == {6e-4}


@pytest.mark.parametrize("last", [(), (0.01,)])
def test_piecewise(last):
    s = c.PiecewiseConstantLR(learning_rates=(0.3, 0.1, *last), milestones=(4, 9))
    expected = [0.3] * 4 + [0.1] * 5 + [last[0] if last else 0.1] * (STEPS - 9)
    assert ours(s) == expected


def test_chained_rates_count_from_the_initial_rate():
    # cerebras.pytorch divides by initial_learning_rate, which inverse square root does not have at step 0
    chain = c.ChainedLR(schedulers=[
        {"LinearLR": {"initial_learning_rate": 0.1, "end_learning_rate": 0.2, "total_iters": 30}},
        {"InverseSquareRootDecayLR": {"initial_learning_rate": 0.3, "scale": 2.0, "warmup_steps": 9}}])  # fmt: skip
    steps = np.arange(STEPS)
    close(ours(chain), (0.1 + 0.1 * np.minimum(steps, 30) / 30) * 2.0 / np.sqrt(np.maximum(steps, 9)))


def test_the_zoos_gpt_schedule_at_its_corners():
    s = c.SequentialLR(schedulers=[
        {"LinearLR": {"initial_learning_rate": 0.0, "end_learning_rate": 6e-4, "total_iters": 716}},
        {"CosineDecayLR": {"initial_learning_rate": 6e-4, "end_learning_rate": 6e-5, "total_iters": 4062}},
    ])  # fmt: skip
    assert s.starts == (0, 716)
    assert learning_rate(s, 0) == 0.0 and learning_rate(s, 716) == 6e-4
    close(learning_rate(s, 358), 3e-4)
    close(learning_rate(s, 716 + 2031), 3.3e-4)
    assert learning_rate(s, 716 + 4062) == learning_rate(s, 10**6) == 6e-5


LINEARS = st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4)


@given(LINEARS, st.booleans())
def test_sequential_is_its_parts_one_after_another(parts, with_milestones):
    configs = [c.LinearLR(initial_learning_rate=a, end_learning_rate=b, total_iters=n) for n, a, b in parts]
    ends = np.cumsum([n for n, _, _ in parts]).tolist()
    whole = c.SequentialLR(
        schedulers=[{"LinearLR": s} for s in configs], milestones=tuple(ends[:-1]) if with_milestones else None
    )
    expected = [learning_rate(s, step) for s, (n, _, _) in zip(configs, parts) for step in range(n)]
    assert ours(whole, len(expected)) == expected
    assert learning_rate(whole, ends[-1] + 5) == parts[-1][2]


def test_sequences_nest():
    inner = {"SequentialLR": {"total_iters": 8, "schedulers": [
        {"ConstantLR": {"learning_rate": 0.1, "total_iters": 3}}, {"ConstantLR": {"learning_rate": 0.2}}]}}  # fmt: skip
    s = c.SequentialLR(schedulers=[inner, {"ConstantLR": {"learning_rate": 0.3}}])
    assert ours(s, 12) == [0.1] * 3 + [0.2] * 5 + [0.3] * 4


@pytest.mark.parametrize("name", PAIRS)
def test_rates_do_not_depend_on_what_was_asked_before(name):
    config = PAIRS[name][0]
    backwards = [learning_rate(config, s) for s in reversed(range(STEPS))]
    assert backwards[::-1] == ours(config)


def test_every_class_has_a_rate():
    tested = {type(config) for config, _ in PAIRS.values()} | {
        c.CyclicLR, c.OneCycleLR, c.InverseExponentialTimeDecayLR, c.InverseSquareRootDecayLR, c.CosineDecayLR,
        c.PiecewiseConstantLR}  # fmt: skip
    named = {getattr(c, name) for name in c.Scheduler.model_fields}
    assert tested == named
    assert all(math.isfinite(learning_rate(config, 10**6)) for config, _ in PAIRS.values())


def test_what_is_no_schedule_is_refused():
    with pytest.raises(TypeError):
        learning_rate(0.1, 3)
