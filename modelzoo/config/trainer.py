"""The config file as a whole: Model Zoo's trainer format (release 2.3 and later)."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from modelzoo.config import shares
from modelzoo.config.adapters import LoRA, MaybePrompt
from modelzoo.config.base import (
    Bool,
    Float,
    Int,
    Many,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Str,
    Width,
    Workers,
    listed,
    one_of,
)
from modelzoo.config.finetune import Finetune
from modelzoo.config.legacy.upgrade import is_older, upgrade_config
from modelzoo.config.model import GPTConfig
from modelzoo.config.optim import Optimizer, Scheduler
from modelzoo.config.sparsity import SparsityGroups
from modelzoo.config.yaml12 import Document


class Backend(Section):
    """Where to run, and what the chosen device needs to know."""

    backend_type: Annotated[
        Literal["CSX", "GPU", "CPU", "auto"],
        BeforeValidator(lambda v: v.upper() if isinstance(v, str) and v.lower() != "auto" else v),
    ] = "auto"  # auto: CSX if its keys are given, else a GPU if there is one, else CPU
    # fuses what lies between the products; default: on a GPU, where it takes 10 s at the start and gains 7 %; on a CPU
    # it takes 25-90 s on two cores, so by choice
    torch_compile: Bool | None = None
    # GPU: forward and backward with packed weights are captured once and replayed: no launch costs the host time
    cuda_graphs: Bool = True
    num_threads: Many | None = None  # CPU threads; default is torch's own choice
    # each of several processes holds all weights and moments, or a share of them (FSDP2; its sums are fast)
    parallel: Literal["replicate", "shard"] = "replicate"
    # how gradients are summed: exact is to the bit the same for 1, 2, 4, ... processes; default: as the run did so far,
    # else exact for several CPU processes, fast for several GPUs
    reduction: Literal["exact", "fast"] | None = None
    slices: Literal[1, 2, 4, 8, 16, 32, 64] = 8  # of a batch, in exact sums: as many processes at most
    # GPU/CPU: what backward computes again instead of keeping: nothing, each layer, or each layer's attention. The bits
    # stay; it takes less memory and more time
    activation_checkpointing: Literal["none", "layer", "attention"] = "none"
    deterministic: Bool = False  # GPU: refuse kernels that are not reproducible
    # CSX only
    compile_dir: Str | None = None
    num_csx: Many = 1  # systems
    num_workers_per_csx: Workers | None = None  # input workers
    mgmt_address: Str | None = None  # host:port
    credentials_path: Str | None = None  # TLS certificate
    mount_dirs: Annotated[tuple[Str, ...], BeforeValidator(listed)] = ()  # folders that the cluster is to see
    python_paths: Annotated[tuple[Str, ...], BeforeValidator(listed)] = ()  # code that the cluster is to see
    job_labels: Annotated[tuple[Str, ...], BeforeValidator(listed)] = ()
    job_priority: Literal["p1", "p2", "p3"] | None = None
    job_time_sec: PositiveInt | None = None  # time limit, seconds
    disable_version_check: Bool = False
    cluster_config: dict[Str, Any] | None = None

    def candidates(self, target: str) -> tuple[str, ...]:
        """The kinds of device that the command line's `target` may select, in the order in which they are tried."""
        if target != "auto":
            return (target,)
        kinds = ("CSX", "GPU", "CPU")
        return kinds[1:] if self.backend_type == "auto" else kinds[kinds.index(self.backend_type) :]


class Precision(Section):
    """Mixed precision, loss scaling and gradient clipping (Model Zoo's MixedPrecision)."""

    enabled: Bool = True  # false computes in float32
    # used where the device multiplies it; elsewhere float32 (on a GPU float16)
    fp16_type: Literal["float16", "bfloat16", "cbfloat16"] = "bfloat16"
    emulate: Bool = False  # GPU/CPU: true insists on fp16_type where the device does not multiply it (slow)
    precision_opt_level: Literal[0, 1, 2] | None = None  # CSX only
    # acts in float16 only; dynamic where float16 replaces bfloat16
    loss_scaling_factor: PositiveFloat | Literal["dynamic"] | None = 1.0
    initial_loss_scale: PositiveFloat | None = None  # of dynamic scaling
    steps_per_increase: PositiveInt = 2000  # steps without overflow until the scale doubles
    min_loss_scale: PositiveFloat | None = None
    max_loss_scale: PositiveFloat | None = None
    max_gradient_norm: PositiveFloat | None = None  # clip the whole gradient's norm (over live weights)
    max_gradient_value: PositiveFloat | None = None  # clip each entry instead
    log_loss_scale: Bool | None = None

    @model_validator(mode="after")
    def _one_clip(self):
        if self.max_gradient_norm is not None and self.max_gradient_value is not None:
            raise ValueError("give max_gradient_norm or max_gradient_value, not both")
        return self


