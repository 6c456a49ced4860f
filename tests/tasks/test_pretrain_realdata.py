"""The main job on real abstracts: XML to shards to a trained model, dense, static 75 % and RigL 75 %, in short."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

from tests.commands import start

REPO = Path(__file__).resolve().parents[2]
STEPS, VOCAB, LAYERS = 40, 4096, 2


@pytest.fixture(scope="module")
def shards(shared_data: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pubmed") / "shards"
    sources = [str(shared_data / "pubmed_real"), str(shared_data / "pubmed_wrapped" / "pmcfront_0003.xml.gz")]
    flags = ["--tokenizer", "train", "--vocab_size", str(VOCAB), "--msl", "64", "--val_fraction", "0.1", "--quiet"]
    command = [sys.executable, "-m", "data_preprocessing", "pubmed", "--input", *sources, "--output", str(out), *flags]
    subprocess.run(command, cwd=REPO, check=True, timeout=900)
    return out


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "static75", "rigl75"])
def test_pretraining_learns_and_stays_sparse(name, shards, tmp_path, monkeypatch):
    decay = "{CosineDecayLR: {initial_learning_rate: 2e-3, end_learning_rate: 2e-4, total_iters: 40}}"
    settings = {
        "trainer.fit.train_dataloader.data_dir": shards / "train",
        "trainer.fit.val_dataloader.data_dir": shards / "val",
        "trainer.fit.train_dataloader.batch_size": 4,
        "trainer.init.model.vocab_size": VOCAB,
        "trainer.init.model.num_hidden_layers": LAYERS,
        "trainer.init.loop.eval_frequency": 1.0,
        "trainer.init.loop.eval_steps": 20,
        "trainer.init.schedulers": f"[{decay}]",
    }
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = ["CPU", "-p", f"configs/pubmed/{name}.yaml", "-o", tmp_path, "--max_steps", STEPS, *flags]
    monkeypatch.chdir(REPO)
    with open(tmp_path / "printed", "w") as printed:
        done = start([*command, "-m", "train_and_eval"], printed)
        assert done.wait() == 0, (tmp_path / "printed").read_text()
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    train = [r for r in log if r["kind"] == "train"]
    (validation,) = [r for r in log if r["kind"] == "validation"]
    # an untrained model is uniform over the vocabulary, and the text is learned from there
    assert train[0]["loss"] == pytest.approx(math.log(VOCAB), abs=0.2)
    assert validation["loss"] < math.log(VOCAB) - 0.8
    model = safetensors.torch.load_file(tmp_path / "checkpoints" / f"step_{STEPS}" / "model.safetensors")
    masks = {n.removesuffix("_mask"): m for n, m in model.items() if n.endswith("_mask")}
    assert len(masks) == (0 if name == "dense" else LAYERS * 6)
    for weight, mask in masks.items():
        assert int(mask.sum()) == mask.numel() // 4
        assert not model[weight][~mask].any()
