"""The verbs for a beginner: what they write can be run, and what they name is there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modelzoo.cli import main
from modelzoo.config.loading.load import load
from modelzoo.config.sections.optim import Optimizer
from modelzoo.config.trainer import Config
from modelzoo.evaluation.forms.load import load_task
from modelzoo.sparsity.algorithms import ALGORITHMS
from modelzoo.starting import doctor, first_config, listing
from tests.support import examples, write_manifest, write_shard


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        write_shard(tmp_path / "it's: my #data" / part / "a.h5", examples(40, msl=16))
        write_manifest(tmp_path / "it's: my #data" / part, vocab_size=37, msl=16, n_examples=40)
    write_manifest(tmp_path / "it's: my #data")
    return tmp_path


@pytest.mark.parametrize("level", ["0.75", "0"])
@pytest.mark.parametrize("size", [None, *first_config.SIZES])
def test_a_first_config_fits_the_data_and_is_planned(data, capsys, size, level):
    words = ["init", "first", "--sparsity", level, *(("--size", size) if size else ())]
    assert main(words) == 0
    assert "next       python run.py plan first/config.yaml" in capsys.readouterr().out
    c = load("first/config.yaml", Config).trainer
    assert (c.init.model.vocab_size, c.init.model.max_position_embeddings) == (37, 16)
    assert bool(c.init.sparsity) == (level != "0") and c.fit.train_dataloader.data_dir == ("it's: my #data/train",)
    assert main(["cpu", "plan", "first/config.yaml"]) == 0, capsys.readouterr().err


def test_a_first_config_trains(data, capsys):
    assert main(["init", "first", "--size", "tiny", "--data", "it's: my #data"]) == 0
    few = ["trainer.init.loop.max_steps=2", "trainer.init.model.hidden_size=32", "trainer.init.model.filter_size=64"]
    words = [w for key in few for w in ("--set", key)]
    assert main(["cpu", "train_and_eval", "first/config.yaml", *words]) == 0, capsys.readouterr().err
    assert (data / "first" / "run" / "metrics.jsonl").exists()


def test_init_refuses_what_it_cannot_know(data, capsys):
    (data / "taken").mkdir()
    assert main(["init", "taken"]) == 2 and "taken: exists" in capsys.readouterr().err
    assert main(["init", "x", "--data", "nowhere"]) == 2 and "nowhere: no such data folder" in capsys.readouterr().err
    write_shard(data / "other" / "train" / "a.h5", examples(4, msl=16))
    write_manifest(data / "other")
    assert (
        main(["init", "x"]) == 2 and "data is in it's: my #data, other; name one with --data" in capsys.readouterr().err
    )
    assert main(["init", "x", "--data", "other"]) == 2 and "does not say vocab_size" in capsys.readouterr().err
    assert not (data / "x").exists()


def test_lists_name_what_there_is():
    found = {what: dict(make()) for what, make in listing.LISTS.items()}
    assert found["algorithms"] == {n: (c.__doc__ or "").splitlines()[0] for n, c in ALGORITHMS.items()}
    assert set(found["optimizers"]) == set(Optimizer.model_fields) and "CosineDecayLR" in found["schedules"]
    assert all(load_task(name, ["data_dir=x"]) and about for name, about in found["tasks"].items())
    assert all(yaml.safe_load(Path(name).read_text(encoding="utf-8")) for name in found["configs"])
    keys = found["keys"]
    level = "trainer.init.sparsity.sparsity"
    assert (
        keys[f"{level}.type"].startswith("'constant', 'linear', 'exp'")
        and keys[f"{level}.steepness"] == "6.0 (sigmoid)"
    )
    assert keys[f"{level}.final"] == "None (linear), 1.0 (exp), must be given (cubic, sigmoid)"
    assert keys["trainer.init.loop.on_nonfinite"] == "'stop'" and keys["trainer.init.model.num_heads"] == "12"


def test_a_list_is_searched(capsys):
    assert main(["list", "keys", "CLIP"]) == 2 and "none of the" in capsys.readouterr().err
    assert main(["list", "keys", "max_steps"]) == 0
    assert "trainer.init.loop.max_steps" in capsys.readouterr().out
    assert main(["list", "algoritms"]) == 2 and "did you mean 'algorithms'?" in capsys.readouterr().err


def test_doctor_says_what_is_here(monkeypatch, tmp_path):
    lines = doctor.describe_machine(str(tmp_path))
    assert any(line.startswith("packages   torch ") for line in lines) and lines[-1].startswith("next       ")
    monkeypatch.setattr(doctor, "_find_version", lambda name: None if name == "h5py" else "1")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    text = "\n".join(doctor.describe_machine(str(tmp_path)))
    assert "missing    h5py" in text and "no C++ compiler is here" in text and "no NVIDIA driver" in text


@pytest.mark.parametrize("words", [("doctor",), ("list", "keys"), ("list", "algorithms")])
def test_they_need_no_torch(words):
    code = (
        f"import sys; from modelzoo.cli import main; c = main({list(words)!r}); sys.exit(c or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_completion_names_every_mode_verb_and_flag(shell, capsys):
    assert main(["completion", shell]) == 0
    line = capsys.readouterr().out
    assert {"CPU", "train_and_eval", "generate", "--checkpoint_path"} <= set(line.replace('"', " ").split())
    if shell == "bash" and shutil.which("bash"):
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0


def test_doctor_takes_folders_alone(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name in ("file", "none"):
        assert main(["doctor", str(tmp_path / name)]) == 2
        assert f"{tmp_path / name}: is no folder in which runs could be written" in capsys.readouterr().err
