"""A study file: one base config and a matrix of variants, each of which becomes an ordinary run.

    study:
      base: ../quickstart/base.yaml
      budget: {flops: 2.0e+13}
      learning_rate: {peak: [1e-3, 2e-3]}
      seeds: [1, 2, 3]
      axes:
        method:
          dense: {}
          rigl75: {trainer.init.sparsity: {algorithm: rigl, sparsity: 0.75, update: {freq: 5%, stop: 75%}}}

`5%` means that share of the run's steps, as in any config: runs of one study differ in length, and their schedules
with them.
"""

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from modelzoo.config.loading.explain import format_value
from modelzoo.config.loading.load import validate
from modelzoo.config.loading.yaml12 import Document, Mark
from modelzoo.config.sections.base import NonNegativeInt, PositiveFloat, PositiveInt, Rate, Section, Str, listed
from modelzoo.config.sections.model import MUP_GROUPS

_NAME = re.compile(r"[A-Za-z0-9_.]+")
MOST_RUNS = 10_000  # of a study
MATRICES = "decoder_kernel"  # Model Zoo's group of the decoder's matrices
OWN = ("budget", "learning_rate")  # sections of the study that a value of an axis may change too


class Budget(Section):
    """How long each run trains: until it has spent so many training FLOPs (as run), tokens or steps."""

    flops: PositiveFloat | None = None
    tokens: PositiveInt | None = None
    steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _one(self):
        if sum(x is not None for x in (self.flops, self.tokens, self.steps)) != 1:
            raise ValueError("takes exactly one of flops, tokens and steps")
        return self


class LearningRate(Section):
    """Linear warm-up from 0 to the peak, then a cosine down to a share of it at the run's last step."""

    # With several, each is tried with the first seed, and the one with the lowest final loss trains the other seeds.
    peak: Annotated[tuple[PositiveFloat, ...], BeforeValidator(listed), Field(min_length=1)]
    warmup: Rate = 0.1  # share of the steps
    final: Rate = 0.1  # share of the peak
    others: PositiveFloat | None = None  # peak of all but the decoder's matrices; default: theirs


class Own(Section):
    """The sections of a study that a value of an axis may change too."""

    budget: Budget
    learning_rate: LearningRate | None = None


