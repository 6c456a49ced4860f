"""A resumed run is held to its checkpoint's config: changes are named or refused, foreign checkpoints refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelzoo.config.loading.load import load
from modelzoo.config.trainer import Config
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.launch.resume import keep_history
from modelzoo.training.logs.launches import read_launches
from modelzoo.training.runs.folder import RunFolder
from tests.support import examples, write_shard
from tests.training.test_promises import files, run, write_config

INIT, GROUP = "trainer.init", "trainer.init.sparsity.0"
CHANGED = {  # key: the values before and now
    f"{INIT}.optimizer.AdamW.lr": ("0.01", "0.001"),
    f"{INIT}.optimizer.AdamW.weight_decay": ("0.1", "0.2"),
    f"{INIT}.optimizer.AdamW.betas": ("[0.9, 0.999]", "[0.9, 0.95]"),
    f"{INIT}.optimizer.AdamW.eps": ("1e-08", "1e-06"),
    f"{INIT}.model.dropout_rate": ("0.0", "0.1"),
    f"{INIT}.model.attention_dropout_rate": ("0.0", "0.2"),
    f"{INIT}.precision.max_gradient_norm": ("null", "1.0"),
    f"{INIT}.precision.max_gradient_value": ("null", "0.5"),
    f"{INIT}.loop.grad_accum_steps": ("1", "2"),
    f"{INIT}.loop.on_nonfinite": ('"stop"', '"skip"'),
    f"{INIT}.loop.max_steps": ("4", "7"),
    f"{INIT}.checkpoint.keep": ("3", "2"),
    f"{GROUP}.update.freq": ("2", "3"),
    f"{GROUP}.drop_fraction.value": ("0.3", "0.2"),
}
REFUSED = {  # key: the value now, and what the line names
    f"{INIT}.seed": ("9", "seed: 1 -> 9"),
    f"{GROUP}.algorithm": ("set", 'algorithm: "rigl" -> "set"'),
    f"{GROUP}.sparsity": ("0.5", "sparsity"),
    f"{GROUP}.seed": ("3", "seed"),
    f"{GROUP}.param_filter": ('["*proj_q*"]', "sparse in one of checkpoint and config only"),
    f"{INIT}.model.nonlinearity": ("relu", "model.nonlinearity"),
    f"{INIT}.optimizer": ("{SGD: {lr: 0.1}}", "SGD"),
    "trainer.fit.train_dataloader.batch_size": ("2", "in other batches (batch_size 4, now 2)"),
    "trainer.fit.train_dataloader.shuffle": ("true", "in other batches (shuffle false, now true)"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shard(tmp_path_factory.mktemp("data") / "a.h5", examples(19, seed=1)).parent


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A config, next to a run of it."""
    folder = tmp_path_factory.mktemp("trained")
    sparsity = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 2}, "drop_fraction": 0.3}
    adam = {"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}
    write_config(folder / "c.yaml", data, sparsity=[sparsity], optimizer={"AdamW": adam})
    assert run(folder / "c.yaml", folder / "run") == 0
    return folder


def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def edited(folder: Path, key: str, value: str) -> None:
    """config.yaml as a user's editor leaves it."""
    from modelzoo.config.loading.load import dump

    (folder / "config.yaml").write_text(dump(load(folder / "config.yaml", Config, [f"{key}={value}"])))


@pytest.mark.parametrize("hand", [False, True], ids=["as it was", "config.yaml edited"])
@pytest.mark.parametrize("key", CHANGED)
def test_every_change_is_named(key, hand, trained, tmp_path, capsys):
    """Also where config.yaml in the folder was edited to what is now asked: the checkpoint's config decides."""
    folder, (before, now) = copy(trained, tmp_path), CHANGED[key]
    if hand:
        edited(folder, key.removesuffix(".value"), now)
    capsys.readouterr()
    assert run(trained / "c.yaml", folder, "--max_steps", 7, "--set", f"{key.removesuffix('.value')}={now}") == 0
    printed = capsys.readouterr().err
    assert f"changed    {key}: {before} -> {now}\n" in printed
    changes = read_launches(RunFolder(str(folder))).records[-1]["changes"]
    assert changes[key] == [before, now]
    assert changes.keys() == {key, f"{INIT}.loop.max_steps"}, "nothing else is called changed"
    assert load(folder / "config.until_4.yaml", Config) == load(trained / "run/config.yaml", Config)


def test_a_former_config_is_kept_once(tmp_path):
    """Also where a launch ended after it kept it, and the next one keeps it too."""
    for text in ("a: 1\n", "a: 1\n", "a: 2\n", "a: 1\n"):
        keep_history(RunFolder(str(tmp_path)), SimpleNamespace(resumed_from={"config": text}, step=4))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "config.until_4.yaml": "a: 1\n", "config.until_4_2.yaml": "a: 2\n",
    }  # fmt: skip


@pytest.mark.parametrize("hand", [False, True], ids=["as it was", "config.yaml edited"])
@pytest.mark.parametrize("key", REFUSED)
def test_what_contradicts_the_checkpoint_is_refused(key, hand, trained, tmp_path, capsys):
    folder, (value, named) = copy(trained, tmp_path), REFUSED[key]
    if hand:
        edited(folder, key, value)
    before = files(folder), (folder / "launches.jsonl").read_bytes()
    capsys.readouterr()
    assert run(trained / "c.yaml", folder, "--max_steps", 7, "--set", f"{key}={value}") == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert named in line
    assert (files(folder), (folder / "launches.jsonl").read_bytes()) == before


