"""Sparsity and drop-fraction schedules, and when masks update: pure functions of the step. No torch.

`step` is the number of optimizer steps already taken; masks change after the step that makes it an update step. Having
no state, a schedule resumes exactly (cycling too: its place is the count of earlier update steps).
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache, singledispatch

from modelzoo.config.errors import UserError
from modelzoo.config.sections import sparsity_schedules as c
from modelzoo.config.sections.sparsity import SparsityGroup


@singledispatch
def value(schedule, step: int, update: c.Update | None = None) -> float:
    """The schedule's value at `step`. `update` matters to cycling schedules only."""
    raise TypeError(f"no value for {type(schedule).__name__}")


@value.register
def _(s: c.Constant, step: int, update: c.Update | None = None) -> float:
    return s.value


@value.register
def _(s: c.Linear, step: int, update: c.Update | None = None) -> float:
    (p, q), (r, t) = _ratio(s.init), _ratio(s.slope)
    y = (p * t + step * r * q) / (q * t)
    if s.final is None:
        return y
    return min(y, s.final) if s.slope >= 0 else max(y, s.final)


@value.register
def _(s: c.Exp, step: int, update: c.Update | None = None) -> float:
    return _between(s.final, s.init, math.exp(step * s.gamma))


@value.register
def _(s: c.Power, step: int, update: c.Update | None = None) -> float:
    return s.init * s.beta**step


@value.register
def _(s: c.Cosine, step: int, update: c.Update | None = None) -> float:
    return _between(s.minimum, s.init, (1 + math.cos(step * math.pi / s.half_period)) / 2)


@value.register
def _(s: c.Cycling, step: int, update: c.Update | None = None) -> float:
    return s.values[updates_before(update, step) % len(s.values)]


@value.register
def _(s: c.Cubic, step: int, update: c.Update | None = None) -> float:
    length = s.end - s.begin
    left = length - min(max(step - s.begin, 0), length)
    (p, q), (r, t) = _ratio(s.init), _ratio(s.final)
    return (r * q * length**3 + (p * t - r * q) * left**3) / (q * t * length**3)


@value.register
def _(s: c.Sigmoid, step: int, update: c.Update | None = None) -> float:
    x = 2 * (min(max(step, s.begin), s.end) - s.begin) / (s.end - s.begin) - 1  # from -1 to 1
    low, high = _logistic(-s.steepness), _logistic(s.steepness)
    return _between(s.init, s.final, (_logistic(s.steepness * x) - low) / (high - low))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _between(a: float, b: float, share: float) -> float:
    """From a to b, exactly a at 0 and b at 1."""
    return a * (1 - share) + b * share


@cache
def _ratio(x: float) -> tuple[int, int]:
    """The decimal that was written, as numerator and denominator; integers divide to the nearest float.

    Counts of live weights hang on the last digit: 3 * 0.1 must be 0.3, not 0.30000000000000004.
    """
    return Fraction(repr(x)).as_integer_ratio()


def is_update(update: c.Update | None, step: int) -> bool:
    """Whether masks change at `step`. No `update` means at every step, as in cerebras.pytorch."""
    if update is None:
        return True
    if update.steps is not None:
        return step in update.steps
    after_start = step - update.start
    return after_start >= 0 and after_start % (update.freq or 1) == 0 and (update.stop is None or step < update.stop)


