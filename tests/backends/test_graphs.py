"""What is captured and when, on a CPU: a replay there computes the captured call again, into the same tensors."""

import pytest
import torch

from modelzoo.backends.graphs import WARM, Graphs
from modelzoo.backends.local import Local
from modelzoo.kernels import limits
from modelzoo.kernels.limits import GRAPHS
from tests.support import TINY, batch, cpu, make_run

STATIC = {"sparsity": 0.5, "block": [4, 4], "storage": "packed"}
PACKED = {"algorithm": "rigl", **STATIC, "update": {"freq": 4, "stop": 100}}


class Again:
    """A captured call: nothing is computed until it is replayed."""

    def __init__(self, run, work):
        self.work, self.trained = work, [p for p in run.model.parameters() if p.requires_grad]
        before = [None if p.grad is None else p.grad.clone() for p in self.trained]
        with torch.random.fork_rng():  # nothing is drawn either
            self.adds, self.loss = before[0] is not None, work()
        self.grads = [p.grad for p in self.trained]
        self.loss.fill_(float("nan"))
        for grad, kept in zip(self.grads, before, strict=True):
            grad.fill_(float("nan")) if kept is None else grad.copy_(kept)

    def replay(self):
        for p, grad in zip(self.trained, self.grads, strict=True):
            assert p.grad is grad or (p.grad is None and not self.adds)
            p.grad = grad if self.adds else None
        self.loss.copy_(self.work())
        for p, grad in zip(self.trained, self.grads, strict=True):
            if p.grad is not grad:
                grad.copy_(p.grad)


class Graphed(Local):
    """A CPU that takes graphs, and counts what is captured."""

    def __init__(self, run, fails: bool = False):
        super().__init__(torch.device("cpu"), run.init.backend, run.init.precision)
        self.made = []

        def record(work):
            if fails:
                raise RuntimeError("operation not permitted\nwhen stream is capturing")
            self.made.append(Again(run, work))
            return self.made[-1], self.made[-1].loss

        self.graphs = Graphs(run, self._compute, lambda: record)

    def _takes_graphs(self, run):
        return True


def train(run, backend, steps: int, micro_batches: int, lengths=(12,)) -> list[float]:
    batches = [batch(s, 4, lengths[s % len(lengths)]) for s in range(steps)]
    return [backend.train_step(run, b, micro_batches).loss for b in batches]


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_graphs_compute_the_same_bits(micro_batches):
    """With dropout, clipping, mask updates on the way, and gradients added up over micro-batches."""
    model = {**TINY, "dropout_rate": 0.1, "attention_dropout_rate": 0.1}
    runs = [make_run(model=model, sparsity=PACKED) for _ in range(2)]
    graphed = Graphed(runs[1])
    losses = train(runs[0], cpu(runs[0]), 14, micro_batches), train(runs[1], graphed, 14, micro_batches)
    assert losses[0] == losses[1]
    assert all(map(torch.equal, runs[0].model.parameters(), runs[1].model.parameters()))
    # after each update of masks anew: one that starts a step's gradients, one that adds to them
    assert len(graphed.made) == (2 if micro_batches > 1 else 1) * 3


@pytest.mark.parametrize("algorithm", ["rigl", "set"])
def test_a_step_that_changes_masks_holds_no_graph(algorithm):
    """What graphs keep would be held next to what such a step takes itself."""
    runs = [make_run(sparsity={**PACKED, "algorithm": algorithm}) for _ in range(2)]
    graphed, held = Graphed(runs[1]), []
    change = runs[1].sparsity.update
    runs[1].sparsity.update = lambda *a: (held.append(len(graphed.graphs.captured)), change(*a))[1]
    assert train(runs[0], cpu(runs[0]), 5, 2) == train(runs[1], graphed, 5, 2)
    assert held == [0, 0, 2, 0, 0]
    assert all(map(torch.equal, runs[0].model.parameters(), runs[1].model.parameters()))


def test_weights_that_stay_whole_keep_their_graph_when_masks_change():
    """Their gradient is the dense one, and nothing moves: steps that change masks are replayed too."""
    sparsity = {"algorithm": "rigl", "sparsity": 0.5, "update": {"freq": 4, "stop": 100}}
    runs = [make_run(sparsity=sparsity) for _ in range(2)]
    graphed = Graphed(runs[1])
    assert train(runs[0], cpu(runs[0]), 10, 2) == train(runs[1], graphed, 10, 2)
    assert all(map(torch.equal, runs[0].model.parameters(), runs[1].model.parameters()))
    assert runs[0].churn == runs[1].churn > 0 and len(graphed.made) == 2


def test_long_layers_are_not_captured(monkeypatch):
    """What a layer's stored matrices take on a micro-batch decides: half of the weights are half of it."""
    weights = 4 * 16 * 16 + 2 * 16 * 32  # of a tiny layer
    for sparsity, stored in (((), weights), (STATIC, weights // 2)):
        run = make_run(sparsity=sparsity)
        for limit, captured in ((6 * stored * 48, 0), (6 * stored * 48 + 1, 1)):  # 4 rows of 12 tokens
            monkeypatch.setattr(limits, "LAUNCHED_FLOPS", limit)
            graphed = Graphed(run)
            train(run, graphed, WARM + 2, 1)
            assert graphed.graphs.weights == stored and len(graphed.made) == captured


def test_graphs_are_fewer_where_gradients_are_large(monkeypatch):
    """The first is free of charge; each other that begins a step's gradients takes as much memory as they do."""
    run = make_run(model={**TINY, "max_position_embeddings": 512}, sparsity=())
    size = sum(p.nbytes for p in run.model.parameters())
    lengths = [4 + 32 * i for i in range(GRAPHS + 2)]
    for room, begun in ((0, 1), (size - 1, 1), (2 * size, 3), (10**9, GRAPHS)):
        monkeypatch.setattr(limits, "GRADIENT_BYTES", room)
        graphed = Graphed(run)
        train(run, graphed, (WARM + 2) * len(lengths), 1, lengths)
        assert len(graphed.made) == limits.count_graphs(size) == begun


def test_each_shape_has_its_graph_and_there_are_few():
    run = make_run(model={**TINY, "max_position_embeddings": 512}, sparsity=STATIC)
    graphed = Graphed(run)
    lengths = [4 + 32 * i for i in range(GRAPHS + 2)]
    train(run, graphed, (WARM + 2) * len(lengths), 1, lengths)
    assert len(graphed.made) == min(GRAPHS, len({-(-n // 32) for n in lengths}))


def test_a_failed_capture_is_reported_and_changes_nothing(capsys):
    runs = [make_run(sparsity=PACKED) for _ in range(2)]
    assert train(runs[0], cpu(runs[0]), 6, 2) == train(runs[1], Graphed(runs[1], fails=True), 6, 2)
    assert capsys.readouterr().err == (
        "note       CUDA graphs are off: operation not permitted when stream is capturing\n"
    )


def test_gradients_of_two_lengths_do_not_meet():
    """Each length begins its own gradients, and adds to these."""
    model = {**TINY, "max_position_embeddings": 512}
    runs = [make_run(model=model, sparsity=STATIC) for _ in range(2)]
    graphed, lengths = Graphed(runs[1]), (8, 40)
    assert train(runs[0], cpu(runs[0]), 12, 2, lengths) == train(runs[1], graphed, 12, 2, lengths)
    assert len(graphed.made) == 4
