"""The content of a checkpoint's state.json, whoever writes it: training, an import, Model Zoo's .mdl. No torch."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from modelzoo import version
from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12
from modelzoo.config.loading.load import validate
from modelzoo.config.trainer import Config, Init
from modelzoo.records import Record, check_record
from modelzoo.redact import redact_values

ADAPTERS = ("soft_prompt", "lora")  # sections of trainer.init that add parameters to the model
Count = Annotated[int, Field(ge=0)]
ORDERING = ("batch_size", "shuffle", "shuffle_seed", "num_samples", "use_vsl")  # keys of data that make other batches


class Scale(Record):
    """A loss scale."""

    scale: Annotated[float, Field(gt=0)]
    good_steps: Count
    dynamic: bool | None = None  # older checkpoints lack it


class LoRAFacts(Record):
    """What a resumed run compares of `trainer.init.lora`."""

    r: Annotated[int, Field(gt=0)]
    alpha: float


class LogFacts(Record):
    """A log as it was when its checkpoint was written."""

    bytes: Count
    sha256: str
    unwritten: str = ""  # the end of these bytes, which the file did not take


class CheckpointState(Record):
    """All of a checkpoint that is not a tensor. The defaults are what older checkpoints, which lack the key, meant."""

    global_step: Count  # batches taken, skipped ones included
    dataset: str  # fingerprint of the training data, in which global_step is the position
    model: dict[str, Any]  # trainer.init.model, and so on
    sparsity: list[dict[str, Any]]
    seed: int
    optimizer: str | None  # its class; None: no optimizer state
    finite: bool  # whether every weight is
    loss_scale: Scale
    skipped: Count = 0
    unmended: Count = 0  # TrainState.unavoidable; the key is the file format's
    tokens: Count = 0
    churn: Count = 0
    flops: Annotated[list[Count], Field(default_factory=list, max_length=2)]  # as run, dense-equivalent
    dtype: str | None = None  # the arithmetic of the last steps; None: not on record
    version: str | None = None  # of the code that wrote it
    soft_prompt: dict[str, Any] | None = None
    lora: LoRAFacts | None = None
    config: str | None = None  # the resolved config of the run, YAML without secrets
    config_sha256: str | None = None
    run: str | None = None  # which run it is of: TrainState.origin
    logs: Annotated[dict[str, LogFacts], Field(default_factory=dict)]  # by file name
    slices: Annotated[int, Field(gt=0)] | None = None  # of a batch, in exact sums (TrainState.reduction)
    threads: Annotated[int, Field(gt=0)] | None = None  # of each process, the same
    unassessed: bool = False  # whether the validation that is due at this step has not been made

    @model_validator(mode="after")
    def _adds_up(self):
        if max(self.skipped, self.unmended) > self.global_step:
            raise ValueError("more steps were skipped than taken")
        return self

    @classmethod
    def of(cls, init: Init, *, global_step: int, dataset: str, finite: bool, **known: Any) -> "CheckpointState":
        """The state of a run with config `init`; what `known` leaves out is as at the first step."""
        values = {
            "model": init.model.model_dump(mode="json"),
            "sparsity": [g.model_dump(mode="json") for g in init.sparsity],
            "seed": init.seed,
            "optimizer": init.optimizer.name if init.optimizer else None,
            "loss_scale": {"scale": 1.0, "good_steps": 0},
            "version": version.describe(),
            **{k: part.model_dump(mode="json") for k in ADAPTERS if (part := getattr(init, k)) is not None},
            **known,
        }
        return cls(global_step=global_step, dataset=dataset, finite=finite, **values)

    @classmethod
    def parse(cls, path: str, saved: Mapping[str, Any]) -> "CheckpointState":
        """What state.json of the checkpoint at `path` holds.

        Raises:
            UserError: a key is missing or has another type, so this trainer did not write it.
        """
        return check_record(dict(saved), cls, f"{path}: its state", "it is not what this trainer writes")

    def as_json(self) -> dict[str, Any]:
        """The JSON for state.json, without optional keys that are at their defaults."""
        order = ("global_step", "skipped", "unmended", "tokens", "churn", "flops", "finite", "loss_scale", "dtype",
                 "optimizer", "dataset", "model", "sparsity", "seed", "version", *ADAPTERS,
                 "config", "config_sha256", "run", "logs", "slices", "threads", "unassessed")  # fmt: skip
        found = self.model_dump(exclude_unset=True)
        optional = (
            "dtype",
            "version",
            *ADAPTERS,
            "config",
            "config_sha256",
            "run",
            "logs",
            "slices",
            "threads",
            "unassessed",
        )
        return {k: found.get(k, getattr(self, k)) for k in order if k not in optional or found.get(k)}


def record_config(config: Config | None) -> dict[str, str]:
    """The resolved config as state.json holds it: its YAML, without secrets, and the hash of that."""
    if config is None:
        return {}
    text = yaml12.dump(redact_values(config.model_dump(mode="json", by_alias=True)))
    return {"config": text, "config_sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_config(path: str, saved: Mapping[str, Any]) -> Config | None:
    """The config that the state `saved` of the checkpoint at `path` was trained with; None where it is not on record.

    Raises:
        UserError: it is not the one that was written.
    """
    text = saved.get("config")
    if not isinstance(text, str):
        return None
    if hashlib.sha256(text.encode()).hexdigest() != saved.get("config_sha256"):
        raise UserError(f"{path}: its config does not have the hash next to it; the state was changed")
    try:
        return validate(yaml12.parse(text, path), Config)
    except UserError:  # of a version whose keys this one does not know
        return None


def name_reordering(path: str, saved: Mapping[str, Any], now: Config | None) -> str:
    """The keys of the training data's section by which batches differ from the checkpoint's; empty for none.

    "batch_size 8, now 16, shuffle true, now false"
    """
    before = read_config(path, saved)
    if before is None or now is None or before.trainer.fit is None or now.trainer.fit is None:
        return ""
    old, new = (c.trainer.fit.train_dataloader.model_dump(mode="json") for c in (before, now) if c.trainer.fit)
    return ", ".join(f"{k} {json.dumps(old[k])}, now {json.dumps(new[k])}" for k in ORDERING if old[k] != new[k])
