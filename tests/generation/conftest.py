"""Checkpoints of tiny models with every weight far from its beginning, and a tokenizer: what generation loads."""

from pathlib import Path

import pytest
import torch

from modelzoo.cli import main
from modelzoo.config.loading.load import dump
from modelzoo.config.trainer import Config
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.evaluation_world import words  # noqa: F401 - a fixture
from tests.support import TINY, make_run

VOCAB = 311  # of the tokenizer


def run(*argv) -> int:
    return main([str(a) for a in argv])


def write_run(folder: Path, words: str, model=None, **init) -> Path:  # noqa: F811
    """A run folder as training leaves it, of `support.config(**init)` with drawn weights."""
    model = {**TINY, "vocab_size": VOCAB, "max_position_embeddings": 48, **(model or {})}
    made = make_run(model=model, **init)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in made.model.named_parameters():
            spread = 0.3 if p.dim() > 1 else 0.1
            p.copy_(torch.randn(p.shape, generator=generator) * spread + ("norm" in name or "ln_f" in name))
        made.sparsity.mask_weights()
    made.step = 1
    files, saved = snapshot(made, "none")
    saving.save(str(folder / "checkpoints"), made.step, files, saved, None)
    config = made.config
    assert isinstance(config, Config)
    (folder / "config.yaml").write_text(dump(config))
    (folder / "tokenizer.json").write_text(words)
    return folder


@pytest.fixture(scope="session")
def make(tmp_path_factory, words):  # noqa: F811
    """Makes a run folder, once for each name."""
    made: dict[str, Path] = {}

    def of(name: str, **fields) -> Path:
        if name not in made:
            made[name] = write_run(tmp_path_factory.mktemp("runs") / "run", words, **fields)
        return made[name]

    return of
