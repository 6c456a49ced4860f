"""Keys that act: where events go, what a validation holds, which checkpoints are evaluated, what is shown, and how
strictly a checkpoint is loaded."""

import json
import logging
from pathlib import Path

import pytest

from modelzoo import cli, progress
from modelzoo.config.loading.load import dump
from modelzoo.config.trainer import Config
from modelzoo.training.logs.lines import read_records
from tests.support import TINY, config, examples, write_shard


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Data, and a run of four steps with a checkpoint after each second one."""
    root = tmp_path_factory.mktemp("keys")
    write_shard(root / "data" / "a.h5", examples(12, msl=12))
    (root / "c.yaml").write_text(dump(whole(root)))
    assert cli.main(argv(root, "train_and_eval", "-o", root / "run")) == 0
    return root


def whole(root: Path, **init) -> Config:
    sections = {"loop": {"max_steps": 4, "eval_frequency": 2}, "checkpoint": {"steps": 2}, "loggers": ["JSONLLogger"]}
    made = config(**{**sections, **init}).model_dump(mode="json", by_alias=True)
    loader = {"data_dir": str(root / "data"), "batch_size": 4}
    made["trainer"]["fit"] = {"train_dataloader": loader, "val_dataloader": loader}
    return Config.model_validate(made)


def argv(root: Path, mode: str, *more) -> list[str]:
    return [str(x) for x in ("CPU", "-p", root / "c.yaml", "-m", mode, *more)]


@pytest.fixture(autouse=True)
def shown_as_before():
    yield
    logging.getLogger("modelzoo").setLevel(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)


def test_summary_dir_is_where_events_go(world, tmp_path):
    events = tmp_path / "events"
    loggers = f"trainer.init.loggers=[TensorBoardLogger: {{summary_dir: {events}}}]"
    assert cli.main(argv(world, "train", "-o", tmp_path / "run", "--set", loggers)) == 0
    assert list(events.glob("events.out.*")) and not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("wanted", [True, False])
def test_compute_eval_metrics(world, tmp_path, capsys, wanted):
    key = f"trainer.init.model.compute_eval_metrics={str(wanted).lower()}"
    assert cli.main(argv(world, "train_and_eval", "-o", tmp_path / "run", "--set", key)) == 0
    records = [r for r in read_records(str(tmp_path / "run" / "metrics.jsonl")).records if r["kind"] == "validation"]
    assert len(records) == 2 and all(("accuracy" in r) == wanted and r["perplexity"] > 1 for r in records)
    assert cli.main(argv(world, "eval", "-o", tmp_path / "run", "--set", key)) == 0
    (result,) = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert ("accuracy" in result) == wanted and result["loss"] == pytest.approx(records[-1]["loss"])
    assert ("accuracy" in capsys.readouterr().out) == wanted


def test_validate_all_evaluates_each_of_its_checkpoints(world, tmp_path):
    loader = f"{{data_dir: {world / 'data'}, batch_size: 4}}"
    named = f"[{world / 'run/checkpoints/step_2'}, {world / 'run'}]"
    keys = ("--set", f"trainer.validate_all={{val_dataloaders: [{loader}], ckpt_paths: {named}}}")
    logged = [
        r["loss"] for r in read_records(str(world / "run" / "metrics.jsonl")).records if r["kind"] == "validation"
    ]
    for mode, more in (("eval_all", keys), ("eval", keys), ("eval_all", ())):
        out = world / "run" if not more else tmp_path
        assert cli.main(argv(world, mode, "-o", out, *more)) == 0
        found = json.loads((out / "eval.json").read_text())
        assert [r["step"] for r in found] == [2, 4]
        assert [r["loss"] for r in found] == pytest.approx(logged, rel=1e-5)
    assert cli.main(argv(world, "eval", "-o", world / "run")) == 0
    assert [r["step"] for r in json.loads((world / "run" / "eval.json").read_text())] == [4]


def test_a_missing_checkpoint_of_the_list_is_named(world, tmp_path, capsys):
    loader = f"{{data_dir: {world / 'data'}, batch_size: 4}}"
    key = f"trainer.validate_all={{val_dataloaders: [{loader}], ckpt_paths: [{tmp_path / 'gone'}]}}"
    assert cli.main(argv(world, "eval_all", "-o", tmp_path, "--set", key)) == 2
    assert f"{tmp_path / 'gone'}: no such checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("strict", [True, False])
def test_disable_strict_checkpoint_loading(world, tmp_path, strict):
    """A model with one more layer than the checkpoint: the key takes what fits, as the flag does."""
    more = ("--set", f"trainer.init.model.num_hidden_layers={TINY['num_hidden_layers'] + 1}")
    key = ("--set", f"trainer.init.checkpoint.disable_strict_checkpoint_loading={str(not strict).lower()}")
    start = ("--checkpoint_path", world / "run/checkpoints/step_4", "--load_checkpoint_states", "model")
    flag = cli.main(argv(world, "train", "-o", tmp_path / "a", *more, *start, "--disable_strict_checkpoint_loading"))
    assert flag == 0
    assert cli.main(argv(world, "train", "-o", tmp_path / "b", *more, *key, *start)) == (2 if strict else 0)


@pytest.mark.parametrize("level,live,notes", [("debug", True, True), ("info", True, True), ("warning", False, True),
                                              ("error", False, False), ("critical", False, False)])  # fmt: skip
def test_log_level(world, tmp_path, capsys, level, live, notes):
    assert cli.main(argv(world, "train", "-o", tmp_path / "run", "--logging", level.upper())) == 0
    out, err = capsys.readouterr()
    assert ("step 4/4" in err, "device     CPU" in err) == (live, notes)
    assert out.startswith("done: steps 0 to 4")


def test_the_level_of_other_packages_follows_but_for_info(monkeypatch):
    asked = []
    monkeypatch.setattr(logging, "basicConfig", lambda **kw: asked.append(kw["level"]))
    for level in ("info", "debug", "error"):
        progress.set_level(level)
    assert asked == ["DEBUG", "ERROR"]


def test_notes_are_printed_before_a_run_and_in_a_plan(world, tmp_path, capsys):
    keys = ("--set", "trainer.fit.train_dataloader.drop_last=true", "--set", "trainer.init.optimizer=SGD")
    keys = (*keys, "--set", "trainer.init.schedulers=[{ConstantLR: {learning_rate: 0.1}}]")
    wanted = ["train_dataloader.drop_last: nothing is dropped", "SGD takes the place of AdamW"]
    assert cli.main(argv(world, "plan", *keys)) == 0
    plan = capsys.readouterr().out
    for more in ((), ("--validate_only",)):
        assert cli.main(argv(world, "train", "-o", tmp_path / "run", *keys, *more)) == 0
        err = capsys.readouterr().err
        for text in wanted:
            for where in (plan, err):
                assert sum(x.startswith("note       ") and text in x for x in where.splitlines()) == 1
