"""The config file as a whole: Model Zoo's trainer format (release 2.3 and later)."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from modelzoo.config.legacy.upgrade import is_older, upgrade_config
from modelzoo.config.loading.yaml12 import Document
from modelzoo.config.sections.adapters import LoRA, MaybePrompt
from modelzoo.config.sections.base import Bool, Float, Int, NonNegativeInt, PositiveInt, Section, Str, Width, listed
from modelzoo.config.sections.callbacks import Callback, Logger
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.config.sections.device import Backend, Precision
from modelzoo.config.sections.finetune import Finetune
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.sections.optim import Optimizer, Scheduler
from modelzoo.config.sections.sparsity import SparsityGroups
from modelzoo.config.values import shares


class Loop(Section):
    """How long to train and when to validate. Steps are optimizer steps."""

    max_steps: PositiveInt | None = None  # optimizer steps in all; give this, num_steps or num_epochs
    num_steps: PositiveInt | None = None  # Model Zoo's name for max_steps
    num_epochs: PositiveInt | None = None  # passes over the training data
    steps_per_epoch: PositiveInt | None = None  # shortens an epoch
    eval_frequency: NonNegativeInt | Annotated[Float, Field(ge=0, le=1)] | None = 1.0  # steps, or a share
    eval_steps: PositiveInt | None = None  # validation batches, spread evenly over the set; default: all
    grad_accum_steps: Width = 1  # micro-batches that a batch is cut into
    on_nonfinite: Literal["stop", "skip"] = "stop"  # what to do when loss or gradient is not finite
    max_skipped_steps: PositiveInt = 100  # with skip: how many in one run before it stops all the same

    @model_validator(mode="after")
    def _one_length(self):
        given = [k for k in ("max_steps", "num_steps", "num_epochs") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of max_steps, num_steps and num_epochs, not {' and '.join(given)}")
        return self


ALL_STATES = ("model", "optimizer", "sparsity", "grad_scaler", "dataloader", "global_step")  # parts of a checkpoint


class Checkpoint(Section):
    steps: PositiveInt | None = None  # steps between checkpoints; the last step always has one
    save_initial_checkpoint: Bool = False  # also before the first step
    background: Bool = True  # write from a copy (weights and moments once more, in host memory) while training goes on
    autoload_last_checkpoint: Bool = True  # go on from the newest whole one
    disable_strict_checkpoint_loading: Bool = False  # take the parameters that fit
    checkpoint_name: Str = "checkpoint_{step}.mdl"  # no effect: checkpoints are step folders
    checkpoint_root: Str | None = None  # default: checkpoints/ in the run's folder
    keep: PositiveInt | None = 3  # newest that stay on disk; null keeps all


class Logging(Section):
    log_steps: PositiveInt = 1  # steps between records of metrics.jsonl
    # info: the live line and notes; warning: notes alone; error: neither. Other packages' records follow, but for info
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"


class Init(Section):
    backend: Backend = Backend()
    device: Str | None = None  # Model Zoo's short form of backend.backend_type
    model_dir: Str = "./model_dir"  # the run's folder; -o wins
    seed: NonNegativeInt = 1  # of weights, masks and dropout
    model: GPTConfig
    tokenizer: Str | None = None  # a tokenizer.json or a folder with one; default: the one next to the training data
    optimizer: Optimizer | None = None
    schedulers: Annotated[tuple[Scheduler, ...], BeforeValidator(listed)] = ()
    precision: Precision = Precision()
    sparsity: SparsityGroups = ()  # a number, a group, or a list of groups
    soft_prompt: MaybePrompt = None
    lora: LoRA | None = None
    loop: Loop = Loop()
    checkpoint: Checkpoint = Checkpoint()
    logging: Logging = Logging()
    callbacks: Annotated[tuple[Callback, ...], BeforeValidator(listed)] = ()
    loggers: Annotated[tuple[Logger, ...], BeforeValidator(listed)] = ()
    autorestart: dict[Str, Any] | None = None  # no effect: the same command resumes

    @model_validator(mode="before")
    @classmethod
    def _device(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("device"), str):
            return value
        backend = value.get("backend") or {}
        if not isinstance(backend, dict):
            return value
        named = backend.get("backend_type", value["device"])
        if str(named).lower() != value["device"].lower():
            raise ValueError(f"device: {value['device']} is not backend.backend_type: {named}; give one of them")
        return {**value, "backend": {**backend, "backend_type": named}}

    @model_validator(mode="after")
    def _one_schedule(self):
        if len(self.schedulers) > 1:
            raise ValueError(
                "schedulers: one learning-rate schedule drives all parameters; join them in a SequentialLR"
            )
        if self.optimizer is not None and self.optimizer.value.lr is not None and self.schedulers:
            raise ValueError("give the learning rate once: either optimizer lr or schedulers")
        return self

    @model_validator(mode="after")
    def _warmup_has_moments(self):
        if self.optimizer is not None and any(g.regrow_warmup for g in self.sparsity):
            if self.optimizer.name == "SGD":
                raise ValueError(
                    "sparsity.regrow_warmup: scales Adam's first moment by a regrown weight's age, and SGD counts no "
                    "ages; use Adam or AdamW, or set it to null"
                )
            if not self.optimizer.value.correct_bias:
                raise ValueError(
                    "sparsity.regrow_warmup: goes with Adam's correct_bias, without which no ages are counted; set it "
                    "to true, or regrow_warmup to null"
                )
        return self

    @model_validator(mode="after")
    def _one_trained_part(self):
        if self.lora is not None and self.soft_prompt is not None and self.soft_prompt.train == "all":
            raise ValueError("lora freezes the model: with it, soft_prompt.train must be `prompt`, not `all`")
        return self

    @property
    def base_frozen(self) -> Bool:
        """Whether the model's own weights stay as they are, and only a soft prompt or LoRA trains."""
        return self.lora is not None or (self.soft_prompt is not None and self.soft_prompt.train == "prompt")


