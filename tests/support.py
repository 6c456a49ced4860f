"""Toys that several test files build: configs, runs and shards small enough to check by hand."""

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from modelzoo.backends.local import Local
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.config.sections.device import Backend, Precision
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.trainer import Config

torch.set_num_threads(1)  # toys gain nothing from threads, and lose much to them on a busy machine

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "filter_size": 32,
    "vocab_size": 37,
    "max_position_embeddings": 12,
    "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
}


LOCAL = Local(torch.device("cpu"), Backend(), Precision(enabled=False))  # where runs of `config()` train


def tiny(**fields) -> GPTConfig:
    """A two-layer GPT of width 16, without dropout."""
    return GPTConfig.model_validate({**TINY, **fields})


def config(**init) -> Config:
    """A whole config around the tiny model, in float32; `init` replaces or adds sections of trainer.init."""
    sections = {
        "seed": 7,
        "model": TINY,
        "optimizer": {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "lr": 1e-2}},
        "precision": {"enabled": False},
        "loop": {"max_steps": 50},
        **init,
    }
    fit = {"train_dataloader": {"data_dir": "nowhere", "batch_size": 4}}
    return Config.model_validate({"trainer": {"init": sections, "fit": fit}})


def make_run(**init):
    """A run of `config(**init)` on the CPU, freshly initialised."""
    from modelzoo.backends.select import Choice
    from modelzoo.training.build import build_run

    whole = config(**init)
    precision = whole.trainer.init.precision
    return build_run(whole, Choice(Local(torch.device("cpu"), Backend(), precision), "CPU", None))


def cpu(run) -> Local:
    """The CPU in the arithmetic that the config of `run` asks for."""
    return Local(torch.device("cpu"), Backend(), run.init.precision)


def train_step(run, batch: dict[str, Tensor], micro_batches: int = 1):
    """One step of `run` on the CPU."""
    return cpu(run).train_step(run, batch, micro_batches)


def batch(step: int = 0, size: int = 4, length: int = 12, vocab: int = 37, uneven: bool = False) -> dict[str, Tensor]:
    """Random tokens with shifted labels; `uneven` lets a different number of tokens count in each row."""
    draw = np.random.default_rng(1000 + step)
    ids = draw.integers(0, vocab, (size, length + 1))
    mask = np.ones((size, length), np.int32)
    if uneven:
        for row, n in enumerate(draw.integers(1, length, size)):
            mask[row, n:] = 0
    arrays = {"input_ids": ids[:, :-1], "attention_mask": mask, "labels": ids[:, 1:]}
    return {name: torch.from_numpy(np.ascontiguousarray(x, dtype=np.int32)) for name, x in arrays.items()}


def write_shard(path: Path, data: np.ndarray, n_examples: int | None = -1, **options) -> Path:
    """An HDF5 shard as Model Zoo writes it: gzip, one chunk an example, the attribute `n_examples`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        chunks = (1, *data.shape[1:]) if data.ndim > 1 and len(data) else None
        file.create_dataset("data", data=data, chunks=chunks, compression="gzip" if chunks else None, **options)
        if n_examples is not None:
            file.attrs["n_examples"] = len(data) if n_examples == -1 else n_examples
    return path


def examples(n: int, msl: int = 8, vocab: int = 37, seed: int = 0, rows: int = 3) -> np.ndarray:
    """[n, rows, msl] int32: tokens, loss mask, shifted labels (and spans and positions of one document each)."""
    ids = np.random.default_rng(seed).integers(0, vocab, (n, msl + 1))
    parts = [ids[:, :-1], np.ones((n, msl)), ids[:, 1:]]
    if rows == 5:
        parts += [np.tile(np.arange(msl)[::-1], (n, 1)), np.tile(np.arange(msl), (n, 1))]
    return np.stack(parts, 1).astype(np.int32)


def loader(*folders: Path, **fields) -> DataLoader:
    """A dataloader section over `folders`."""
    return DataLoader.model_validate({"data_dir": [str(p) for p in folders], "batch_size": 4, **fields})


def write_manifest(folder: Path, **facts) -> None:
    """A manifest with the checksum of each shard's tokens in `folder`, as preprocessing leaves it."""
    shards = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            shards.append({"file": path.name, "data_sha256": hashlib.sha256(file["data"][:]).hexdigest()})
    (folder / "manifest.json").write_text(json.dumps({"shards": shards, **facts}))


def local(**precision) -> Local:
    """The CPU backend at a given precision."""
    return Local(torch.device("cpu"), Backend(), Precision.model_validate(precision))
