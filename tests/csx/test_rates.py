"""Our learning rates and drop schedules against cerebras.pytorch's, form by form, over 60 steps."""

import pytest
import torch
from csx_runs import config, theirs

from modelzoo.backends.csx import parts
from modelzoo.backends.csx.library import cstorch
from modelzoo.config.errors import UserError
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.optim.lr import learning_rate
from modelzoo.sparsity import schedules
from modelzoo.sparsity.compat import value32

LR = {"initial_learning_rate": 1e-3}
LINEAR = {"LinearLR": LR | {"end_learning_rate": 1e-4, "total_iters": 20}}
FORMS = [
    {"ConstantLR": {"learning_rate": 2e-3}},
    LINEAR,
    {"LinearLR": LR | {"end_learning_rate": 1e-4, "total_iters": 20, "cycle": True}},
    {"PolynomialLR": LR | {"end_learning_rate": 1e-4, "total_iters": 20, "power": 2.0}},
    {"ExponentialLR": LR | {"total_iters": 10, "decay_rate": 0.8, "staircase": True}},
    {"InverseExponentialTimeDecayLR": LR | {"step_exponent": 2, "total_iters": 10, "decay_rate": 0.3}},
    {"InverseSquareRootDecayLR": LR | {"warmup_steps": 10.0, "scale": 2.0}},
    {"CosineDecayLR": LR | {"end_learning_rate": 1e-4, "total_iters": 30}},
    {"PiecewiseConstantLR": {"learning_rates": [1e-3, 1e-4, 1e-5], "milestones": [5, 30]}},
    {"MultiStepLR": LR | {"gamma": 0.5, "milestones": [4, 8, 40]}},
    {"StepLR": LR | {"gamma": 0.5, "step_size": 7}},
    {"CosineAnnealingLR": LR | {"T_max": 13, "eta_min": 1e-5}},
    {"MultiplicativeLR": LR | {"coefficient": 0.95}},
    {"CyclicLR": {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 5, "mode": "triangular2"}},
    {"OneCycleLR": LR | {"max_lr": 1e-2, "total_steps": 70}},
    {"SequentialLR": {"schedulers": [LINEAR, {"CosineDecayLR": LR | {"end_learning_rate": 0.0, "total_iters": 30}}]}},
    {"ChainedLR": {"schedulers": [LINEAR, {"StepLR": LR | {"gamma": 0.5, "step_size": 7}}]}},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: next(iter(f)))
@pytest.mark.parametrize("start", [0, 11])
def test_learning_rates(form, start, tmp_path):
    """From the beginning, and wound to the step where a run resumes."""
    c = config(schedulers=[form])
    theirs(c, tmp_path)
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = cstorch.optim.AdamW([{"params": [weight], "adjust_learning_rate": 1.0}], lr=1.0)
    (made,) = parts.make_schedulers(c.trainer.init, optimizer)
    if start:
        parts.advance_scheduler(made, start)
    for step in range(start, 60):
        got = float(optimizer.param_groups[0]["lr"])
        assert got == pytest.approx(learning_rate(c.trainer.init.schedulers[0].value, step), rel=2e-5, abs=1e-9), step
        optimizer.step()
        made.step()


def test_warm_restarts_are_refused_because_theirs_do_not_restart(tmp_path):
    c = config(schedulers=[{"CosineAnnealingWarmRestarts": LR | {"T_0": 7}}])
    theirs(c, tmp_path)
    optimizer = cstorch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    with pytest.raises(UserError, match="CosineAnnealingWarmRestarts"):
        parts.make_schedulers(c.trainer.init, optimizer)
    made, rates = cstorch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 1e-3, 7), []
    for _ in range(14):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        made.step()
    assert rates[6] < 1e-4 and rates[8:] == [rates[0]] * 6


SCHEDULES = [
    0.6,
    [0.3, 0.5, 0.7],
    {"type": "linear", "init": 0.1, "slope": 0.01},
    {"type": "linear", "init": 0.1, "slope": 0.03, "final": 0.7},
    {"type": "exp", "init": 0.1, "gamma": -0.05, "final": 0.8},
    {"type": "power", "init": 0.9, "beta": 0.98},
    {"type": "cosine", "init": 0.3, "half_period": 25, "minimum": 0.1},
    {"type": "cubic", "init": 0.1, "final": 0.8, "begin": 5, "end": 40},
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_sparsity_schedules(schedule, tmp_path):
    """`compat` computes to the last bit what cerebras.pytorch does; ours is the same number in float64."""
    theirs(config(), tmp_path)
    update = {"freq": 3, "start": 2, "stop": 50}
    group = SparsityGroup.model_validate({"algorithm": "rigl", "sparsity": schedule, "update": update})
    made = cstorch.sparse.utils.make_hyperparam_schedule(parts.sparsity_block(group)["sparsity"])
    when = cstorch.sparse.utils.make_update_schedule(parts.sparsity_block(group)["update"])
    for step in range(60):
        at = torch.tensor(step)
        made.cache_clear()
        assert bool(when(at)) == schedules.is_update(group.update, step)
        got = made(at)
        assert torch.equal(got.float(), value32(group.sparsity, at, group.update).float()), step
        assert float(got) == pytest.approx(schedules.value(group.sparsity, step, group.update), abs=1e-6)
        made.update(when(at))
