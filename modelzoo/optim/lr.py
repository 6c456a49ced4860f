"""Learning rates as pure functions of the step. No torch: `plan` may ask too.

`step` is the number of optimizer steps already taken, so the first step trains with `learning_rate(config, 0)`. Forms
and edge cases follow cerebras.pytorch.optim.lr_scheduler, but for CosineAnnealingWarmRestarts, which there does not
restart: ours is torch's. Nothing here has state, so a resumed run needs none.
"""

import math
from functools import singledispatch

from modelzoo.config.sections import optim as c
from modelzoo.config.trainer import Init

DEFAULT_LR = 1e-3  # torch's and cerebras.pytorch's default for Adam, where the config names no rate


def rate_at(init: Init, step: int) -> float:
    """The learning rate of optimizer step `step` (0-based) in a run of `init`, whichever section names it."""
    if init.schedulers:
        return learning_rate(init.schedulers[0].value, step)
    named = None if init.optimizer is None else init.optimizer.value.lr
    return DEFAULT_LR if named is None else named


def length(scheduler: c.LR) -> int | None:
    """The step after which a schedule no longer changes the rate; None for one without an end."""
    match scheduler:
        case c.PolynomialLR() | c.LinearLR() | c.CosineDecayLR():
            return scheduler.total_iters
        case c.CosineAnnealingLR():
            return scheduler.T_max
        case c.OneCycleLR():
            return scheduler.total_steps
        case c.PiecewiseConstantLR() | c.MultiStepLR():
            return max(scheduler.milestones, default=None)
        case c.ScalePerParamLR():
            return length(scheduler.scheduler.value)
        case c.SequentialLR():
            return scheduler.starts[-1] + (length(scheduler.schedulers[-1].value) or 0) or None
        case c.ChainedLR():
            return max((x for s in scheduler.schedulers if (x := length(s.value))), default=None)
    return None


def declines(scheduler: c.LR) -> bool:
    """Whether a schedule's last part leads down to the rate that it ends with, over the whole of its length."""
    match scheduler:
        case c.PolynomialLR() | c.LinearLR() | c.CosineDecayLR():
            return scheduler.end_learning_rate < scheduler.initial_learning_rate
        case c.CosineAnnealingLR():
            return scheduler.eta_min < scheduler.initial_learning_rate
        case c.OneCycleLR():
            return True
        case c.ScalePerParamLR():
            return declines(scheduler.scheduler.value)
        case c.SequentialLR():
            return declines(scheduler.schedulers[-1].value)
        case c.ChainedLR():
            longest = max(scheduler.schedulers, key=lambda s: length(s.value) or 0)
            return declines(longest.value)
    return False


@singledispatch
def learning_rate(scheduler: c.LR, step: int) -> float:
    """The learning rate of optimizer step `step` (0-based)."""
    raise TypeError(f"no learning rate for {type(scheduler).__name__}")


@learning_rate.register
def _(s: c.ConstantLR, step: int) -> float:
    return s.learning_rate


@learning_rate.register(c.PolynomialLR)
@learning_rate.register(c.LinearLR)
def _(s, step: int) -> float:
    if step >= s.total_iters:
        return s.end_learning_rate
    left = 1 - step / s.total_iters  # with `cycle` too: there is one cycle in total_iters, and the end holds after it
    return (s.initial_learning_rate - s.end_learning_rate) * left ** getattr(s, "power", 1.0) + s.end_learning_rate


@learning_rate.register
def _(s: c.ExponentialLR, step: int) -> float:
    power = step / s.total_iters
    return s.initial_learning_rate * s.decay_rate ** (math.floor(power) if s.staircase else power)


@learning_rate.register
def _(s: c.InverseExponentialTimeDecayLR, step: int) -> float:
    alpha = step**s.step_exponent / s.total_iters
    return s.initial_learning_rate / (1 + s.decay_rate * (math.floor(alpha) if s.staircase else alpha))


