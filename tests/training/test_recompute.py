"""`activation_checkpointing`: backward computes again what forward did not keep, to the same bits, in less memory."""

import pytest
import torch
from torch import nn

from modelzoo.backends.local import Local
from modelzoo.backends.select import Choice
from modelzoo.models.decoder import DecoderLayer
from modelzoo.training.build import build_run
from tests.support import batch, config

KINDS = {
    "dense": {},
    "static": {"sparsity": 0.75},
    "rigl": {"sparsity": {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 2}}},
    "packed": {"sparsity": {"sparsity": 0.75, "block": [4, 4], "storage": "packed"}},
    "packed_rigl": {
        "sparsity": {"algorithm": "rigl", "sparsity": 0.75, "block": [4, 4], "storage": "packed", "update": {"freq": 2}}
    },
    "lora": {"lora": {"r": 2, "dropout": 0.1}},
    "soft_prompt": {"soft_prompt": {"tokens": 3}},
    "bfloat16": {"precision": {"fp16_type": "bfloat16", "emulate": True}},
    "exact": {"backend": {"reduction": "exact", "slices": 4}},
}
MODEL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "filter_size": 32, "vocab_size": 37,
    "max_position_embeddings": 12, "dropout_rate": 0.1, "attention_dropout_rate": 0.1,
}  # fmt: skip


def run_steps(mode: str, kind: dict, steps: int = 4, micro_batches: int = 2, rows: dict | None = None, **model):
    """A run after some steps, with its losses."""
    backend = {"activation_checkpointing": mode, **kind.get("backend", {})}
    made = config(**{"model": {**MODEL, **model}, **kind, "backend": backend})
    init = made.trainer.init
    local = Local(torch.device("cpu"), init.backend, init.precision)
    run = build_run(made, Choice(local, "CPU", None))
    return run, [local.train_step(run, rows or batch(i, uneven=True), micro_batches).loss for i in range(steps)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["layer", "attention"])
def test_the_bits_stay(mode, kind):
    """Dropout included, whose draws backward repeats."""
    (run, losses), (plain, expected) = (run_steps(m, KINDS[kind]) for m in (mode, "none"))
    assert losses == expected
    for (name, x), (_, y) in zip(run.model.named_parameters(), plain.model.named_parameters(), strict=True):
        assert torch.equal(x, y), name
        for key, moment in run.optimizer.state[x].items():
            assert torch.equal(moment, plain.optimizer.state[y][key]), (name, key)
    masks = plain.sparsity.state_dict()
    assert all(torch.equal(x, masks[n]) for n, x in run.sparsity.state_dict().items())


@pytest.mark.parametrize(
    "more", [{"attention_span": torch.full((4, 12), 5)}, {"position_ids": torch.arange(12).repeat(4, 1)}], ids=str
)
@pytest.mark.parametrize(
    "model", [{"position_embedding_type": "alibi"}, {"position_embedding_type": "rotary"}], ids=str
)
@pytest.mark.parametrize("mode", ["layer", "attention"])
def test_masks_and_rotations_are_there_again(mode, model, more):
    rows = batch(uneven=True) | more
    assert run_steps(mode, {}, 2, rows=rows, **model)[1] == run_steps("none", {}, 2, rows=rows, **model)[1]


def kept_bytes(mode: str) -> int:
    """Bytes that forward keeps for backward, each storage once, parameters apart."""
    backend = {"activation_checkpointing": mode}
    made = config(model={**MODEL, "num_hidden_layers": 6}, backend=backend)
    local = Local(torch.device("cpu"), made.trainer.init.backend, made.trainer.init.precision)
    run = build_run(made, Choice(local, "CPU", None))
    own, found = {p.untyped_storage().data_ptr() for p in run.model.parameters()}, {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = run.model(batch(), 1.0)
    assert loss.grad_fn is not None  # holds what was kept: no two storages were at one address
    return sum(size for at, size in found.items() if at not in own)


def test_forward_keeps_less():
    """Of a layer its input alone, [4, 12, 16] in float32; or all but what is inside attention."""
    none, attention, layer = (kept_bytes(m) for m in ("none", "attention", "layer"))
    assert layer < attention < none
    least, inputs = layer, 6 * 4 * 12 * 16 * 4
    assert inputs <= least < 2.5 * inputs  # with the head's gradient, the last norm's input and what the layers share


def test_it_goes_with_compilation(monkeypatch):
    """Compiled layers round otherwise, so that to a tolerance. Without code generation, which takes a minute."""
    monkeypatch.setattr(DecoderLayer, "compile", lambda self: nn.Module.compile(self, backend="aot_eager"))
    compiled, exact = {"backend": {"torch_compile": True}}, {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    expected = run_steps("none", {}, 2, **exact)[1]
    for mode in ("layer", "attention"):
        assert run_steps(mode, compiled, 2, **exact)[1] == pytest.approx(expected, rel=1e-5)