def rewrite(step: Path, change) -> None:
    """A checkpoint with a changed state.json, and the manifest that fits."""
    tensors, state = checkpoint.load(str(step))
    change(state)
    saving.save(str(step.parent), int(step.name.removeprefix("step_")), tensors, state, None)


def as_older(state: dict) -> None:
    for key in ("config", "config_sha256", "run", "logs", "unassessed"):
        state.pop(key, None)


@pytest.mark.parametrize("gone", [(), ("config.yaml",), ("config.yaml", "launches.jsonl")])
def test_older_checkpoints_resume(gone, trained, tmp_path, capsys):
    """By config.yaml; without it the seed and the algorithms are still on record."""
    folder = copy(trained, tmp_path)
    for step in (folder / "checkpoints").iterdir():
        rewrite(step, as_older)
    for name in gone:
        (folder / name).unlink()
    for key in (f"{INIT}.seed", f"{GROUP}.algorithm"):
        assert run(trained / "c.yaml", folder, "--max_steps", 6, "--set", f"{key}={REFUSED[key][0]}") == 2
        assert key.rpartition(".")[2] in capsys.readouterr().err or "sparsity" in key
    assert run(trained / "c.yaml", folder, "--max_steps", 6) == 0
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert "run" in checkpoint.read_state(str(folder / "checkpoints/step_6"))


def test_a_config_that_was_changed_in_the_state_is_refused(trained, tmp_path, capsys):
    folder = copy(trained, tmp_path)
    rewrite(folder / "checkpoints/step_4", lambda state: state.update(config=state["config"].replace("0.01", "0.02")))
    assert run(trained / "c.yaml", folder, "--max_steps", 6) == 2
    assert "step_4: its config does not have the hash next to it" in capsys.readouterr().err


def test_a_foreign_checkpoint_is_refused(data, trained, tmp_path, capsys):
    """Another run's, with fitting shapes, copied in."""
    folder = copy(trained, tmp_path)
    more = ["--max_steps", 8, "--set", f"{INIT}.optimizer.AdamW.lr=0.02"]
    assert run(trained / "c.yaml", tmp_path / "other", *more) == 0
    shutil.copytree(tmp_path / "other/checkpoints/step_8", folder / "checkpoints/step_8")
    before = files(folder)
    capsys.readouterr()
    assert run(trained / "c.yaml", folder, "--max_steps", 9) == 2
    assert "step_8, is of another run" in capsys.readouterr().err and files(folder) == before
    shutil.rmtree(folder / "checkpoints/step_8")
    assert run(trained / "c.yaml", folder, "--max_steps", 9) == 0


def test_the_same_run_is_the_same_wherever_it_is(trained, data, tmp_path):
    """Its checkpoints differ in nothing but what was measured, so either may take the other's."""
    assert run(trained / "c.yaml", tmp_path / "again", "--max_steps", 2) == 0
    assert run(trained / "c.yaml", tmp_path / "again") == 0
    a, b = (checkpoint.read_state(str(p / "checkpoints/step_4")) for p in (trained / "run", tmp_path / "again"))
    assert a.pop("logs")["metrics.jsonl"] == b.pop("logs")["metrics.jsonl"]
    assert a == b


@pytest.mark.parametrize("state,named", [
    ({"global_step": "4"}, "state.json: global_step"), ({"finite": 1}, "state.json: finite"),
    ({"loss_scale": {"scale": 0, "good_steps": 0}}, "its state: loss_scale.scale"), ({"flops": [1, 2, 3]}, "flops"),
    ({"dataset": None}, "its state: dataset"), ({"skipped": 5}, "more steps were skipped than taken"),
    ({"seed": 1.5}, "seed"), ({"sparsity": {}}, "sparsity"), ({"logs": {"metrics.jsonl": 3}}, "logs.metrics.jsonl"),
])  # fmt: skip
def test_a_state_of_another_form_is_one_line_with_its_key(state, named, trained, tmp_path, capsys):
    folder = copy(trained, tmp_path)
    rewrite(folder / "checkpoints/step_4", lambda found: found.update(state))
    capsys.readouterr()
    assert run(trained / "c.yaml", folder, "--max_steps", 6) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "step_4" in line and named in line


def test_a_refused_launch_changes_nothing(trained, tmp_path, capsys, monkeypatch):
    """A tracker that is not installed, a checkpoint folder that cannot be: config.yaml is as it was."""
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    folder = copy(trained, tmp_path)
    (tmp_path / "file").write_text("")
    before = files(folder), (folder / "launches.jsonl").read_bytes()
    for more in (["trainer.init.loggers=[WandbLogger]"], [f"trainer.init.checkpoint.checkpoint_root={tmp_path}/file"]):
        for again in ([], ["--restart"]):
            assert run(trained / "c.yaml", folder, "--max_steps", 6, "--set", *more, *again) == 2
            assert (files(folder), (folder / "launches.jsonl").read_bytes()) == before


def test_secrets_stay_out_of_checkpoints(trained, tmp_path, capsys):
    secret = "https://user:hunter2@host/x"
    more = ["--set", f"{INIT}.backend.cluster_config={{api_token: hunter2, url: '{secret}'}}"]
    assert run(trained / "c.yaml", tmp_path / "run", *more) == 0
    assert run(trained / "c.yaml", tmp_path / "run", "--max_steps", 6, *more) == 0
    assert "cluster_config" not in capsys.readouterr().err.partition("changed")[2]
    for file in (tmp_path / "run/checkpoints").rglob("*.json"):
        assert "hunter2" not in file.read_text()
