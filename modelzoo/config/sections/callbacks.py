"""Model Zoo's callbacks and loggers, each by its class's name."""

from typing import Literal

from pydantic import ConfigDict, model_validator

from modelzoo.config.sections.base import Bool, PositiveInt, Section, Str, one_of


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
