"""A killed run goes on exactly: logs, weights, masks and optimizer state equal the uninterrupted run's, bit by bit."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelzoo.config.loading.load import validate
from modelzoo.config.loading.yaml12 import Document, dump
from modelzoo.config.trainer import Config
from modelzoo.tasks.pretrain import train
from modelzoo.training.build import Options
from tests.commands import kill, start
from tests.support import examples, write_shard

REPO = Path(__file__).resolve().parents[3]
STEPS = 24
UPDATE = {"freq": 5, "stop": 23}  # masks change after steps 5, 10, 15 and 20
ALGORITHMS = {
    "static": {"algorithm": "static", "sparsity": 0.75},
    "gmp": {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.8, "end": 20}, "update": UPDATE},
    "set": {"algorithm": "set", "sparsity": 0.75, "update": UPDATE},
    "rigl": {
        "algorithm": "rigl",
        "sparsity": [0.75, 0.7],  # cycles, so the place in the cycle must resume too
        "drop_fraction": {"type": "cosine", "init": 0.3, "half_period": 24},
        "update": UPDATE,
    },
}
VARIANTS = {
    "smet": {"algorithm": "smet", "sparsity": 0.75, "update": UPDATE, "regrow_warmup": 7},
    "granet": {"algorithm": "granet", "sparsity": ALGORITHMS["gmp"]["sparsity"], "update": UPDATE, "block": [2, 2]},
    "mest": {"algorithm": "mest", "sparsity": 0.75, "update": UPDATE, "block": [2, 2], "storage": "packed"},
    "sr_ste": {"algorithm": "sr_ste", "nm": [2, 4]},
    "chtss": {
        "algorithm": "chtss",
        "sparsity": {"type": "sigmoid", "final": 0.8, "end": 20},
        "update": UPDATE,
        "regrow_warmup": True,
    },
}


def raw_config(data: Path, sparsity: dict, **loop) -> dict:
    """A tiny run with everything that could go wrong on resume: dropout, shuffling over epochs, accumulation, bf16."""
    model = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "filter_size": 32, "vocab_size": 37,
        "max_position_embeddings": 8, "dropout_rate": 0.1, "attention_dropout_rate": 0.1,
    }  # fmt: skip
    warmup = {"LinearLR": {"initial_learning_rate": 0.0, "end_learning_rate": 1e-2, "total_iters": 4}}
    decay = {"CosineDecayLR": {"initial_learning_rate": 1e-2, "end_learning_rate": 1e-3, "total_iters": 20}}
    init = {
        "model": model,
        "optimizer": {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
        "schedulers": [{"SequentialLR": {"schedulers": [warmup, decay]}}],
        "precision": {"max_gradient_norm": 1.0, "emulate": True},  # bf16 on every processor
        "sparsity": sparsity,
        "loop": {"max_steps": STEPS, "grad_accum_steps": 2, **loop},
        "checkpoint": {"steps": 1, "keep": None},
        "loggers": ["ProgressLogger"],
    }
    loader = {"data_dir": str(data), "batch_size": 4, "shuffle": True, "shuffle_seed": 3}
    return {"trainer": {"init": init, "fit": {"train_dataloader": loader}}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shard(folder / "a.h5", examples(11, seed=1))
    write_shard(folder / "b.h5", examples(8, seed=2))  # 19 examples: epochs end inside batches
    return folder


def run(raw: dict, folder: Path) -> None:
    train(validate(Document(raw), Config), Options(target="CPU", model_dir=str(folder)), evaluate=False)


def final(folder: Path) -> tuple[bytes, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The log's bytes, and all tensors of the last checkpoint."""
    last = folder / "checkpoints" / f"step_{STEPS}"
    model = safetensors.torch.load_file(last / "model.safetensors")
    return (folder / "metrics.jsonl").read_bytes(), model, safetensors.torch.load_file(last / "optimizer.safetensors")


