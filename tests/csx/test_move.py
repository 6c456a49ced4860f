"""A run that moves between this machine and the wafer's code: shipped, trained, fetched, saved, resumed."""

import pytest
import torch
from csx_runs import Batches, FakeShards, batch, config, ours, theirs

from modelzoo.backends.csx import backend as csx_backend
from modelzoo.config.errors import UserError
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.support import train_step

RIGL = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 4}, "compat": "cstorch"}
CYCLING = {"algorithm": "gmp", "sparsity": [0.3, 0.5, 0.7], "update": {"freq": 4}, "compat": "cstorch"}


@pytest.fixture(autouse=True)
def inputs(monkeypatch):
    monkeypatch.setattr(csx_backend, "input_batches", lambda config, vocab, prompt, start, stop: Batches()(start, stop))


def go(backend, run, stop):
    """Steps up to `stop` on the wafer's side, then its state back."""
    losses = [backend.train_step(run, taken, 1).loss for taken in backend.batches(run, FakeShards(), stop)]
    assert backend.fetch(run)
    return losses


@pytest.mark.parametrize("sparsity", [[], [RIGL], [CYCLING]], ids=["dense", "rigl", "gmp cycling"])
def test_there_and_back(sparsity, tmp_path):
    """10 steps here, 10 there, 10 here, by checkpoints: the losses are those of 30 steps here."""
    c = config(sparsity)
    whole = ours(c)
    expected = [train_step(whole, batch(s), 1).loss for s in range(30)]

    run = ours(c)
    got = [train_step(run, batch(s), 1).loss for s in range(10)]
    first = saving.save(str(tmp_path / "a"), run.step, *snapshot(run, "data"), None)

    backend, double = theirs(c, tmp_path)
    restore(double, first, *checkpoint.load(first), "data")
    assert double.step == 10
    got += go(backend, double, 20)
    second = saving.save(str(tmp_path / "b"), double.step, *snapshot(double, "data"), None)

    again = ours(c)
    restore(again, second, *checkpoint.load(second), "data")
    got += [train_step(again, batch(s), 1).loss for s in range(20, 30)]
    assert got == pytest.approx(expected, rel=2e-5)
    for name, mask in whole.sparsity.state_dict().items():
        assert torch.equal(mask, again.sparsity.state_dict()[name]), name


def test_state_comes_back_at_checkpoint_steps_alone(tmp_path):
    c = config([{"sparsity": 0.5}])
    init = c.trainer.init
    c = c.model_copy(update={"trainer": c.trainer.model_copy(update={"init": init.model_copy(
        update={"checkpoint": init.checkpoint.model_copy(update={"steps": 4})})})})  # fmt: skip
    backend, run = theirs(c, tmp_path)
    came = []
    for taken in backend.batches(run, FakeShards(), 10):
        backend.train_step(run, taken, 1)
        before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        if backend.fetch(run):
            came.append(run.step)
            assert any(not torch.equal(p.detach(), before[n]) for n, p in run.model.named_parameters())
    assert came == [4, 8, 10]


def test_the_hosts_masks_are_the_wafers(tmp_path):
    """First masks are ours on both sides: seeded by parameter name, exactly k live."""
    c = config([{"sparsity": 0.9, "seed": 5}])
    backend, run = theirs(c, tmp_path)
    batches = backend.batches(run, FakeShards(), 2)
    next(batches)
    ((algorithm, _),) = backend.copy.algorithms
    assert set(algorithm.sparse_params) == {p.name for p in run.sparsity.parameters}
    for p in run.sparsity.parameters:
        assert torch.equal(algorithm.sparse_params[p.name].mask, p.mask)
    batches.close()


def test_biases_and_embeddings_stay_dense_whatever_the_filter(tmp_path):
    c = config([{"sparsity": 0.5, "param_filter": "*"}])
    backend, run = theirs(c, tmp_path)
    batches = backend.batches(run, FakeShards(), 1)
    next(batches)
    ((algorithm, _),) = backend.copy.algorithms
    assert all(run.model.get_parameter(n).dim() > 1 for n in algorithm.sparse_params)
    batches.close()


def test_erk_levels(tmp_path):
    """cerebras.pytorch has no erk: each weight gets its own level, and its own rule then keeps exactly our k."""
    from modelzoo.backends.csx.library import cstorch

    c = config([{"sparsity": 0.6, "distribution": "erk"}])
    backend, run = theirs(c, tmp_path)
    batches = backend.batches(run, FakeShards(), 1)
    next(batches)
    ((algorithm, _),) = backend.copy.algorithms
    for p in run.sparsity.parameters:
        level = algorithm.sparsity[backend.copy.names[p.name]](torch.tensor(0))
        kept = cstorch.sparse.utils.make_mask_topk_sparsity(torch.rand(p.weight.shape), level)
        assert int(kept.sum()) == p.live
    batches.close()


def test_what_the_wafer_cannot_take_is_refused_by_key(tmp_path):
    changing = {"algorithm": "set", "sparsity": [0.5, 0.6], "distribution": "erk", "update": {"freq": 5}}
    for c, key in (
        (config([changing]), "sparsity.distribution"),
        (config(optimizer={"Adam": {"correct_bias": False}}), "optimizer.Adam.correct_bias"),
    ):
        backend, run = theirs(c, tmp_path)
        with pytest.raises(UserError, match=key):
            next(backend.batches(run, FakeShards(), 1))