class Fit(Section):
    train_dataloader: DataLoader
    val_dataloader: Annotated[tuple[DataLoader, ...], BeforeValidator(listed)] = ()
    ckpt_path: Str | None = None  # start here where the run's folder has no checkpoint


class Validate(Section):
    val_dataloader: DataLoader
    ckpt_path: Str | None = None


class ValidateAll(Section):
    val_dataloaders: Annotated[tuple[DataLoader, ...], BeforeValidator(listed)]
    # run folders, step folders or .mdl files, each evaluated; without them eval_all takes all of the run's folder
    ckpt_paths: Annotated[tuple[Str, ...], BeforeValidator(listed)] = ()


class Trainer(Section):
    init: Init
    fit: Fit | None = None
    finetune: Finetune | None = None
    validate_: Validate | None = Field(None, alias="validate")
    validate_all: ValidateAll | None = None

    @model_validator(mode="before")
    @classmethod
    def _shares(cls, value: Any) -> Any:
        return shares.resolve(value)

    @model_validator(mode="after")
    def _adds_up(self):
        accum, fit = self.init.loop.grad_accum_steps, self.fit
        if fit is not None and fit.train_dataloader.batch_size % accum:
            batch = fit.train_dataloader.batch_size
            raise ValueError(f"grad_accum_steps {accum} must divide fit.train_dataloader.batch_size {batch}")
        return self


class Config(Section):
    """`trainer:` is the only top-level key (besides `extends:`, which the loader resolves)."""

    trainer: Trainer

    @staticmethod
    def upgrade(doc: Document, child: Document | None = None) -> None:
        """Older dialects of the zoo become this one (for `load`)."""
        if child is None or not is_older(child):
            upgrade_config(doc)

    @property
    def keep_checkpoints(self) -> Int | None:
        """How many checkpoints stay: a KeepNCheckpoints callback overrides `checkpoint.keep`."""
        init = self.trainer.init
        named = [c.value.n for c in init.callbacks if c.name == "KeepNCheckpoints"]
        return named[-1] if named else init.checkpoint.keep
