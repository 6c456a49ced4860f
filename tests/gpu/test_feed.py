"""Batches reach a GPU as they are in the shards, and checkpoints leave it as they are on it."""

from pathlib import Path

import pytest
import torch

from modelzoo.backends.step import settle, trim_padding
from modelzoo.data.hdf5 import Shards
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints.background import HostCopy
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.gpu.device import DEVICE, GPU, backend_of, make_run, train_step
from tests.gpu.test_steps import RULES, STORED, rows
from tests.support import batch, examples, loader, write_shard

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_as_they_are(workers, tmp_path):
    """Pinned on the host, whole or cut, though the device is busy while they travel."""
    write_shard(tmp_path / "a.h5", examples(40, msl=24))
    shards = Shards.open(loader(tmp_path, num_workers=workers, shuffle=True), 37, 32, 0)
    run = make_run()
    there, arrived = backend_of(run.config), []
    busy = torch.ones(2048 if GPU else 1, 2048, device=DEVICE)
    for read in there.batches(run, shards, 8):
        assert all(x.is_pinned() == GPU for x in read.values())
        for _ in range(20):
            busy = busy @ busy.t() * 1e-4
        cut = {name: x[:, 3:17] for name, x in read.items()}
        arrived.append((there.put(read), there.put(trim_padding(cut, 8))))
        del read, cut  # their memory may be taken for the next ones while copies are under way
    assert len(arrived) == 8
    for step, (whole, part) in enumerate(arrived):
        want = shards.batch(step)
        for name, x in want.items():
            assert whole[name].device.type == DEVICE.type and torch.equal(whole[name].cpu(), x), name
            assert torch.equal(part[name].cpu(), x[:, 3:17]), name


def test_validation_batches_arrive(tmp_path):
    write_shard(tmp_path / "a.h5", examples(10, msl=24))
    shards = Shards.open(loader(tmp_path), 37, 32, 0)
    there = backend_of(make_run().config)
    found = [b["input_ids"].cpu() for b in there.validation_batches(shards, None)]
    assert torch.equal(torch.cat(found), shards.read(range(10))["input_ids"])


@pytest.mark.parametrize("rule,stored", [("rigl", "masked"), ("set", "packed blocks"), ("static", "packed columns")])
def test_a_copy_in_the_background_has_the_bytes_of_one_that_waits(rule, stored, tmp_path):
    """Steps that are queued behind the copy change nothing of it; nor does the next copy, which takes its place."""
    run, copy = make_run(sparsity={**RULES[rule], **STORED[stored]}), HostCopy()
    for number in range(3):
        for step in range(4):
            train_step(run, rows(step))
        files, facts = snapshot(run, "data")
        waited = saving.save(str(tmp_path / f"waited{number}"), run.step, files, facts, None)
        files, _ = snapshot(run, "data")
        taken = copy.take(files)
        del files
        for step in range(3):
            train_step(run, rows(step))
        copy.wait()
        assert all(x.is_cpu and x.is_pinned() == GPU for part in taken.values() for x in part.values())
        written = saving.save(str(tmp_path / f"copied{number}"), facts["global_step"], taken, facts, None)
        for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
            assert Path(waited, name).read_bytes() == Path(written, name).read_bytes(), name


PACKED = {"sparsity": 0.5, "block": [32, 32], "storage": "packed"}
MOVED = {"algorithm": "rigl", "update": {"freq": 4, "stop": 8}}
QUEUED = {
    "dense": {},
    "masked": {"sparsity": {"sparsity": 0.5, **MOVED}},
    "packed": {"sparsity": PACKED},
    "packed, without graphs": {"sparsity": PACKED, "backend": {"cuda_graphs": False}},
    "packed, moved": {"sparsity": {**PACKED, **MOVED}},
    "columns": {"sparsity": {**PACKED, "block": [32, 1]}},
    "a fixed scale": {"precision": {"enabled": True, "fp16_type": "float16", "loss_scaling_factor": 1024.0}},
}


@pytest.mark.parametrize("name", QUEUED)
def test_a_busy_device_is_not_waited_for(name):
    """Steps are queued, not waited for: the host is far ahead of the device. Only a look at the values waits."""
    if not GPU:
        pytest.skip("a CPU computes at once")
    clipped = {"enabled": True, "max_gradient_norm": 0.5}
    run = make_run(**{"precision": clipped, **QUEUED[name]})
    there = backend_of(run.config)
    for step in range(9):  # masks move after the fourth; kernels are loaded and graphs captured here
        there.queue_step(run, batch(step, 4, 32), 2)
    settle(run)
    assert (there.graphs is not None and len(there.graphs.captured) == 2) == (name != "packed, without graphs")
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # cycles: a second
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert there.queue_step(run, batch(9, 4, 32), 2) is None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not torch.cuda.current_stream().query()
    settle(run)
    assert run.step == 10
