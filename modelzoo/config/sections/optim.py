"""The `optimizer` and `schedulers` sections, by the class names that cerebras.pytorch.optim and its configs use."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from modelzoo.config.sections.base import (
    Bool,
    Float,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rate,
    Section,
    one_of,
)


class Adam(Section):
    """Adam with L2 regularisation added to the gradient (arXiv 1412.6980)."""

    lr: NonNegativeFloat | None = None  # only without `schedulers`
    betas: tuple[Rate, Rate] = (0.9, 0.999)  # decay of the first and second moment
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0  # biases and norms do not decay
    correct_bias: Bool = True  # of the moments, by steps taken (regrown weights: since they grew)
    compat: Literal["cstorch"] | None = (
        None  # epsilon is added to the root of the uncorrected moment, as in cerebras.pytorch
    )
    amsgrad: Literal[False] = False


class AdamW(Adam):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""


class SGD(Section):
    lr: NonNegativeFloat | None = None
    momentum: Rate = 0.0
    dampening: Float = 0.0
    weight_decay: NonNegativeFloat = 0.0
    nesterov: Bool = False
    maximize: Literal[False] = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self):
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ValueError("nesterov needs momentum above 0 and dampening 0")
        return self


class Optimizer(one_of(AdamW, Adam, SGD)):
    """One optimizer, by its class's name."""


class LR(Section):
    """A learning rate as a function of the step, which counts from 0 where the scheduler begins."""

    param_group_tags: None = None


class FiniteLR(LR):
    """One that is defined over its `total_iters`."""

    total_iters: PositiveInt  # steps that it lasts


class EndlessLR(LR):
    """One that is defined for every step; only a SequentialLR ends it."""

    total_iters: PositiveInt | None = None  # steps that it lasts, in a SequentialLR


class ConstantLR(EndlessLR):
    learning_rate: NonNegativeFloat


class PolynomialLR(FiniteLR):
    initial_learning_rate: NonNegativeFloat
    end_learning_rate: NonNegativeFloat
    power: PositiveFloat = 1.0
    cycle: Bool = False


class LinearLR(FiniteLR):
    initial_learning_rate: NonNegativeFloat  # at its first step
    end_learning_rate: NonNegativeFloat  # at step total_iters and after
    cycle: Bool = False


class ExponentialLR(FiniteLR):
    initial_learning_rate: NonNegativeFloat
    decay_rate: PositiveFloat
    staircase: Bool = False


class InverseExponentialTimeDecayLR(FiniteLR):
    initial_learning_rate: NonNegativeFloat
    step_exponent: NonNegativeInt
    decay_rate: PositiveFloat
    staircase: Bool = False


class InverseSquareRootDecayLR(EndlessLR):
    initial_learning_rate: NonNegativeFloat = 1.0
    scale: PositiveFloat = 1.0
    warmup_steps: PositiveFloat = 1.0


class CosineDecayLR(FiniteLR):
    initial_learning_rate: NonNegativeFloat  # at its first step
    end_learning_rate: NonNegativeFloat  # at step total_iters and after


class PiecewiseConstantLR(EndlessLR):
    learning_rates: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
    milestones: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def _one_rate_a_piece(self):
        if len(self.learning_rates) not in (len(self.milestones), len(self.milestones) + 1):
            raise ValueError("needs one learning rate before each milestone, and one after the last")
        return self


class MultiStepLR(EndlessLR):
    initial_learning_rate: NonNegativeFloat
    gamma: PositiveFloat
    milestones: tuple[PositiveInt, ...]


class StepLR(EndlessLR):
    initial_learning_rate: NonNegativeFloat
    step_size: PositiveInt
    gamma: PositiveFloat


class CosineAnnealingLR(EndlessLR):
    initial_learning_rate: NonNegativeFloat
    T_max: PositiveInt
    eta_min: NonNegativeFloat = 0.0


class CosineAnnealingWarmRestarts(EndlessLR):
    initial_learning_rate: NonNegativeFloat
    T_0: PositiveInt
    T_mult: PositiveInt = 1
    eta_min: NonNegativeFloat = 0.0


