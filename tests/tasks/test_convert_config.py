"""`run.py convert-config`, `-m plan` of older files, and two training steps on shrunken ones."""

import json
import re
from pathlib import Path

import pytest

from modelzoo.cli import main
from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from tests.support import examples, write_shard

OLD = """
train_input: {data_processor: GptHDF5MapDataProcessor, data_dir: DATA, batch_size: 4, shuffle: True, num_workers: 0}
model:
  hidden_size: 16
  num_hidden_layers: 2
  num_heads: 2
  filter_size: 32
  vocab_size: 37
  max_position_embeddings: 8
  dropout_rate: 0.0
  boundary_casting: False
  mixed_precision: True
  use_bfloat16: True
optimizer:
  optimizer_type: adamw
  learning_rate: [{scheduler: Linear, initial_learning_rate: 0.01, end_learning_rate: 0.001, steps: 2}]
  weight_decay_rate: 0.01
  max_gradient_norm: 1.0
sparsity: {type: rigl, sparsity: 0.5, schedule: {freq: 1}, param_name_patterns: ".*linear_layer.weight"}
runconfig: {max_steps: 2, checkpoint_steps: 0, log_steps: 1, seed: 3, num_wgt_servers: 2, precision_opt_level: 1}
"""
SHRINK = [
    *(f"trainer.init.model.{k}={v}" for k, v in {"hidden_size": 16, "num_heads": 2, "num_hidden_layers": 2}.items()),
    *("trainer.init.model.filter_size=32", "trainer.init.model.vocab_size=37"),
    *("trainer.init.model.max_position_embeddings=8", "trainer.init.checkpoint.steps=null"),
    *("trainer.init.loop.max_steps=2", "trainer.init.logging.log_steps=1"),
    *("trainer.fit.train_dataloader.batch_size=4", "trainer.fit.train_dataloader.micro_batch_size=null"),
    "trainer.fit.train_dataloader.num_workers=0",
]


@pytest.fixture
def data(tmp_path) -> Path:
    write_shard(tmp_path / "data" / "output_chunk_0_0.h5", examples(16))
    return tmp_path / "data"


@pytest.fixture
def old(tmp_path, data) -> str:
    path = tmp_path / "old.yaml"
    path.write_text(OLD.replace("DATA", str(data)))
    return str(path)


def run(*argv: str) -> int:
    return main([str(a) for a in argv])


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_converted_file_is_the_same_config_and_the_same_run(old, tmp_path, capsys):
    new = tmp_path / "new.yaml"
    assert run("convert-config", old, new) == 0
    assert load(new, Config) == load(old, Config)
    for name, path in (("a", old), ("b", new)):
        assert run("CPU", "-p", path, "-m", "train", "-o", tmp_path / name) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and len(losses(tmp_path / "a")) == 2
    capsys.readouterr()
    assert run("convert-config", new, tmp_path / "again.yaml") == 0
    assert "moved" not in capsys.readouterr().out  # today's format has nothing left to move


@pytest.mark.parametrize("today", [False, True])
def test_a_repeated_key_is_written_once_and_said(old, tmp_path, capsys, today):
    """In a file of today's format as well: `run.py` refuses it, and this is the way to mend it."""
    twice, new = Path(old), tmp_path / "new.yaml"
    if today:
        assert run("convert-config", old, tmp_path / "today.yaml") == 0
        twice = tmp_path / "today.yaml"
    once = twice.read_text()
    twice.write_text(re.sub(r"( +)num_heads: 2\n", r"\1num_heads: 4\n\g<0>", once))
    capsys.readouterr()
    assert run("-p", twice, "-m", "plan") == (2 if today else 0)
    assert "num_heads" in (capsys.readouterr().err if today else "num_heads")
    assert run("convert-config", twice, new) == 0
    assert re.search(r"changed +\d+: .*num_heads: given on line \d+ and on line \d+", capsys.readouterr().out)
    assert new.read_text().count("num_heads:") == 1
    twice.write_text(once)
    assert load(new, Config) == load(twice, Config)


def test_each_change_is_said_with_its_line(old, tmp_path, capsys):
    assert run("convert-config", old, tmp_path / "new.yaml") == 0
    printed = capsys.readouterr().out.splitlines()
    text = Path(old).read_text().splitlines()
    for key in (
        *("use_bfloat16", "boundary_casting", "mixed_precision", "optimizer_type", "weight_decay_rate", "steps"),
        *("schedule", "param_name_patterns", "max_steps", "num_wgt_servers", "checkpoint_steps", "precision_opt_level"),
    ):
        (line,) = [i for i, x in enumerate(text, 1) if re.search(rf"\b{key}:", x)]
        assert any(f" {line}: " in s and f"{key}:" in s for s in printed), key
    assert "boundary_casting" not in (tmp_path / "new.yaml").read_text()


def test_nothing_is_overwritten_or_left_behind(old, tmp_path, capsys):
    new = tmp_path / "new.yaml"
    new.write_text("mine")
    assert run("convert-config", old, new) == 2 and new.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert run("convert-config", old, tmp_path / "other.yaml", "--set", "trainer.init.seed=no") == 2
    assert "trainer.init.seed" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "new.yaml", "old.yaml"]
    assert run("convert-config", old, new, "--force") == 0 and load(new, Config) == load(old, Config)


def test_a_secret_is_its_owners_alone_and_in_no_note(old, tmp_path, capsys):
    new = tmp_path / "new.yaml"
    assert run("convert-config", old, new, "--set", "trainer.init.backend.cluster_config.token=CANARY2") == 0
    assert "CANARY2" in new.read_text() and new.stat().st_mode & 0o777 == 0o600
    assert run("-p", new, "-m", "plan", "--set", "trainer.init.backend.cluster_config.token=CANARY2") == 0
    printed = capsys.readouterr()
    assert "CANARY" not in printed.out + printed.err and "cluster_config: acts on the CS-2 only" in printed.out


def test_plan_says_what_has_no_effect(old, capsys):
    assert run("-p", old, "-m", "plan") == 0
    notes = [x for x in capsys.readouterr().out.splitlines() if x.startswith("note")]
    for key in ("num_wgt_servers", "precision_opt_level", "param_name_patterns"):
        assert any(key in n and "old.yaml:" in n for n in notes), key


@pytest.mark.realdata
def test_the_zoos_own_files_plan_and_train_two_shrunken_steps(shared, data, tmp_path, capsys):
    files = sorted((shared / "model_zoo_configs").rglob("*.yaml"))
    assert len(files) >= 20
    for i, path in enumerate(files):
        run("-p", path, "-m", "plan")
        found = capsys.readouterr()  # nobody here has their data, or the memory for the larger ones
        assert "parameters" in found.out, path
        errors = found.err.splitlines()
        known = ("no such data folder", "this machine has")
        assert all(any(k in e for k in known) for e in errors if e.startswith("error: ")), path
        settings = [x for s in [*SHRINK, f"trainer.fit.train_dataloader.data_dir={data}"] for x in ("--set", s)]
        assert run("CPU", "-p", path, "-m", "train", "-o", tmp_path / str(i), *settings) == 0, path
        assert len(losses(tmp_path / str(i))) == 2 and all(0 < x < 5 for x in losses(tmp_path / str(i))), path
