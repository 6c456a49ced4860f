"""Micro-batches as CUDA graphs: the bits of steps without them, and a reader of memory no host waits for."""

import pytest
import torch

from modelzoo.kernels.products.choose import choose_kernel
from tests.gpu.device import DEVICE, GPU, SMALL, backend_of, make_run
from tests.gpu.test_steps import ADAM
from tests.support import batch

pytestmark = pytest.mark.gpu

BLOCKS = {"sparsity": 0.5, "block": [32, 32], "storage": "packed"}
UPDATE = {"freq": 5, "stop": 100}
GMP = {"algorithm": "gmp", "sparsity": {"type": "cubic", "final": 0.75, "end": 10}, "update": UPDATE}
PATTERNS = {
    "dense": (),
    "masked": {"sparsity": 0.5, "algorithm": "rigl", "update": UPDATE},
    "dead ones train": {"algorithm": "sr_ste", "nm": [2, 4]},
    "compressed": {"sparsity": 0.5, "nm": [2, 4], "storage": "compressed"},
    "static": BLOCKS,
    "rigl": {**BLOCKS, "algorithm": "rigl", "update": UPDATE},
    "fewer, permuted": {**BLOCKS, **GMP, "permute_inputs": "updates"},
    "narrow": {"sparsity": 0.5, "block": [32, 1], "storage": "packed"},
    "shared": {"sparsity": 0.5, "shared_inputs": 2, "storage": "packed"},
}
WIDE = {"hidden_size": 512, "filter_size": 1024}  # groups of outputs that are batched
CASES = [(pattern, parts, False) for pattern in PATTERNS for parts in (1, 2)]
COMPILED = [
    ("dense", 1, True),
    ("masked", 2, True),
    ("static", 2, True),
    ("rigl", 1, True),
    ("fewer, permuted", 1, True),
    ("shared", 1, True),
]


@pytest.mark.parametrize("pattern,micro_batches,compiled", COMPILED + CASES if GPU else CASES)
def test_graphs_compute_the_bits_of_plain_steps(pattern, micro_batches, compiled):
    """With dropout, in bfloat16, masks that move on the way, and gradients added up."""
    model = {**SMALL, **(WIDE if pattern == "shared" else {}), "dropout_rate": 0.1, "attention_dropout_rate": 0.1}
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
    if GPU and pattern == "shared":
        kernels = {choose_kernel(p.layout, DEVICE, torch.bfloat16).__name__ for p in run.sparsity.parameters}
        assert kernels == {"modelzoo.kernels.triton.shared"}
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))
