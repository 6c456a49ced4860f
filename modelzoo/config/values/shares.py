"""Lengths as shares of a run: `75%` where a config names a number of steps, resolved once the run's length is known."""

from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from modelzoo.config.values.scalars import MOST, PERCENT

LENGTHS = frozenset({  # keys that hold optimizer steps, and may hold a share of them
    "freq", "start", "stop", "steps", "regrow_warmup",  # sparsity.update, checkpoint.steps, finetune's gradual opening
    "begin", "end", "half_period",  # sparsity schedules
    "total_iters", "milestones", "T_max", "T_0", "step_size", "warmup_steps",  # learning-rate schedules
    "step_size_up", "step_size_down", "total_steps",
    "eval_frequency", "log_steps",
})  # fmt: skip
SECTIONS = ("init", "finetune")  # of `trainer`, which may hold them
COUNTS = ("max_steps", "num_steps", "num_epochs")  # keys of `loop` that say how long a run is
ANY = 10_000  # steps, in place of a length that the schema refuses


def share_of(text: str, steps: int) -> int:
    """The steps that `N%` of `steps` is, rounded: at least 1, but for 0%."""
    percent = float(text[:-1])
    return max(1, round(percent * steps / 100)) if percent else 0


def resolve(trainer: Any) -> Any:
    """The `trainer` section, as written, with each share as a number of steps.

    Raises:
        ValidationError: there are shares, and the section does not say how long the run is. It names the first share.
    """
    if not isinstance(trainer, dict) or (first := find(trainer)) is None:
        return trainer
    if (steps := length_of(trainer)) is None:
        if not _is_refused(trainer.get("init")):
            text = (
                f"{first[1]} is a share of the run's steps, which are not known here: give trainer.init.loop.max_steps "
                "(or num_epochs with steps_per_epoch)"
            )
            error = InitErrorDetails(
                type=PydanticCustomError("value_error", "{text}", {"text": text}), loc=first[0], input=first[1]
            )
            raise ValidationError.from_exception_data("Trainer", [error])
        steps = ANY
    return {**trainer, **{k: _resolved(trainer[k], steps) for k in SECTIONS if k in trainer}}


def find(trainer: dict) -> tuple[tuple[str | int, ...], str] | None:
    """The first share in a `trainer` section, behind its path: ("init", "checkpoint", "steps"), "25%"."""
    found = (_first(trainer[k], k, (k,)) for k in SECTIONS if k in trainer)
    return next((x for x in found if x is not None), None)


def length_of(trainer: dict) -> int | None:
    """Optimizer steps of the run that a `trainer` section describes; None where it alone does not define them."""
    init = trainer.get("init")
    loop = init.get("loop") if isinstance(init, dict) else None
    counts = {k: v for k, v in loop.items() if type(v) is int and 0 < v <= MOST} if isinstance(loop, dict) else {}
    if steps := counts.get("max_steps") or counts.get("num_steps"):
        return steps
    return (
        counts["num_epochs"] * counts["steps_per_epoch"] if {"num_epochs", "steps_per_epoch"} <= set(counts) else None
    )


def _is_refused(init: Any) -> bool:
    """Whether `init` gives a length that is none (1e3, 0, "100"), which the schema then reports; a share need not."""
    loop = init.get("loop") if isinstance(init, dict) else None
    given = [loop[k] for k in COUNTS if loop.get(k) is not None] if isinstance(loop, dict) else []
    return any(type(v) is not int or not 0 < v <= MOST for v in given)


def _resolved(value: Any, steps: int, key: str | None = None) -> Any:
    if isinstance(value, dict):
        return {k: _resolved(v, steps, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(v, steps, key) for v in value]
    return share_of(value, steps) if _is_share(value, key) else value


def _first(value: Any, key: str | None, path: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], str] | None:
    if isinstance(value, dict):
        items = [(k, v, k) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        items = [(i, v, key) for i, v in enumerate(value)]
    else:
        return (path, value) if _is_share(value, key) else None
    found = (_first(v, k, (*path, part)) for part, v, k in items)
    return next((x for x in found if x is not None), None)


def _is_share(value: Any, key: str | None) -> bool:
    return key in LENGTHS and isinstance(value, str) and PERCENT.fullmatch(value) is not None