class Loop(Section):
    """How long to train and when to validate. Steps are optimizer steps."""

    max_steps: PositiveInt | None = None  # optimizer steps in all; give this, num_steps or num_epochs
    num_steps: PositiveInt | None = None  # Model Zoo's name for max_steps
    num_epochs: PositiveInt | None = None  # passes over the training data
    steps_per_epoch: PositiveInt | None = None  # shortens an epoch
    eval_frequency: NonNegativeInt | Annotated[Float, Field(ge=0, le=1)] | None = 1.0  # steps, or a share
    eval_steps: PositiveInt | None = None  # validation batches; default: all
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


class ComputeNorm(Section):
    """Model Zoo's gradient-norm logger; the norm is always logged here."""


class CheckLoss(Section):
    """Model Zoo's stop on a NaN loss; `loop.on_nonfinite` is always on here."""


class KeepNCheckpoints(Section):
    """Model Zoo's name for `checkpoint.keep`."""

    n: PositiveInt | None = None


class _Flags(Section):
    """`csx.*` compile flags; they act on CSX alone."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _csx_only(self):
        if other := [k for k in self.model_extra or {} if not k.startswith("csx.")]:
            raise ValueError(f"unknown flag {other[0]!r}; only csx.* flags are known")
        return self


class GlobalFlags(_Flags):
    pass


class ScopedTrainFlags(_Flags):
    pass


class ScopedValidateFlags(_Flags):
    pass


class Callback(one_of(ComputeNorm, CheckLoss, KeepNCheckpoints, GlobalFlags, ScopedTrainFlags, ScopedValidateFlags)):
    """One of Model Zoo's callbacks, by its class's name."""


class ProgressLogger(Section):
    pass


class TensorBoardLogger(Section):
    summary_dir: Str | None = None  # where events go; default: tensorboard/ in the run's folder
    legacy_event_dirs: Bool = False  # no effect: one folder holds them all


class JSONLLogger(Section):
    pass


class WandbLogger(Section):
    """Weights & Biases (an extra), offline by default: `wandb sync` uploads a run's folder later."""

    project: Str = "mediswift"
    entity: Str | None = None
    mode: Literal["offline", "online"] = "offline"  # offline writes to the run's folder alone


class MLflowLogger(Section):
    """MLflow (an extra)."""

    experiment: Str = "mediswift"
    tracking_uri: Str | None = None  # default: mlflow.db in the run's folder, so that nothing leaves the machine


class Logger(one_of(ProgressLogger, TensorBoardLogger, JSONLLogger, WandbLogger, MLflowLogger)):
    """Where a run's records go, by the logger's class name."""


Folders = Annotated[tuple[Str, ...], Field(min_length=1)]


class Dataset(Section):
    """One part of a mixture."""

    data_dir: Annotated[Folders, BeforeValidator(listed)]
    weight: PositiveFloat  # share of the batches, relative to the others


class DataLoader(Section):
    """HDF5 shards as Model Zoo's GptHDF5MapDataProcessor describes them. `batch_size` is the global batch."""

    # no effect: both names read the same shards in the same order
    data_processor: Literal["GptHDF5MapDataProcessor", "GptHDF5DataProcessor"] = "GptHDF5MapDataProcessor"
    data_dir: Annotated[Folders | None, BeforeValidator(listed)] = None  # folders of shards
    mixture: Annotated[tuple[Dataset, ...], Field(min_length=1)] | None = None  # or several sets, by weight
    batch_size: Width  # sequences of a step, over all micro-batches and devices
    micro_batch_size: Width | Literal["auto"] | None = None  # sequences at a time; must divide batch_size
    shuffle: Bool = False  # over all shards, anew each epoch
    shuffle_seed: NonNegativeInt | None = 0
    max_sequence_length: Width | None = None  # must be the data's
    num_samples: PositiveInt | None = None  # examples to take of the data
    drop_last: Bool | None = None  # no effect: what an epoch leaves over opens the next batch
    num_workers: Workers = 0  # reading processes; 0 reads in the training process
    prefetch_factor: Many | None = 10  # batches that each worker keeps ready
    persistent_workers: Bool = True
    use_worker_cache: Bool = False  # no effect
    use_vsl: Bool = False  # shards of five rows: documents do not see each other
    sort_files: Literal[True] = True
    pad_last: Literal[False] = False

    @model_validator(mode="after")
    def _one_source(self):
        if (self.data_dir is None) == (self.mixture is None):
            raise ValueError("give either data_dir or mixture")
        return self


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