def assert_same(ours, reference) -> None:
    assert ours[0] == reference[0], "the loss log differs"
    for mine, theirs in zip(ours[1:], reference[1:], strict=True):
        assert mine.keys() == theirs.keys()
        for name in theirs:
            assert mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]), name


PLACES = {  # the steps from which a run resumes: what most depends on the step does so at every one
    "rigl": range(1, 21),
    **dict.fromkeys(ALGORITHMS.keys() - {"rigl"}, (1, 4, 5, 6, 9, 15, 20)),  # before, at and after updates
    **dict.fromkeys(VARIANTS, (4, 8, 15)),  # and in the middle of warm-ups
}


@pytest.mark.parametrize("algorithm", ALGORITHMS | VARIANTS)
def test_resume_at_every_step_is_bit_equal(algorithm, data, tmp_path):
    section = (ALGORITHMS | VARIANTS)[algorithm]
    raw = raw_config(data, section)
    whole = tmp_path / "whole"
    run(raw, whole)
    reference = final(whole)
    log = [json.loads(line) for line in reference[0].splitlines()]
    assert [r["step"] for r in log] == list(range(1, STEPS + 1))
    changed = [r["step"] for r in log if r["churn"]]
    if algorithm == "sr_ste":
        assert len(changed) > 10  # at any step
    else:
        assert changed == ([] if algorithm == "static" else [5, 10, 15, 20])
    ends = raw_config(data, section)  # the same run, with a checkpoint at its end alone
    ends["trainer"]["init"]["checkpoint"]["steps"] = STEPS
    for k in PLACES[algorithm]:
        part = tmp_path / f"from_{k}"
        (part / "checkpoints").mkdir(parents=True)
        shutil.copytree(whole / "checkpoints" / f"step_{k}", part / "checkpoints" / f"step_{k}")
        # the log ran on past the checkpoint before the kill, and its last line was cut
        (part / "metrics.jsonl").write_bytes(reference[0][: -7 if k % 2 else None])
        run(ends, part)
        assert_same(final(part), reference)
        shutil.rmtree(part)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["static", "rigl"])
def test_kill_dash_nine_and_the_same_command_again(algorithm, data, tmp_path):
    raw = raw_config(data, ALGORITHMS[algorithm])
    raw["trainer"]["init"]["checkpoint"] = {"steps": 3, "keep": 2}
    raw["trainer"]["init"]["logging"] = {"log_steps": 2}  # records and checkpoints fall on different steps
    raw["trainer"]["fit"]["train_dataloader"]["num_workers"] = 1
    config = tmp_path / "config.yaml"
    config.write_text(dump(raw))
    run(raw, tmp_path / "whole")
    folder = tmp_path / "killed"
    command = ["CPU", "-p", str(config), "-m", "train", "-o", str(folder)]
    for lines in (1, 4, 8):  # kill when the log has this many records: before, between and after checkpoints
        process = start(command)
        log, deadline = folder / "metrics.jsonl", time.monotonic() + 120
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < lines):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert kill(process) in (-signal.SIGKILL, 0)
    command = [sys.executable, "run.py", *command]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert_same(final(folder), final(tmp_path / "whole"))


def test_an_interrupt_saves_and_says_how_to_go_on(data, tmp_path):
    raw = raw_config(data, ALGORITHMS["static"], max_steps=100_000)
    raw["trainer"]["init"]["checkpoint"] = {"steps": 50_000}
    config, folder = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(dump(raw))
    with open(tmp_path / "printed", "w+") as printed:
        process = start(["CPU", "-p", config, "-m", "train", "-o", folder], printed)
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_bytes():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert "Traceback" not in (tmp_path / "printed").read_text() and "go on" in (tmp_path / "printed").read_text()
    steps = [int(p.name.removeprefix("step_")) for p in (folder / "checkpoints").iterdir()]
    assert steps == [json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]]


def test_a_finished_run_is_left_alone(data, tmp_path, capsys):
    raw = raw_config(data, ALGORITHMS["static"])
    run(raw, tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    run(raw, tmp_path)
    assert "nothing to do" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
