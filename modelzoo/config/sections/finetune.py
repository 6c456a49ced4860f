"""The `finetune` section: a task to learn from a checkpoint's weights, what happens to its masks, and when to stop."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from modelzoo.config.loading.explain import format_value
from modelzoo.config.loading.renamed import Renamed
from modelzoo.config.sections.base import NonNegativeFloat, NonNegativeInt, PositiveInt, Section, Str, Width, listed


class Opening(Section):
    """Masks open step by step: the weights off fall linearly to none, those with the largest gradient first."""

    steps: PositiveInt  # optimizer steps until every weight is live
    freq: PositiveInt = 10  # steps between openings


class Open(Section):
    """`{open: {steps: N}}`."""

    open: Opening


class EarlyStopping(Section):
    """Stop once the dev metric has not risen by more than `min_delta` in `patience` assessments."""

    metric: Str | None = None  # one of the task's metrics; default: its main one
    patience: PositiveInt = 3
    min_delta: NonNegativeFloat = 0.0


def _masks(value: Any) -> Any:
    if value == "open":
        raise ValueError("open needs its length: `masks: {open: {steps: 200}}`")
    if value is None or value in ("lift", "keep") or isinstance(value, Open | dict):
        return value
    raise ValueError(f"takes lift, keep, or {{open: {{steps: N}}}}; got {format_value(value)}")


def _todays_masks(value: Any) -> Any:
    """The value of `masks` that one of `sparsity`, its old name, means."""
    if isinstance(value, dict) and not value.keys() & {"open", "gradual"}:
        return {"open": value}  # as configs of runs were dumped
    if isinstance(value, dict):
        return {"open" if key == "gradual" else key: below for key, below in value.items()}
    return {"none": "lift", "gradual": "open"}.get(value, value) if isinstance(value, str) else value


class Finetune(Section):
    """`-m finetune`. Length, learning rate and how often dev is scored are set in `trainer.init`, as for training."""

    task: Str  # a task's YAML, relative to the working directory, or a packaged one (configs/eval/)
    data_dir: Str | None = None  # instead of the task's own
    checkpoint: Str | None = None  # a run folder, a step folder or a .mdl; --checkpoint_path wins
    # of the checkpoint: removed, kept, or opened step by step; null for a dense one, or to prune by init.sparsity
    masks: Annotated[Literal["lift", "keep"] | Open | None, BeforeValidator(_masks)] = None
    renamed: ClassVar = (Renamed("sparsity", "masks", _todays_masks),)
    optimizer: Literal["fresh", "keep"] = "fresh"  # the moments of pre-training, or none
    batch_size: Width = 16
    micro_batch_size: Width | None = None
    eval_batch_size: Width = 16
    max_sequence_length: Width | None = None  # default: the model's max_position_embeddings
    seeds: Annotated[tuple[NonNegativeInt, ...] | None, BeforeValidator(listed)] = None  # default: trainer.init.seed
    folds: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(listed), Field(min_length=1)] = (0,)
    num_examples: PositiveInt | None = None  # learn from N training examples only, drawn by their ids
    num_dev_examples: PositiveInt | None = None  # assess on N dev examples only, drawn likewise, for a quick look
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _adds_up(self):
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} must divide batch_size {self.batch_size}")
        for key in ("seeds", "folds"):
            if len(set(getattr(self, key) or ())) != len(getattr(self, key) or ()):
                raise ValueError(f"{key} repeats a number")
        return self
