"""Micro-batches as CUDA graphs: the bits of steps without them, and a reader of memory no host waits for."""

import pytest
import torch

from tests.gpu.device import GPU, SMALL, backend_of, make_run
from tests.gpu.test_steps import ADAM
from tests.support import batch

pytestmark = pytest.mark.gpu

BLOCKS = {"sparsity": 0.5, "block": [32, 32], "storage": "packed"}
PATTERNS = {
    "static": BLOCKS,
    "rigl": {**BLOCKS, "algorithm": "rigl", "update": {"freq": 5, "stop": 100}},
    "narrow": {"sparsity": 0.5, "block": [32, 1], "storage": "packed"},
}


@pytest.mark.parametrize("compiled", [False, True] if GPU else [False])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_graphs_compute_the_bits_of_plain_steps(pattern, micro_batches, compiled):
    """With dropout, in bfloat16, masks that move on the way, and gradients added up."""
    model = {**SMALL, "dropout_rate": 0.1, "attention_dropout_rate": 0.1}
    found = []
    for graphs in (False, True):
        backend = {"cuda_graphs": graphs, "torch_compile": compiled, "deterministic": True}
        precision = {"enabled": True, "emulate": True, "max_gradient_norm": 1.0}
        run = make_run(model=model, sparsity=PATTERNS[pattern], optimizer=ADAM, backend=backend, precision=precision)
        there = backend_of(run.config)
        losses = [there.train_step(run, batch(s, 4, 32), micro_batches).loss for s in range(9)]
        if GPU:
            assert (there.graphs is not None) == graphs
        if there.graphs is not None:
            assert not there.graphs.failed and len(there.graphs.captured) == min(micro_batches, 2)
        found.append((losses, [p.detach().cpu() for p in run.model.parameters()]))
    torch._dynamo.reset()
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))
