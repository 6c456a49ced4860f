"""`-m train` as a whole on the wafer's code: the same loop, logs, checkpoints and resuming as on a CPU."""

import json

import pytest
from csx_runs import ADAMW, MODEL, WARMUP_COSINE

from modelzoo.backends.csx import preflight
from modelzoo.backends.csx.backend import CSX
from modelzoo.backends.select import Choice
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.tasks import pretrain
from modelzoo.training.build import Options
from tests.support import examples, write_shard

RIGL = {"algorithm": "rigl", "sparsity": 0.6, "update": {"freq": 4, "stop": 9}, "compat": "cstorch"}


@pytest.fixture
def config(tmp_path) -> Config:
    write_shard(tmp_path / "data" / "a.h5", examples(23, msl=16, vocab=67))
    init = {
        "model": MODEL, "optimizer": ADAMW, "schedulers": [WARMUP_COSINE], "sparsity": [RIGL], "seed": 3,
        "precision": {"enabled": False, "max_gradient_norm": 1.0}, "loop": {"max_steps": 10},
        "checkpoint": {"steps": 4, "save_initial_checkpoint": True, "keep": None}, "loggers": ["ProgressLogger"],
    }  # fmt: skip
    loader = {"data_dir": str(tmp_path / "data"), "batch_size": 4, "shuffle": True}
    return Config.model_validate({"trainer": {"init": init, "fit": {"train_dataloader": loader}}})


@pytest.fixture
def on_wafer(monkeypatch):
    """`-m train CSX`, with cerebras.pytorch's CPU backend in the wafer's place."""

    def choose(target, config, folder, evaluate, ranks=None):
        return Choice(CSX(config.trainer.init, folder, kind="CPU"), "CSX", None)

    def train(config, folder, **options):
        with monkeypatch.context() as m:
            m.setattr(pretrain, "select_training_device", choose)
            pretrain.train(config, Options(target="auto", model_dir=str(folder), **options), evaluate=False)

    return train


def losses(folder) -> dict[int, float]:
    records = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in records}


def test_the_one_loop(config, on_wafer, tmp_path):
    pretrain.train(config, Options(target="CPU", model_dir=str(tmp_path / "cpu")), evaluate=False)
    on_wafer(config, tmp_path / "csx")
    cpu, csx = losses(tmp_path / "cpu"), losses(tmp_path / "csx")
    assert list(csx) == list(range(1, 11)) and csx == pytest.approx(cpu, rel=1e-5)
    have = sorted(p.name for p in (tmp_path / "csx/checkpoints").iterdir())
    assert have == ["step_0", "step_10", "step_4", "step_8"]
    record = json.loads((tmp_path / "csx/launches.jsonl").read_text())
    assert "cerebras.pytorch" in record["device"]


@pytest.mark.parametrize("first,then", [("csx", "csx"), ("cpu", "csx"), ("csx", "cpu")])
def test_resumes_across_devices(config, on_wafer, tmp_path, first, then):
    """Interrupted at step 4 and gone on with, here or there: the losses of the whole run."""
    pretrain.train(config, Options(target="CPU", model_dir=str(tmp_path / "whole")), evaluate=False)
    init = config.trainer.init

    def go(device, stop):
        short = init.model_copy(update={"loop": init.loop.model_copy(update={"max_steps": stop})})
        part = config.model_copy(update={"trainer": config.trainer.model_copy(update={"init": short})})
        if device == "csx":
            on_wafer(part, tmp_path / "run")
        else:
            pretrain.train(part, Options(target="CPU", model_dir=str(tmp_path / "run")), evaluate=False)

    go(first, 4)
    go(then, 10)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_validation_during_training_is_refused_where_a_cluster_answers(config, monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "explain_missing_cluster", lambda backend: None)
    with pytest.raises(UserError, match="CSX trains"):
        pretrain.train(config, Options(target="CSX", model_dir=str(tmp_path)), evaluate=True)


def test_workers_share_out_every_batch_in_our_order(config, monkeypatch):
    """Two systems with two input workers each: together they stream exactly the batches that a CPU run takes."""
    from types import SimpleNamespace as Fake

    import torch

    from modelzoo.backends.csx.input import input_batches
    from modelzoo.backends.csx.library import cstorch
    from modelzoo.data.hdf5 import Shards

    loader = config.trainer.fit.train_dataloader
    tasks = [Fake(rank=2 * w + s, wse_id=s, local_rank=w) for w in range(2) for s in range(2)]
    monkeypatch.setattr(cstorch.distributed, "is_streamer", lambda: True)
    monkeypatch.setattr(cstorch.distributed, "get_streaming_batch_size", lambda size, rank=None: size // 2)
    streamed = {}
    for me in tasks:
        spec = Fake(num_csx=2, num_workers_per_csx=2, tasks=tasks, task=lambda rank=None, me=me: me)
        monkeypatch.setattr(cstorch.distributed, "service_resolver", lambda spec=spec: Fake(cluster_spec=spec))
        streamed[me.wse_id, me.local_rank] = list(input_batches(loader, 67, 0, 3, 9))
    shards = Shards.open(loader, 67)
    for i, step in enumerate(range(3, 9)):
        halves = [streamed[system, i % 2][i // 2]["input_ids"] for system in range(2)]
        assert torch.equal(torch.cat(halves), shards.batch(step)["input_ids"])