@learning_rate.register
def _(s: c.InverseSquareRootDecayLR, step: int) -> float:
    return s.initial_learning_rate * s.scale / math.sqrt(max(s.warmup_steps, step))


@learning_rate.register
def _(s: c.CosineDecayLR, step: int) -> float:
    progress = 0.5 * (1 + math.cos(math.pi * min(step, s.total_iters) / s.total_iters))
    return (s.initial_learning_rate - s.end_learning_rate) * progress + s.end_learning_rate


@learning_rate.register
def _(s: c.PiecewiseConstantLR, step: int) -> float:
    piece = sum(step >= m for m in s.milestones)
    return s.learning_rates[min(piece, len(s.learning_rates) - 1)]


@learning_rate.register
def _(s: c.MultiStepLR, step: int) -> float:
    return s.initial_learning_rate * s.gamma ** sum(step >= m for m in s.milestones)


@learning_rate.register
def _(s: c.StepLR, step: int) -> float:
    return s.initial_learning_rate * s.gamma ** (step // s.step_size)


@learning_rate.register
def _(s: c.CosineAnnealingLR, step: int) -> float:
    return s.eta_min + (s.initial_learning_rate - s.eta_min) * (1 + math.cos(math.pi * step / s.T_max)) / 2


@learning_rate.register
def _(s: c.CosineAnnealingWarmRestarts, step: int) -> float:
    period, since = s.T_0, step % s.T_0 if s.T_mult == 1 else step
    while since >= period:
        since -= period
        period *= s.T_mult
    return s.eta_min + (s.initial_learning_rate - s.eta_min) * (1 + math.cos(math.pi * since / period)) / 2


@learning_rate.register
def _(s: c.MultiplicativeLR, step: int) -> float:
    return s.initial_learning_rate * s.coefficient**step


@learning_rate.register
def _(s: c.CyclicLR, step: int) -> float:
    down = s.step_size_down or s.step_size_up
    total, rise = s.step_size_up + down, s.step_size_up / (s.step_size_up + down)
    cycle = math.floor(1 + step / total)
    x = 1 + step / total - cycle
    height = (x / rise if x <= rise else (x - 1) / (rise - 1)) * (s.max_lr - s.base_lr)
    scale = {"triangular": 1.0, "triangular2": 0.5 ** (cycle - 1), "exp_range": s.gamma**step}[s.mode]
    return s.base_lr + height * scale


@learning_rate.register
def _(s: c.OneCycleLR, step: int) -> float:
    floor = s.initial_learning_rate / s.final_div_factor
    if s.three_phase:
        ends = [s.pct_start * s.total_steps - 1, 2 * s.pct_start * s.total_steps - 2, s.total_steps - 1]
        rates = [s.initial_learning_rate, s.max_lr, s.initial_learning_rate, floor]
    else:
        ends = [s.pct_start * s.total_steps - 1, s.total_steps - 1]
        rates = [s.initial_learning_rate, s.max_lr, floor]
    phase = sum(step > end for end in ends[:-1])
    begin = ends[phase - 1] if phase else 0
    share = min(1.0, (step - begin) / (ends[phase] - begin)) if ends[phase] > begin else 1.0
    if s.anneal_strategy == "cos":
        return rates[phase + 1] + (rates[phase] - rates[phase + 1]) / 2 * (1 + math.cos(math.pi * share))
    return rates[phase] + (rates[phase + 1] - rates[phase]) * share


@learning_rate.register
def _(s: c.SequentialLR, step: int) -> float:
    current = max(i for i, start in enumerate(s.starts) if step >= start)
    return learning_rate(s.schedulers[current].value, step - s.starts[current])


@learning_rate.register
def _(s: c.ChainedLR, step: int) -> float:
    rate = learning_rate(s.schedulers[0].value, step)
    for other in s.schedulers[1:]:
        rate *= learning_rate(other.value, step) / c.initial_rate(other.value)
    return rate


@learning_rate.register
def _(s: c.ScalePerParamLR, step: int) -> float:
    return learning_rate(s.scheduler.value, step)
