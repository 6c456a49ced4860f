"""Tiny runs that several tests read: made once, by the ordinary training task."""

from pathlib import Path

import pytest

from modelzoo.config.trainer import Config
from modelzoo.tasks import pretrain
from modelzoo.training.build import Options
from tests.support import TINY, examples, write_manifest, write_shard

RIGL = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 3, "stop": 10}}


def tiny_config(data: Path, folder: Path, **init) -> Config:
    sections = {
        "seed": 1,
        "model_dir": str(folder),
        "model": TINY,
        "optimizer": {"AdamW": {"lr": 1e-2}},
        "precision": {"enabled": False},
        "loop": {"max_steps": 12, "eval_frequency": 4},
        "checkpoint": {"steps": 4, "keep": None},
        "loggers": ["JSONLLogger"],
        **init,
    }
    loader = lambda split: {"data_dir": str(data / split), "batch_size": 4}
    fit = {"train_dataloader": loader("train"), "val_dataloader": loader("val")}
    return Config.model_validate({"trainer": {"init": sections, "fit": fit}})


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Shards of 60 and 8 random examples of 12 tokens."""
    root = tmp_path_factory.mktemp("data")
    for split, n in (("train", 60), ("val", 8)):
        write_shard(root / split / "a.h5", examples(n, msl=12))
        write_manifest(root / split, n_examples=n, msl=12)
    return root


@pytest.fixture(scope="session")
def runs(data, tmp_path_factory) -> Path:
    """Folders dense-seed1, dense-seed2, s75-seed1, rigl-seed1."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed, sparsity in (
        ("dense-seed1", 1, []), ("dense-seed2", 2, []), ("s75-seed1", 1, 0.75), ("rigl-seed1", 1, RIGL),
    ):  # fmt: skip
        whole = tiny_config(data, root / name, seed=seed, sparsity=sparsity)
        pretrain.train(whole, Options(target="CPU", model_dir=str(root / name)), evaluate=True)
    return root
