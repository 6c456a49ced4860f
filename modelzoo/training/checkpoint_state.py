"""The content of a checkpoint's state.json, whoever writes it: training, an import, Model Zoo's .mdl. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from modelzoo import version
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Init

ADAPTERS = ("soft_prompt", "lora")  # sections of trainer.init that add parameters to the model
_NEEDED = ("global_step", "dataset", "model", "sparsity", "seed", "optimizer", "finite", "loss_scale")


@dataclass(frozen=True)
class CheckpointState:
    """All of a checkpoint that is not a tensor. The defaults are what older checkpoints, which lack the key, meant."""

    global_step: int  # batches taken, skipped ones included
    dataset: str  # fingerprint of the training data, in which global_step is the position
    model: Mapping[str, Any]  # trainer.init.model, and so on
    sparsity: list[Mapping[str, Any]]
    seed: int
    optimizer: str | None  # its class; None: no optimizer state
    finite: bool  # whether every weight is
    loss_scale: Mapping[str, Any]  # scale, good_steps, dynamic
    skipped: int = 0
    unmended: int = 0  # TrainState.unavoidable; the key is the file format's
    tokens: int = 0
    churn: int = 0
    flops: tuple[int, ...] = ()  # as run, dense-equivalent
    dtype: str | None = None  # the arithmetic of the last steps; None: not on record
    version: str | None = None  # of the code that wrote it
    soft_prompt: Mapping[str, Any] | None = None
    lora: Mapping[str, Any] | None = None

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
            UserError: it lacks a key, so this trainer did not write it.
        """
        if lacking := [k for k in _NEEDED if k not in saved]:
            raise UserError(f"{path}: its state has no {lacking[0]}; it is not what this trainer writes")
        return cls(**{f.name: saved[f.name] for f in fields(cls) if f.name in saved})

    def as_json(self) -> dict[str, Any]:
        """The JSON for state.json, without optional keys that are None."""
        order = ("global_step", "skipped", "unmended", "tokens", "churn", "flops", "finite", "loss_scale", "dtype",
                 "optimizer", "dataset", "model", "sparsity", "seed", "version", *ADAPTERS)  # fmt: skip
        found = {k: getattr(self, k) for k in order}
        found["flops"] = list(self.flops)
        return {k: v for k, v in found.items() if k not in ("dtype", "version", *ADAPTERS) or v is not None}
