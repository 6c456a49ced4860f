"""What a training step reads back, and that a step whose values stay on the device is the same step."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modelzoo.backends import step as step_module
from modelzoo.config.errors import UserError
from modelzoo.data.hdf5 import Shards
from modelzoo.kernels.compiled import rows
from modelzoo.optim.loss_scale import LossScale
from modelzoo.training import loop
from modelzoo.training.checkpoints.snapshot import snapshot
from modelzoo.training.loop import iterate_steps
from tests.support import TINY, batch, cpu, examples, loader, make_run, write_shard

READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim")


def indices(args) -> list:
    """The index tensors of `x[...]`; a bool one is made positions of, which the host counts."""
    return args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []


class Reads(TorchDispatchMode):
    """Ops that hand a tensor's values, or a size that depends on them, to the host: a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        by_mask = name.startswith("index") and any(x is not None and x.dtype == torch.bool for x in indices(args))
        if name in READS or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def queueing(monkeypatch):
    """The CPU, taken for a device that queues its work. No compiled passes over gradients: such a device has none."""
    monkeypatch.setattr(rows, "_compiled", lambda *args: None)

    def make(run):
        backend = cpu(run)
        backend.asynchronous = True
        return backend

    return make


RIGL = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 4}}
SPARSE = {
    "dense": [],
    "static": [{"sparsity": 0.75}],
    "rigl": [RIGL],
    "packed": [{**RIGL, "block": [4, 4], "storage": "packed"}],
}
SGD = {"SGD": {"lr": 0.1, "momentum": 0.9}}
CSTORCH = {"AdamW": {"betas": [0.9, 0.95], "lr": 1e-2, "compat": "cstorch"}}
CLIPPED = {"enabled": False, "max_gradient_norm": 1e3}  # short enough: multiplied by exactly one


@pytest.fixture
def reads(monkeypatch):
    """Counts the one function that reads a device's values; on a CPU `tolist` goes past the dispatcher."""
    seen, plain = [], step_module._read
    monkeypatch.setattr(step_module, "_read", lambda unread: seen.append(len(unread)) or plain(unread))
    return seen


