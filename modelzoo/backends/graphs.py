"""Forward and backward of a micro-batch as one CUDA graph: the host starts a step once, not a thousand times.

A GPU that is done before its host has launched what is next waits for it: so it does with packed weights, and with
models of 350 million weights and fewer (benchmarks/gpu.py). A graph computes what was captured, on the same addresses:
the same kernels in the same order, so equal bits. It is captured anew whenever packed weights move (masks that change).
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from modelzoo.kernels.limits import GRAPHS, count_graphs, pays_to_capture
from modelzoo.models.decoder import DecoderLayer
from modelzoo.train_state import TrainState

WARM = 2  # micro-batches of a shape before its graph: compilers and libraries choose their kernels in these

Compute = Callable[[TrainState, dict[str, Tensor]], Tensor]  # leaves gradients, returns the loss


class Replay(Protocol):
    """What was captured."""

    def replay(self) -> None:
        """Compute it again."""


Record = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]  # captures a call; and where its result will be


class _Captured(NamedTuple):
    graph: Replay
    inputs: dict[str, Tensor]
    loss: Tensor
    grads: list[tuple[torch.nn.Parameter, Tensor]]


class Graphs:
    """The graphs of one run.

    Args:
        run: whose they are.
        compute: forward and backward of a batch on the device; it must not wait for the device.
        make_record: makes what captures a call; default: as a CUDA graph.
    """

    def __init__(self, run: TrainState, compute: Compute, make_record: Callable[[], Record] | None = None):
        self.run, self.compute, self.make_record = run, compute, make_record or _Recorder
        self.failed = ""
        self._forget(run.sparsity.moves)

    def _forget(self, moves: int) -> None:
        self.moves, self.seen = moves, Counter()
        self.captured: dict[Any, _Captured] = {}
        self.known: set[int] = set()  # gradients that graphs write to, by identity
        self.record = self.make_record()
        layers = [m for m in self.run.model.modules() if isinstance(m, DecoderLayer)]
        stored = sum(p.numel() for layer in layers for p in layer.parameters() if p.dim() > 1)
        self.weights = stored / len(layers)  # of a layer's matrices

    def compute_gradients(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of a micro-batch; its gradients are written to, or added to, `.grad`, as without graphs."""
        run = self.run
        if (moves := run.sparsity.moves) != self.moves:
            self._forget(moves)
        updating = run.sparsity.lays_out(run.optimizer_step + 1)
        if updating and self.captured:
            self._forget(moves)  # new masks want the memory that graphs hold, and would have them captured anew
        short = pays_to_capture(self.weights, batch["input_ids"].numel())
        if self.failed or updating or not short or len(batch["counted_rows"]):
            return self.compute(run, batch)
        trained = [p for p in run.model.parameters() if p.requires_grad]
        onto = next((id(p.grad) for p in trained if p.grad is not None), None)  # None: it begins a step's gradients
        shape = (onto is None, run.loss_scale.scale, *((n, x.shape, x.dtype) for n, x in sorted(batch.items())))
        key = (onto, shape)
        self.seen[shape] += 1
        # others' gradients it must not add to: they will not be there in the next step
        if self.seen[shape] <= WARM or not (onto is None or onto in self.known):
            return self.compute(run, batch)
        if key not in self.captured and not (self._has_room(onto, trained) and self._capture(batch, key, trained)):
            return self.compute(run, batch)
        found = self.captured[key]
        for name, x in batch.items():
            found.inputs[name].copy_(x, non_blocking=True)
        found.graph.replay()
        for p, grad in found.grads:
            p.grad = grad
        return found.loss.clone()

    def _has_room(self, onto: int | None, trained: list) -> bool:
        """Whether one more graph may be captured, and of those that have gradients of their own one more."""
        begun = sum(begins is None for begins, _ in self.captured)
        most = count_graphs(sum(p.nbytes for p in trained))
        return len(self.captured) < GRAPHS and (onto is not None or begun < most)

    def _capture(self, batch: Mapping[str, Tensor], key: Any, trained: list) -> bool:
        inputs = {n: x.clone() for n, x in batch.items()}
        before = [p.grad for p in trained]
        try:
            graph, loss = self.record(lambda: self.compute(self.run, inputs))
        except RuntimeError as e:
            self.failed = " ".join(str(e).split())[:200]
            print(f"note       CUDA graphs are off: {self.failed}", file=sys.stderr)
            for p, grad in zip(trained, before, strict=True):
                p.grad = grad
            self._forget(self.moves)  # there may be too little memory for those that it has, too
            return False
        grads = [(p, p.grad) for p in trained if p.grad is not None]
        self.known |= {id(grad) for _, grad in grads}
        self.captured[key] = _Captured(graph, inputs, loss, grads)
        return True


class _Recorder:
    """Captures on a GPU. Its graphs share their memory: they are replayed one after another.

    Each set of graphs has a recorder of its own: torch does not take a pool again whose graphs are all gone.
    """

    def __init__(self):
        self.pool = None

    def __call__(self, work: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.get_rng_state()
        try:
            # by thread: others may copy a checkpoint or pin a batch meanwhile
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                loss = work()
        except RuntimeError:
            # the generator still takes itself for captured, and would refuse the next draw
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(torch.Generator("cuda").graphsafe_get_state())
            torch.cuda.set_rng_state(before)
            raise
        return graph, loss
