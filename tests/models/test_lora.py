"""LoRA beside frozen weights: nothing at the start, merged the same, on sparse weights exact; held against PEFT's."""

import pytest
import torch

from modelzoo.config.errors import UserError
from modelzoo.config.sections.adapters import LoRA
from modelzoo.config.trainer import Init
from modelzoo.models import lora
from modelzoo.models.adapt import adapt
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import find_lora_targets
from modelzoo.names import LORA_B
from tests.support import TINY, batch, tiny

EVERY = {"r": 3, "alpha": 5, "target_modules": "*"}


def made(section: dict, seed=0, **fields) -> tuple[GPTModel, Init]:
    init = Init.model_validate({"model": {**TINY, **fields}, "lora": section})
    return adapt(GPTModel(init.model, seed=seed), init).eval(), init


def drawn(model: GPTModel) -> GPTModel:
    """`model` with B no longer zero."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(LORA_B):
                p.copy_(torch.randn(p.shape, generator=draw) * 0.3)
    return model


@pytest.mark.parametrize("fields", [{}, {"nonlinearity": "swiglu", "use_ffn_bias": False}])
def test_at_the_start_it_is_the_identity(fields):
    ids = batch()["input_ids"]
    assert torch.equal(made(EVERY, **fields)[0].model.hidden(ids), GPTModel(tiny(**fields), 0).eval().model.hidden(ids))


@pytest.mark.parametrize("fields", [{}, {"nonlinearity": "swiglu", "attention_inner_dim": 24}])
def test_merged_weights_compute_the_same(fields):
    model, init = made(EVERY, **fields)
    ids, merged = batch()["input_ids"], GPTModel(init.model).eval()
    merged.load_state_dict(lora.merge(drawn(model).state_dict(), init.lora))
    changed = merged.model.hidden(ids)
    assert torch.allclose(model.model.hidden(ids), changed, atol=1e-5)
    assert not torch.allclose(changed, GPTModel(init.model, 0).eval().model.hidden(ids), atol=1e-2)


def test_one_linear_equals_peft():
    """The same A, B, alpha, r, and dropout's draws, in PEFT's own layer."""
    peft = pytest.importorskip("peft")
    config = LoRA(r=3, alpha=5, dropout=0.3)
    theirs = peft.get_peft_model(
        torch.nn.ModuleDict({"m": torch.nn.Linear(8, 6)}),
        peft.LoraConfig(r=3, lora_alpha=5, lora_dropout=0.3, target_modules=["m"]),
    ).base_model.model["m"]
    ours = lora.LoRALinear(theirs.base_layer, config)
    with torch.no_grad():
        theirs.lora_B["default"].weight.normal_()
        ours.lora_A.copy_(theirs.lora_A["default"].weight)
        ours.lora_B.copy_(theirs.lora_B["default"].weight)
    x = torch.randn(5, 8)
    for mode in (True, False):
        ours.train(mode), theirs.train(mode)
        torch.manual_seed(1)
        expected = theirs(x)
        torch.manual_seed(1)
        assert torch.allclose(ours(x), expected, atol=1e-6)


def test_a_is_drawn_as_peft_draws_it():
    """Uniform with bound 1 / sqrt(in): the first two moments of many draws."""
    model, _ = made({"r": 400, "target_modules": "*.1.*proj_k*"})
    name = "model.transformer_decoder.layers.1.self_attn.proj_k_dense_layer.lora_A"
    a = model.get_parameter(name).detach()
    assert float(a.abs().max()) <= 0.25 and float(a.std()) == pytest.approx(0.25 / 3**0.5, rel=0.03)
    again, _ = made({"r": 400, "target_modules": "*proj_k*"}, seed=9)  # keyed by name and trainer.init.seed alone
    assert torch.equal(a, again.get_parameter(name))


def test_globs_choose_the_modules():
    c = tiny()
    assert len(find_lora_targets(c, LoRA())) == 4 and all(
        "_q_" in n or "_v_" in n for n in find_lora_targets(c, LoRA())
    )
    assert len(find_lora_targets(c, LoRA(target_modules=("*",)))) == 12
    with pytest.raises(UserError, match=r"lora.target_modules \(\*lm_head\): matches no linear"):
        find_lora_targets(c, LoRA(target_modules=("*proj_q*", "*lm_head")))
