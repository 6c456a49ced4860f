"""Weights kept in bfloat16: the texts of the same weights rounded and kept in float32, half of the bytes."""

import pytest
import torch
from torch import nn

from modelzoo.generation.load import load_model
from modelzoo.generation.narrow import narrow_weights
from modelzoo.kernels import few, processor
from modelzoo.kernels.few import FewRowsLinear
from modelzoo.sparsity.parameter import PackedLinear
from tests.generation.conftest import run
from tests.generation.test_write import GREEDY, MODELS, PARTS, PROMPTS, STORED, WIDE, whole_model, write

MADE = {
    **{name: {"model": MODELS[name]} for name in ("learned", "fixed", "llama, shared keys", "bloom")},
    **{name: {"model": WIDE, "sparsity": STORED[name]} for name in STORED},
    **{name: PARTS[name] for name in ("prefix", "lora")},
    "untied": {"model": {"share_embedding_weights": False}},
}


@torch.no_grad()
@pytest.mark.parametrize("name", MADE)
def test_texts_are_those_of_rounded_weights(make, name):
    folder = str(make(name, **MADE[name]))
    plain, found = load_model(folder), load_model(folder, dtype="bfloat16")
    assert "weights are bfloat16, products float32" in found.notes
    before = {n: p.clone() for n, p in plain.model.named_parameters()}
    for module in plain.model.modules():
        if isinstance(module, FewRowsLinear | PackedLinear) or type(module) is nn.Embedding:
            module.weight.copy_(module.weight.bfloat16())
    assert any(not torch.equal(p, before[n]) for n, p in plain.model.named_parameters())
    expected = write(plain, PROMPTS, GREEDY)
    assert [t.ids for t in write(found, PROMPTS, GREEDY)] == [t.ids for t in expected]


@torch.no_grad()
def test_a_weight_that_is_shared_stays_one_and_bytes_are_halved(make):
    folder = str(make("wide", model={**WIDE, "vocab_size": 320}))
    sizes = [sum(p.nbytes for p in load_model(folder, dtype=d).model.parameters()) for d in ("float32", "bfloat16")]
    assert sizes[1] < 0.52 * sizes[0]
    inner = load_model(folder, dtype="bfloat16").model.model
    assert inner.lm_head.weight is inner.embedding_layer.word_embeddings.weight


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_computing_in_bfloat16_comes_close(make, name):
    """As on a GPU: every parameter, and nothing that positions are made from."""
    folder = make(name, model=MODELS[name])
    ids = torch.randint(0, 311, (2, 40), generator=torch.Generator().manual_seed(1))
    plain, model = whole_model(folder), whole_model(folder)
    narrow_weights(model, compute_narrow=True)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    exact = plain.model.hidden(ids)
    cache = model.model.make_cache(2)
    parts = [model.model.hidden(part, past=cache) for part in ids.split([30, 1, 9], 1)]
    found = torch.cat(parts, 1)
    assert found.dtype == torch.bfloat16 and model.model.logits(found).dtype == torch.float32
    assert (found.float() - exact).norm() < 0.05 * exact.norm()


@torch.no_grad()
def test_without_compiled_kernels_torch_widens(make, monkeypatch):
    folder = str(make("learned"))
    expected = write(load_model(folder, dtype="bfloat16"), PROMPTS, GREEDY)
    monkeypatch.setenv(processor.KERNELS, "torch")
    model = load_model(folder, dtype="bfloat16")
    assert few.compiled() is None and model.model.model.lm_head.weight.dtype == torch.bfloat16
    ids, hidden = expected[0].begin, model.model.model.hidden(torch.tensor([expected[0].begin]))
    assert hidden.dtype == torch.float32 and hidden.shape[1] == len(ids)
    assert write(model, PROMPTS[:1], GREEDY)[0].ids[0] == expected[0].ids[0]


def test_the_command_says_so_and_refuses_others(make, capsys):
    folder = make("learned")
    assert run("generate", folder, "--prompt", "aspirin", "--dtype", "bfloat16", "--max_new_tokens", 3) == 0
    assert "weights are bfloat16, products float32" in capsys.readouterr().err
    assert run("generate", folder, "--prompt", "aspirin", "--dtype", "float16") == 2
    assert "--dtype" in capsys.readouterr().err