@pytest.mark.parametrize("optimizer", [None, CSTORCH], ids=["ours", "cstorch"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("sparsity", list(SPARSE))
def test_reads_of_a_step_do_not_grow_with_the_model(queueing, reads, sparsity, layers, optimizer):
    """Of the batch, on the host: its length, and which tokens count in each micro-batch. Of the device: nothing, or
    the values of all steps since the last read at once. Weights that RigL regrew at step 4 have ages from then on."""
    init = {"optimizer": optimizer} if optimizer else {}
    model = {**TINY, "num_hidden_layers": layers}
    run = make_run(sparsity=SPARSE[sparsity], model=model, precision=CLIPPED, **init)
    backend = queueing(run)
    host = ["nonzero", "_local_scalar_dense", "nonzero", "nonzero"]
    for number in range(1, 6):  # reads the optimizer's counts once, then the ages of regrown weights once
        backend.queue_step(run, batch(number), 2)
    reads.clear()
    with Reads() as queued:
        assert backend.queue_step(run, batch(6), 2) is None
    assert (queued.seen, reads) == (host, [])
    with Reads() as read:
        assert backend.train_step(run, batch(7), 2).loss > 0
    assert read.seen == host and len(reads) == 1 and reads[0] > 1


@pytest.mark.parametrize("sparsity", list(SPARSE))
@pytest.mark.parametrize("optimizer", [None, SGD, CSTORCH], ids=["adamw", "sgd", "cstorch"])
def test_queued_steps_are_the_same_steps(queueing, reads, sparsity, optimizer):
    """Bit by bit: losses, norms, counters, and all that a checkpoint holds. Mask updates are read, the rest is not."""
    init = {"sparsity": SPARSE[sparsity], "precision": CLIPPED} | ({"optimizer": optimizer} if optimizer else {})
    run, twin = make_run(**init), make_run(**init)
    backend, came = queueing(run), []
    for number in range(12):
        step = (backend.train_step if number in (6, 11) else backend.queue_step)(run, batch(number), 2)
        expected = cpu(twin).train_step(twin, batch(number), 2)
        if step is not None:
            came.append(run.step)
            assert step == expected
    first = [1] if optimizer is SGD else []  # torch makes its momentum there
    updates = [4, 8, 12] if run.sparsity.changes else []
    assert came == sorted({*first, *updates, 7, 12})
    ours, theirs = (snapshot(r, "data") for r in (run, twin))
    assert ours[1] == theirs[1]
    for name, tensors in theirs[0].items():
        assert all(torch.equal(ours[0][name][n], x) for n, x in tensors.items()), name


def test_queued_steps_clip_as_others_do(queueing):
    init = {"precision": {"enabled": False, "max_gradient_norm": 0.3}, "optimizer": {"SGD": {"lr": 0.1}}}
    run, twin = make_run(**init), make_run(**init)
    backend = queueing(run)
    for number in range(3):
        step = (backend.queue_step if number == 1 else backend.train_step)(run, batch(number), 1)
        expected = cpu(twin).train_step(twin, batch(number), 1)
        if step is not None:
            assert step.grad_norm == pytest.approx(expected.grad_norm, rel=1e-6) and step.grad_norm > 0.3
    for p, q in zip(run.model.parameters(), twin.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@pytest.fixture
def shards(tmp_path):
    write_shard(tmp_path / "x.h5", examples(30, msl=12))
    return Shards.open(loader(tmp_path, shuffle=True), 37)


def poison(run, number, value=float("nan")):
    """The loss of the step after `number` comes out as `value`."""
    forward = run.model.forward
    run.model.forward = lambda *a: forward(*a) * (value if run.step == number else 1.0)


def never(step: int) -> bool:
    return step == 20


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", [None, SGD, CSTORCH], ids=["adamw", "sgd", "cstorch"])
@pytest.mark.parametrize("sparsity", ["dense", "rigl"])
def test_a_queued_step_that_is_not_finite_changes_nothing(queueing, shards, sparsity, optimizer, value):
    """Found at the next read, it stops the run with the words, the counters and every bit that a CPU would have."""
    init = {"sparsity": SPARSE[sparsity]} | ({"optimizer": optimizer} if optimizer else {})
    found = []
    for make in (queueing, cpu):
        run = make_run(**init)
        poison(run, 5, value)
        with pytest.raises(UserError) as e:
            list(iterate_steps(make(run), run, shards, 20, 1, never))
        found.append((str(e.value), snapshot(run, "data")))
    (words, ours), (expected, theirs) = found
    assert words == expected and words.startswith(f"step 6: loss {value}") and ours[1] == theirs[1]
    for name, tensors in theirs[0].items():
        assert all(torch.equal(ours[0][name][n], x) for n, x in tensors.items()), name


@pytest.mark.parametrize(
    "init", [{"loop": {"max_steps": 50, "on_nonfinite": "skip"}}, {"loop": {"max_steps": 50}}], ids=["skip", "dynamic"]
)
def test_what_the_host_must_know_is_read_at_every_step(queueing, shards, init):
    """Skipped steps move the learning rate's place, overflows the loss scale."""
    run = make_run(**init)
    if "on_nonfinite" not in init["loop"]:
        run.loss_scale = LossScale(scale=16.0, dynamic=True, low=1.0)
    poison(run, 3)
    found = [timed.step.skipped for timed in iterate_steps(queueing(run), run, shards, 20, 1, never)]
    assert found == [False] * 3 + [True] + [False] * 16 and run.optimizer_step == 19


def test_time_and_tokens_of_queued_steps_are_counted_once(queueing, shards):
    run, every = make_run(), lambda step: step % 5 == 0 or step == 12
    timed = list(iterate_steps(queueing(run), run, shards, 12, 1, every))
    assert [t.steps for t in timed] == [1, 4, 5, 2] and sum(t.tokens for t in timed) == run.tokens == 12 * 48
    assert all(t.seconds >= t.waiting >= 0 for t in timed)


def test_a_device_that_queues_reads_where_its_work_ends(queueing, reads, shards, monkeypatch):
    """About once a second, whatever is due: somebody looks at the live line."""
    monkeypatch.setattr(loop, "READ_EVERY", 0.0)
    run = make_run()
    assert [t.steps for t in iterate_steps(queueing(run), run, shards, 6, 1, never)] == [1] * 6


def test_norms_are_the_nearest_numbers():
    """The norm over dense and sparse gradients is math.sqrt's, on every processor."""
    run = make_run(sparsity=0.5)
    for _ in range(5):
        for p in run.model.parameters():
            p.grad = torch.randn_like(p)
        squares = run.sparsity.mask_gradients(1)
        others = [torch.linalg.vector_norm(p.grad) for p in run.model.parameters() if p not in squares]
        length = float(torch.linalg.vector_norm(torch.stack(others)))
        assert float(step_module.clip_gradients(run, squares)) == math.sqrt(length**2 + sum(squares.values()))


@pytest.mark.parametrize("bad", [None, 2, 5], ids=["all finite", "one in the middle", "the last"])
@pytest.mark.parametrize("sparsity", ["static", "rigl"])
def test_settled_queues_leave_a_run_between_two_steps(queueing, sparsity, bad):
    """What ends a run while steps are queued saves it: after the last of them, or before the first not finite one."""
    run, twin = (make_run(sparsity=SPARSE[sparsity], precision=CLIPPED) for _ in range(2))
    backend, forward = queueing(run), run.model.forward
    run.model.forward = lambda *a: forward(*a) * (float("nan") if run.step == bad else 1.0)
    for number in range(6 if sparsity == "static" else 3):
        backend.queue_step(run, batch(number), 2)
    assert run.unread
    step_module.settle(run)
    for number in range(run.step):
        cpu(twin).train_step(twin, batch(number), 2)
    queued = 6 if sparsity == "static" else 3
    assert run.step == (queued if bad is None or bad >= queued else bad) and not run.unread
    (ours, mine), (theirs, their) = snapshot(run, "d"), snapshot(twin, "d")
    assert mine == their and mine["skipped"] == 0
    for stem, part in ours.items():
        assert all(torch.equal(x, theirs[stem][name]) for name, x in part.items())


@pytest.mark.parametrize("queued", [False, True])
def test_a_failed_step_is_taken_back_whole(queueing, queued):
    """Counters, FLOPs and loss scale too: the checkpoint on the way out repeats that step."""
    run, twin = (make_run(sparsity=SPARSE["static"], precision=CLIPPED) for _ in range(2))
    backend, forward = queueing(run) if queued else cpu(run), run.model.forward
    run.model.forward = lambda *a: forward(*a) * (float("nan") if run.step == 3 else 1.0)
    for number in range(5 if queued else 3):
        (backend.queue_step if queued else backend.train_step)(run, batch(number), 2)
    step = backend.train_step(run, batch(run.step), 2)
    assert step.skipped and run.step == 4
    run.unavoidable += 1  # as the loop counts it
    assert run.take_back_failed() and not run.take_back_failed()
    for number in range(3):
        cpu(twin).train_step(twin, batch(number), 2)
    assert snapshot(run, "d")[1] == snapshot(twin, "d")[1]
