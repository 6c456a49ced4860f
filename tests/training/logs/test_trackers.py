"""Trackers get what a run's own logs get, offline by default; a missing package is one line."""

import json
import sys
import types

import pytest

from modelzoo.config.errors import UserError
from modelzoo.tasks import pretrain
from modelzoo.training.build import Options
from modelzoo.training.logs import trackers
from modelzoo.training.logs.writing import Logs
from modelzoo.training.runs.folder import RunFolder
from tests.study.conftest import tiny_config
from tests.support import config, examples, write_manifest, write_shard


class Wandb(types.ModuleType):
    """What the tracker uses of wandb, remembered."""

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.logged, self.ended = [], [], 0

    def init(self, **options):
        self.begun.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.ended += 1


class MLflow(types.ModuleType):
    """What the tracker uses of mlflow, remembered."""

    def __init__(self):
        super().__init__("mlflow")
        self.runs, self.logged, self.uris = {}, [], []
        self.MlflowClient = lambda tracking_uri: self.uris.append(tracking_uri) or self

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=name)

    def search_runs(self, experiments, text):
        return [r for tag, r in self.runs.items() if tag in text]

    def create_run(self, experiment, tags, run_name):
        run = types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"{experiment}/{run_name}"))
        return self.runs.setdefault(tags["mediswift"], run)

    def log_metric(self, run, key, value, step):
        self.logged.append((run, step, key, value))

    def set_terminated(self, run):
        self.logged.append((run, "end"))


def test_wandb_gets_every_record_offline(tmp_path, monkeypatch):
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for split, n in (("train", 60), ("val", 8)):
        write_shard(tmp_path / split / "a.h5", examples(n, msl=12))
        write_manifest(tmp_path / split, n_examples=n, msl=12)
    folder = tmp_path / "run"
    whole = tiny_config(tmp_path, folder, loggers=["WandbLogger"], loop={"max_steps": 3})
    pretrain.train(whole, Options("CPU", str(folder)), evaluate=True)
    assert fake.begun[0]["mode"] == "offline" and fake.begun[0]["dir"] == str(folder) and fake.ended == 1
    assert fake.begun[0]["config"]["model"]["hidden_size"] == 16
    for name in ("metrics", "timing"):
        for record in map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines()):
            step, kind = record.pop("step"), record.pop("kind")
            assert any(s == step and {f"{kind}/{k}": v for k, v in record.items()}.items() <= x.items()
                       for s, x in fake.logged)  # fmt: skip


def test_a_resumed_run_goes_on_in_the_same_tracked_run(tmp_path, monkeypatch):
    wandb, mlflow = Wandb(), MLflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    init = config(loggers=["WandbLogger", {"MLflowLogger": {"experiment": "e"}}]).trainer.init
    for step, folder in ((1, "a"), (2, "a"), (3, "b")):
        logs = Logs(RunFolder(str(tmp_path / folder)), step - 1, None, trackers.open_all(init, str(tmp_path / folder)))
        logs.write(step, "train", {"loss": 1.0}, {})
        logs.close()
    first, again, other = (b["id"] for b in wandb.begun)
    assert first == again != other
    assert [x for x in mlflow.logged if x[1] != "end"] == [
        ("e/a", 1, "train/loss", 1.0), ("e/a", 2, "train/loss", 1.0), ("e/b", 3, "train/loss", 1.0),
    ]  # fmt: skip
    assert all(uri.startswith("sqlite:///") for uri in mlflow.uris)


@pytest.mark.parametrize("name,package", [("WandbLogger", "wandb"), ("MLflowLogger", "mlflow")])
def test_a_missing_package_is_named_with_the_way_to_get_it(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{name} needs .* pip install 'mediswift-trainer\[{package}\]'"):
        trackers.open_all(config(loggers=[name]).trainer.init, str(tmp_path))


def test_one_that_does_not_begin_is_one_line(tmp_path, monkeypatch):
    fake = Wandb()
    fake.init = lambda **_: (_ for _ in ()).throw(RuntimeError("no key\nlong trace"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(UserError, match=r"WandbLogger does not begin: no key$"):
        trackers.open_all(config(loggers=["WandbLogger"]).trainer.init, str(tmp_path))


def test_a_service_that_fails_ends_no_run_and_is_reported_once(tmp_path, monkeypatch, capsys):
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tracker,) = trackers.open_all(config(loggers=["WandbLogger"]).trainer.init, str(tmp_path))
    tracker.write(1, {"loss": 1.0})
    fake.log = lambda *_, **__: (_ for _ in ()).throw(ConnectionError("https://me:SECRET@host is gone\nlong trace"))
    for step in (2, 3):
        tracker.write(step, {"loss": 1.0})
    tracker.close()
    err = capsys.readouterr().err
    assert (
        err.count("WandbLogger failed") == 1 and "from step 2 on" in err and "SECRET" not in err and "trace" not in err
    )