class MultiplicativeLR(EndlessLR):
    initial_learning_rate: NonNegativeFloat
    coefficient: PositiveFloat


class CyclicLR(EndlessLR):
    base_lr: NonNegativeFloat
    max_lr: NonNegativeFloat
    step_size_up: PositiveInt = 2000
    step_size_down: PositiveInt | None = None
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: PositiveFloat = 1.0
    scale_mode: Literal["cycle", "iterations"] = "cycle"  # follows `mode`, as in cerebras.pytorch


class OneCycleLR(EndlessLR):
    initial_learning_rate: NonNegativeFloat
    max_lr: NonNegativeFloat
    total_steps: PositiveInt = 1000
    pct_start: Annotated[PositiveFloat, Field(lt=1)] = 0.3
    final_div_factor: PositiveFloat = 1e4
    three_phase: Bool = False
    anneal_strategy: Literal["cos", "linear"] = "cos"

    @model_validator(mode="after")
    def _phases_fit(self):
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError("three_phase goes up and down in pct_start each, so pct_start must be at most 0.5")
        return self


class SequentialLR(EndlessLR):
    """Schedulers one after another; without `milestones` each lasts its `total_iters`."""

    schedulers: Annotated[tuple["Scheduler", ...], Field(min_length=1)]
    milestones: tuple[NonNegativeInt, ...] | None = None  # the step at which each but the first begins

    @model_validator(mode="after")
    def _milestones_known(self):
        if self.milestones is not None:
            if len(self.milestones) != len(self.schedulers) - 1 or list(self.milestones) != sorted(self.milestones):
                raise ValueError(
                    f"milestones must be {len(self.schedulers) - 1} rising steps, one between two schedulers"
                )
        elif unknown := [s.name for s in self.schedulers[:-1] if s.value.total_iters is None]:
            raise ValueError(
                f"{unknown[0]} needs total_iters (or give milestones), so that the next one knows its start"
            )
        return self

    @property
    def starts(self) -> tuple[int, ...]:
        """The step at which each scheduler begins."""
        if self.milestones is not None:
            return (0, *self.milestones)
        starts = [0]
        for scheduler in self.schedulers[:-1]:
            starts.append(starts[-1] + scheduler.value.total_iters)
        return tuple(starts)


class ChainedLR(EndlessLR):
    """The first scheduler's rate times each other scheduler's ratio to its own initial rate."""

    schedulers: Annotated[tuple["Scheduler", ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _ratios_exist(self):
        for i, scheduler in enumerate(self.schedulers[1:], 1):
            if not initial_rate(scheduler.value):
                raise ValueError(
                    f"schedulers.{i} ({scheduler.name}) acts by its ratio to its initial rate, which must not be 0; "
                    "put it first, or join the schedulers in a SequentialLR"
                )
        return self


def initial_rate(scheduler: LR) -> float:
    """The rate that a chained scheduler is measured against; 0 for one that has none of its own."""
    for key in ("initial_learning_rate", "learning_rate", "base_lr"):
        if hasattr(scheduler, key):
            return getattr(scheduler, key)
    return 0.0


class ScalePerParamLR(EndlessLR):
    """Model Zoo's wrapper for muP; our parameter groups carry the scale, so it passes its scheduler through."""

    scheduler: "Scheduler"


class Scheduler(
    one_of(
        ConstantLR,
        PolynomialLR,
        LinearLR,
        ExponentialLR,
        InverseExponentialTimeDecayLR,
        InverseSquareRootDecayLR,
        CosineDecayLR,
        PiecewiseConstantLR,
        MultiStepLR,
        StepLR,
        CosineAnnealingLR,
        CosineAnnealingWarmRestarts,
        MultiplicativeLR,
        CyclicLR,
        OneCycleLR,
        SequentialLR,
        ChainedLR,
        ScalePerParamLR,
    )
):
    """One learning-rate schedule, by its class's name."""


for _recursive in (SequentialLR, ChainedLR, ScalePerParamLR, Scheduler):
    _recursive.model_rebuild()
