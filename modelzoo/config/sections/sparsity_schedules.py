"""Schedules of the `sparsity` section: what a level is at a step, and the steps at which masks change."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from modelzoo.config.loading.explain import format_value
from modelzoo.config.sections.base import (
    Float,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from modelzoo.config.values.scalars import PERCENT


class Constant(Section):
    type: Literal["constant"] = "constant"
    value: Float


class Linear(Section):
    """init + step * slope, held at `final` once reached (unbounded without it)."""

    type: Literal["linear"] = "linear"
    init: Float
    slope: Float
    final: Float | None = None


class Exp(Section):
    """final + (init - final) * exp(step * gamma)."""

    type: Literal["exp"] = "exp"
    init: Float
    gamma: Float
    final: Float = 1.0


class Power(Section):
    """init * beta ** step."""

    type: Literal["power"] = "power"
    init: Float
    beta: Float


class Cosine(Section):
    """Swings from init (step 0) to minimum (step half_period) and back."""

    type: Literal["cosine"] = "cosine"
    init: Float
    half_period: PositiveFloat
    minimum: Float = 0.0


class Cycling(Section):
    """The next of `values` at each update step, round and round."""

    type: Literal["cycling"] = "cycling"
    values: Annotated[tuple[Float, ...], Field(min_length=1)]


def _end_after_begin(span):
    """The check of schedules from one step to another."""
    if span.end <= span.begin:
        raise ValueError(f"end {span.end} must come after begin {span.begin}")
    return span


class Cubic(Section):
    """Zhu & Gupta (arXiv 1710.01878, eq. 1): final + (init - final) * (1 - (step - begin) / (end - begin)) ** 3."""

    type: Literal["cubic"] = "cubic"
    init: Float = 0.0
    final: Float
    begin: NonNegativeInt = 0
    end: PositiveInt

    _forward = model_validator(mode="after")(_end_after_begin)


class Sigmoid(Section):
    """An S from init (step begin) to final (step end), whose slope is steepest halfway (arXiv 2501.19107, eq. 4)."""

    type: Literal["sigmoid"] = "sigmoid"
    init: Float = 0.0
    final: Float
    begin: NonNegativeInt = 0
    end: PositiveInt
    steepness: PositiveFloat = 6.0

    _forward = model_validator(mode="after")(_end_after_begin)


def _schedule_form(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"type": "constant", "value": value}
    if isinstance(value, str) and (share := PERCENT.fullmatch(value)):
        return {"type": "constant", "value": float(share[1]) / 100}
    if isinstance(value, list | tuple):
        return {"type": "cycling", "values": value}
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        return {**value, "type": value["type"].lower()}
    if isinstance(value, BaseModel):
        return value
    raise ValueError(
        "takes a number (0.75, or 75%), a list to cycle through, or a mapping with `type`: "
        f"constant, linear, exp, power, cosine, cycling, cubic or sigmoid; got {format_value(value)}"
    )


Schedule = Annotated[
    Annotated[Constant | Linear | Exp | Power | Cosine | Cycling | Cubic | Sigmoid, Field(discriminator="type")],
    BeforeValidator(_schedule_form),
]


class Update(Section):
    """When masks change: every `freq` steps from `start` (inclusive) to `stop` (exclusive), or at listed `steps`."""

    freq: PositiveInt | None = None  # steps between updates
    start: NonNegativeInt = 0  # first step that may be one
    stop: NonNegativeInt | None = None  # no update from here on
    steps: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] | None = None  # or these steps

    @model_validator(mode="after")
    def _one_form(self):
        if self.steps is not None and {"freq", "start", "stop"} & self.model_fields_set - self._defaulted():
            raise ValueError("takes either `steps` or `freq`/`start`/`stop`, not both")
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop {self.stop} must come after start {self.start}; no step would be an update")
        return self

    def _defaulted(self) -> set[str]:
        """Keys that were written down with their default values (a dumped config names every key)."""
        return {k for k, f in type(self).model_fields.items() if getattr(self, k) == f.default}