class Study(Section):
    """What varies between the runs of a study, and what they share."""

    base: Str  # a trainer config, relative to the study's file, or a packaged one
    output: Str = "./runs/study"
    data: Str | None = None  # a folder that preprocessing wrote, with train/ and val/; default: the base's data
    budget: Budget
    learning_rate: LearningRate | None = None  # null keeps the base's schedulers
    seeds: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(listed), Field(min_length=1)] = (1,)
    common: dict[Str, Any] = Field({})  # config keys of every run, for example {trainer.init.loop.eval_frequency: 0.1}
    axes: dict[Str, dict[Str, dict[Str, Any] | None]]  # axis: value: {config key: its value}
    cells: tuple[dict[Str, Any], ...] | None = None  # cross products to run; null runs the product of all axes
    flops_per_second: PositiveFloat | None = None  # of this machine in training, for the estimate before the first run

    @field_validator("common", "axes", mode="before")
    @classmethod
    def _flatten(cls, value: Any, info: ValidationInfo) -> Any:
        """Keys may be nested, as `--set study.common.trainer.init.seed=3` writes them: each becomes a dotted one."""
        if not isinstance(value, dict) or info.field_name == "common":
            return _join(value) if isinstance(value, dict) else value
        return {
            axis: {n: _join(keys) if isinstance(keys, dict) else keys for n, keys in named.items()}
            if isinstance(named, dict)
            else named
            for axis, named in value.items()
        }

    @model_validator(mode="after")
    def _adds_up(self):
        if (most := max(1, math.prod(map(len, self.axes.values()))) * len(self.seeds)) > MOST_RUNS and not self.cells:
            raise ValueError(f"axes: make {most:,} runs; at most {MOST_RUNS:,} are taken (name some with cells)")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: each once")
        for axis, values in self.axes.items():
            if not values:
                raise ValueError(f"axes.{axis}: has no values")
            if bad := next((n for n in (axis, *values) if not _NAME.fullmatch(n)), None):
                raise ValueError(f"axes.{axis}: {bad!r} names a folder, so it takes letters, digits, _ and . alone")
        for where, keys in (("common", self.common), *((f"axes.{a}.{n}", k) for a, n, k in self._values())):
            for key in keys:
                section, _, field = key.partition(".")
                if section not in ("trainer", *OWN) or not field:
                    raise ValueError(
                        f"{where}: {key!r} is no key; write trainer.init..., budget... or learning_rate..."
                    )
        for i, block in enumerate(self.cells or ()):
            for axis, chosen in block.items():
                if axis not in self.axes:
                    raise ValueError(f"cells.{i}: unknown axis {axis!r}; known: {', '.join(self.axes)}")
                for name in () if chosen == "all" else listed(chosen):
                    if name not in self.axes[axis]:
                        known = ", ".join(self.axes[axis])
                        raise ValueError(f"cells.{i}.{axis}: unknown value {name!r}; known: {known}, or all")
        return self

    def _values(self):
        return [(axis, name, keys or {}) for axis, values in self.axes.items() for name, keys in values.items()]

    def settings(self) -> list[dict[str, str]]:
        """The chosen value of each axis, once per cell of the matrix, in the file's order.

        An axis that a block of `cells` leaves out takes its first value.
        """
        blocks = [dict.fromkeys(self.axes, "all")] if self.cells is None else self.cells
        found: dict[tuple[str, ...], None] = {}
        for block in blocks:
            rows: list[tuple[str, ...]] = [()]
            for axis, values in self.axes.items():
                chosen = block.get(axis, next(iter(values)))
                names = list(values) if chosen == "all" else listed(chosen)
                rows = [(*row, name) for row in rows for name in names]
            found |= dict.fromkeys(rows)
        return [dict(zip(self.axes, row, strict=True)) for row in found]

    def keys(self, setting: dict[str, str]) -> dict[str, Any]:
        """All keys that a setting changes, later axes over earlier ones."""
        keys = dict(self.common)
        for axis, name in setting.items():
            keys |= self.axes[axis][name] or {}
        return keys

    def of(self, setting: dict[str, str]) -> Own:
        """The budget and learning rate of a setting.

        Raises:
            UserError: a key of the setting is none of theirs, or has no value that fits.
        """
        doc = Document({name: part.model_dump() for name in OWN if (part := getattr(self, name)) is not None})
        for key, value in self.keys(setting).items():
            section, _, field = key.partition(".")
            if section in OWN:
                doc.data.setdefault(section, {})[field] = value
                doc.marks[(section, field)] = Mark(f"{key}={format_value(value)}")
        return validate(doc, Own)


def _join(keys: dict[str, Any]) -> dict[str, Any]:
    """`keys` with what is nested below `trainer`, its `init` or `fit`, or a section of OWN under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in keys.items():
        if key in ("trainer", "trainer.init", "trainer.fit", *OWN) and isinstance(value, dict):
            for dotted, below in _join({f"{key}.{name}": below for name, below in value.items()}).items():
                found[dotted] = _merge(found.get(dotted), below)
        else:
            found[key] = value
    return found


def _merge(before: Any, after: Any) -> Any:
    """`after` over `before`: of two mappings, key by key."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return after
    return {**before, **{k: _merge(before.get(k), v) for k, v in after.items()}}


class StudyFile(Section):
    """`study:` is the only top-level key (besides `extends:`)."""

    study: Study


def rate_keys(rate: LearningRate, peak: float, steps: int) -> dict[str, Any]:
    """The config keys by which a run of `steps` steps has `rate`, with `peak` for the decoder's matrices."""
    if rate.others is None:
        return {"trainer.init.schedulers": schedule(rate, peak, steps)}
    group = {"param_filter_patterns": list(MUP_GROUPS[MATRICES]), "scale": peak / rate.others}
    return {
        "trainer.init.schedulers": schedule(rate, rate.others, steps),
        f"trainer.init.model.lr_adjustment_groups.{MATRICES}": group,
    }


def schedule(rate: LearningRate, peak: float, steps: int) -> list[dict]:
    """`trainer.init.schedulers` of a run of `steps` steps."""
    warmup = max(1, round(rate.warmup * steps))
    rise = {"initial_learning_rate": 0.0, "end_learning_rate": peak, "total_iters": warmup}
    fall = {"initial_learning_rate": peak, "end_learning_rate": peak * rate.final}
    fall["total_iters"] = max(1, steps - warmup)
    return [{"SequentialLR": {"schedulers": [{"LinearLR": rise}, {"CosineDecayLR": fall}]}}]
