"""Between two log records the host waits for nothing that a GPU computes: held on the stand-in for one.

Whatever hands values, or a size that depends on them, to the host makes it wait for all work that is queued; so does a
copy from memory that may be written to meanwhile.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modelzoo.backends import step as step_module
from modelzoo.backends.local import Local
from modelzoo.sparsity.algorithms import ALGORITHMS
from tests.backends.stand_in import META, OnGPU, standing_in
from tests.backends.test_stand_in import BLOCKS, CUBIC, KINDS, TINY, make_run
from tests.backends.test_step import READS, indices
from tests.support import batch


class Waits(TorchDispatchMode):
    """Operators for which a GPU's host would wait."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, leaves = func.__name__.partition(".")[0], tree_leaves((args, kwargs))
        there = [x for x in leaves if isinstance(x, OnGPU)]
        if self._waits(name, args, kwargs, there):
            self.seen.append(name)
        return func(*args, **kwargs)

    def _waits(self, name, args, kwargs, there) -> bool:
        if name == "_to_copy":
            to = kwargs.get("device")
            between = to is not None and (to == META) != bool(there)
            return between and (bool(there) or not kwargs.get("non_blocking", False))
        if name == "copy_" and isinstance(args[0], OnGPU) != isinstance(args[1], OnGPU):
            return isinstance(args[1], OnGPU) or not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        by_mask = name.startswith("index") and any(x is not None and x.dtype == torch.bool for x in indices(args))
        return bool(there) and (name in READS or name in ("item", "bincount", "repeat_interleave") or by_mask)


SELDOM = {"freq": 100}
MORE = {
    **{f"{rule}, between updates": {"sparsity": {"algorithm": rule, "sparsity": 0.5, "update": SELDOM}}
       for rule in ("set", "rigl", "smet", "mest", "chts")},
    **{f"{rule}, between updates": {"sparsity": {"algorithm": rule, "sparsity": CUBIC, "update": SELDOM}}
       for rule in ("gmp", "granet", "chtss")},
    "packed, between updates": {"sparsity": {"algorithm": "rigl", "sparsity": 0.5, "update": {"freq": 4}, **BLOCKS}},
    "dense": {},
    "dropout": {"model": {**TINY, "dropout_rate": 0.1, "attention_dropout_rate": 0.1}},
    "values clipped": {"precision": {"enabled": False, "max_gradient_value": 0.01}},
    "a fixed scale": {"precision": {"enabled": True, "fp16_type": "float16", "loss_scaling_factor": 1024.0}},
}  # fmt: skip
STILL = {name: kind for name, kind in KINDS.items() if kind.get("sparsity", {}).get("algorithm", "static") == "static"}


@pytest.fixture
def reads(monkeypatch):
    """Counts the one function that reads steps; `tolist` is no operator."""
    seen, plain = [], step_module._read
    monkeypatch.setattr(step_module, "_read", lambda unread: seen.append(len(unread)) or plain(unread))
    return seen


DOCUMENTS = {"attention_span": torch.full((4, 12), 5), "position_ids": torch.arange(12).repeat(4, 1)}


@pytest.mark.parametrize("name", [*MORE, *STILL, "documents"])
def test_a_queued_step_waits_for_nothing(name, reads, monkeypatch):
    """After some steps; where masks move the fourth may have been an update, whose masks and ages are read once."""
    monkeypatch.setattr(Local, "autocast", lambda self: nullcontext())  # which does not know the stand-in
    kind, more = {**KINDS, **MORE, "documents": {}}[name], DOCUMENTS if name == "documents" else {}
    with standing_in() as there:
        local, run = make_run(there.device, kind)
        for number in range(5 if run.sparsity.changes else 2):
            local.queue_step(run, batch(number, uneven=True) | more, 2)
        reads.clear()
        with Waits() as waits:
            assert local.queue_step(run, batch(6, uneven=True) | more, 2) is None
    assert (waits.seen, reads) == ([], [])


def test_a_scale_that_falls_is_read_once_a_step(reads, monkeypatch):
    """The host decides by each step's norm what the next one's scale is: one wait, at the step's end."""
    monkeypatch.setattr(Local, "autocast", lambda self: nullcontext())
    precision = {"enabled": True, "fp16_type": "float16", "loss_scaling_factor": "dynamic"}
    with standing_in() as there:
        local, run = make_run(there.device, {"precision": precision, "sparsity": {"sparsity": 0.5}})
        assert run.loss_scale.dynamic
        local.train_step(run, batch(0), 2)
        reads.clear()
        with Waits() as waits:
            local.queue_step(run, batch(1), 2)
    assert (waits.seen, reads) == ([], [1])


def test_waits_are_found():
    with standing_in(), Waits() as waits:
        x = torch.ones(3, device="cuda")
        for look in (
            lambda: float(x.sum()), lambda: x.nonzero(), lambda: x[x > 0], lambda: x.cpu(), lambda: torch.equal(x, x),
            lambda: torch.tensor([1.0], device="cuda"), lambda: torch.empty(3).copy_(x), lambda: bool((x > 0).all()),
        ):  # fmt: skip
            before = len(waits.seen)
            look()
            assert len(waits.seen) > before
        before = len(waits.seen)
        torch.ones(3).to("cuda", non_blocking=True)
        assert x.mul(2.0).shape == (3,) and len(waits.seen) == before


def test_every_algorithm_is_here():
    groups = [kind["sparsity"] for kind in (MORE | STILL).values() if "sparsity" in kind]
    assert {g.get("algorithm", "static") for g in groups} == ALGORITHMS.keys() - {"sr_ste"}  # which updates each step