def updates_before(update: c.Update | None, step: int) -> int:
    """How many update steps lie strictly before `step`."""
    if update is None:
        return step
    if update.steps is not None:
        return len({s for s in update.steps if s < step})
    end = step if update.stop is None else min(step, update.stop)
    return max(0, -(-(end - update.start) // (update.freq or 1)))


def update_steps(update: c.Update | None, end: int) -> Sequence[int]:
    """The update steps in [1, end], in order: those that change a mask in a run of `end` steps."""
    if update is not None and update.steps is not None:
        return sorted({s for s in update.steps if 1 <= s <= end})
    start, freq = (0, 1) if update is None else (update.start, update.freq or 1)
    stop = end + 1 if update is None or update.stop is None else min(update.stop, end + 1)
    return range(start or freq, stop, freq)


def next_update(update: c.Update | None, step: int) -> int | None:
    """The first update step after `step`; None where masks change no more, however long the run."""
    if update is None:
        return step + 1
    if update.steps is not None:
        return min((s for s in update.steps if s > step), default=None)
    freq = update.freq or 1
    after = update.start + max(0, (step - update.start) // freq + 1) * freq
    return after if update.stop is None or after < update.stop else None


def target(schedule: c.Schedule) -> float | None:
    """The value that a schedule leads to and keeps; None for one that leads nowhere, or only ever nearer to 1."""
    match schedule:
        case c.Constant():
            return schedule.value
        case c.Linear() | c.Cubic() | c.Sigmoid():
            return schedule.final
        case c.Exp():
            return schedule.final if schedule.gamma < 0 and schedule.final < 1 else None
    return None


def held(group: SparsityGroup, step: int) -> float:
    """The sparsity that the masks have after `step` steps: the schedule's value at the last update, or at the start."""
    return value(group.sparsity, 0 if group.algorithm == "static" else last_update(group.update, step), group.update)


def last_update(update: c.Update | None, step: int) -> int:
    """The last update step up to and including `step`; 0, where masks are first drawn, before there is one."""
    if update is None:
        return step
    if update.steps is not None:
        return max((s for s in update.steps if s <= step), default=0)
    freq, end = update.freq or 1, step if update.stop is None else min(step, update.stop - 1)
    return update.start + (end - update.start) // freq * freq if end >= update.start else 0


def split_monotone(schedule: c.Schedule | None, steps: Sequence[int]) -> Iterator[Sequence[int]]:
    """Parts of `steps`, in order, over each of which the schedule only rises or only falls.

    Args:
        steps: rising; of a schedule that cycles, update steps. What it has had once is left out.
    """
    match schedule:
        case c.Cycling():
            yield from ((s,) for s in steps[: len(schedule.values)])
        case c.Power() if schedule.beta < 0:
            yield from ((s,) for s in steps)
        case c.Cosine():
            begin = 0
            while begin < len(steps):
                turn = (steps[begin] // schedule.half_period + 1) * schedule.half_period
                end = max(bisect_left(steps, turn, begin), begin + 1)
                yield steps[begin:end]
                begin = end
        case _:
            if steps:
                yield steps


def lowest(group: SparsityGroup, end: int) -> float:
    """The lowest sparsity that the masks have in a run of `end` steps: then most weights live."""
    start = held(group, 0)
    if group.algorithm == "static":
        return start
    parts = split_monotone(group.sparsity, update_steps(group.update, end))
    return min([start, *(held(group, step) for part in parts for step in (part[0], part[-1]))])


def check_schedule(group: SparsityGroup, max_steps: int) -> tuple[float, int]:
    """Refuse a group whose schedule leaves its range or passes `max_sparsity` at an update within `max_steps` steps.

    Refused, too, are masks that no run can change: `update` names no step at all (`{freq: 500, stop: 400}`), which is
    a static mask under another name. A schedule that this run is too short for is no mistake for certain, since configs
    are tried in short: `planning.lengths.notes` reports it.

    Returns:
        The highest sparsity that the masks reach, and the first step at which they do.

    Raises:
        UserError: names the step and the value, and what to change.
    """
    where = f"trainer.init.sparsity ({group.algorithm})"
    if group.algorithm != "static" and next_update(group.update, 0) is None:
        raise UserError(
            f"{where}: `update` names no step after the first masks, so they never change; "
            "give a smaller freq, a later stop, or `algorithm: static`"
        )
    updates = () if group.algorithm == "static" else update_steps(group.update, max_steps)
    sparsity = lambda step: _or_inf(group.sparsity, step, group.update)
    dropped = lambda step: 0.0 if group.drop_fraction is None else _or_inf(group.drop_fraction, step, group.update)
    parts = [(0,), *split_monotone(group.sparsity, updates)]
    wrong = _first_outside(parts, sparsity, group.max_sparsity)
    wrong_drop = _first_outside([(0,), *split_monotone(group.drop_fraction, updates)], dropped, 1)
    if wrong is not None and (wrong_drop is None or wrong <= wrong_drop):
        s = sparsity(wrong)
        why = "is not a share of weights" if not 0 <= s <= 1 else f"passes max_sparsity {group.max_sparsity}"
        raise UserError(
            f"{where}: sparsity reaches {s:.6g} at step {wrong} of {max_steps}, which {why}; "
            "set `final` (linear, exp, cubic), an earlier `update.stop`, or a smaller slope"
        )
    if wrong_drop is not None:
        raise UserError(
            f"{where}: drop_fraction is {dropped(wrong_drop):.6g} at step {wrong_drop}; it must stay between 0 and 1"
        )
    return max((_find_peak(part, sparsity) for part in parts), key=lambda peak: peak[0])  # the first of equal ones


def _first_outside(parts: Sequence[Sequence[int]], at: Callable[[int], float], most: float) -> int | None:
    """The first step at which a value is not in [0, most]. In a part it only rises or falls: it leaves once for all."""
    is_outside = lambda step: not 0 <= at(step) <= most
    for part in parts:
        if is_outside(part[0]):
            return part[0]
        if is_outside(part[-1]):
            return part[bisect_left(part, True, key=is_outside)]
    return None


def _find_peak(part: Sequence[int], at: Callable[[int], float]) -> tuple[float, int]:
    """The highest value in a part, and the first step that has it."""
    first, last = at(part[0]), at(part[-1])
    return (first, part[0]) if first >= last else (last, part[bisect_left(part, last, key=at)])


def _or_inf(schedule, step: int, update: c.Update | None) -> float:
    try:
        return value(schedule, step, update)
    except OverflowError:  # exp and power grow past what a float holds
        return math.inf
