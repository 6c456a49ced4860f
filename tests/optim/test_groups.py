"""Who decays, whose learning rate is scaled, and which torch classes stand behind the names."""

import pytest
import torch

from modelzoo.config.sections.optim import Optimizer
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import list_parameters
from modelzoo.optim.adam import AgedAdam
from modelzoo.optim.groups import build_optimizer, lr_scale, param_groups, set_lr
from tests.support import tiny

LAYER = "model.transformer_decoder.layers.0"
ALL = {
    "share_embedding_weights": False,
    "use_bias_in_output": True,
    "embedding_layer_norm": True,
    "nonlinearity": "swiglu",
}
MUP = {"mup_base_hidden_size": 4, "mup_base_filter_size": 4}  # widths 4 and 8 times the base's


def made(**fields):
    c = tiny(**ALL, **fields)
    kinds = {n: s.kind for n, s in list_parameters(c).items()}
    return c, GPTModel(c, seed=0), kinds


@pytest.mark.parametrize("fields", [{}, MUP])
def test_every_parameter_is_in_exactly_one_group(fields):
    c, model, kinds = made(**fields)
    groups = param_groups(model, kinds, 0.1, c)
    names = [n for g in groups for n in g["names"]]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    by_name = dict(model.named_parameters())
    for g in groups:
        assert all(by_name[n] is p for n, p in zip(g["names"], g["params"], strict=True))


def test_biases_and_norms_do_not_decay():
    """Model Zoo's rule: no decay where the name says bias or the module is a norm; embeddings decay."""
    c, model, kinds = made()
    norms = {f"{m}.{n}" for m, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)
             for n, _ in module.named_parameters()}  # fmt: skip
    for g in param_groups(model, kinds, 0.1, c):
        for name in g["names"]:
            assert g["weight_decay"] == (0.0 if "bias" in name or name in norms else 0.1), name
    assert len(norms) == 2 * (2 * 2 + 2)


@pytest.mark.parametrize("name,scale", [
    ("model.embedding_layer.word_embeddings.weight", 1.0),
    ("model.embedding_layer.position_embeddings.embed.weight", 1.0),
    (f"{LAYER}.self_attn.proj_q_dense_layer.weight", 1 / 4),
    (f"{LAYER}.self_attn.proj_output_dense_layer.weight", 1 / 4),
    (f"{LAYER}.self_attn.proj_output_dense_layer.bias", 1.0),
    (f"{LAYER}.ffn.ffn.0.linear_layer.weight", 1 / 4),
    (f"{LAYER}.ffn.ffn.0.linear_layer_for_glu.weight", 1 / 4),
    (f"{LAYER}.ffn.ffn.1.linear_layer.weight", 1 / 8),
    (f"{LAYER}.ffn.ffn.1.linear_layer.bias", 1.0),
    (f"{LAYER}.norm1.weight", 1.0),
    ("model.ln_f.weight", 1.0),
    ("model.lm_head.weight", 1.0),
])  # fmt: skip
def test_mup_scales_as_model_zoo_does(name, scale):
    """1 / (width / base width) for the decoder's matrices, by input width; everything else keeps its rate."""
    assert name in made()[2]
    assert lr_scale(name, tiny(**ALL, **MUP)) == scale
    assert lr_scale(name, tiny(**ALL)) == 1.0


def test_adjustment_groups_override():
    groups = {
        "embedding": {"param_filter_patterns": "*embedding*weight", "scale": 10.0},
        "decoder_attention": {"param_filter_patterns": ["*proj_q*weight", "*proj_k*weight"], "scale": 0.5},
    }
    c = tiny(**ALL, **MUP, lr_adjustment_groups=groups)
    assert lr_scale("model.embedding_layer.word_embeddings.weight", c) == 10.0
    assert lr_scale(f"{LAYER}.self_attn.proj_q_dense_layer.weight", c) == 0.5
    assert lr_scale(f"{LAYER}.self_attn.proj_v_dense_layer.weight", c) == 1.0  # the override's own patterns count
    assert lr_scale(f"{LAYER}.ffn.ffn.1.linear_layer.weight", c) == 1 / 8


def test_the_rate_reaches_each_group_scaled():
    c, model, kinds = made(**MUP)
    optimizer = build_optimizer(Optimizer.model_validate({"AdamW": {"weight_decay": 0.1}}), model, kinds, c, [])
    set_lr(optimizer, 0.02)
    for g in optimizer.param_groups:
        for name in g["names"]:
            assert g["lr"] == 0.02 * lr_scale(name, c)
    assert {g["lr"] for g in optimizer.param_groups} == {0.02, 0.02 / 4, 0.02 / 8}


@pytest.mark.parametrize("name,decoupled", [("AdamW", True), ("Adam", False)])
def test_adam_and_adamw(name, decoupled):
    c, model, kinds = made()
    fields = {"betas": [0.8, 0.9], "eps": 1e-5, "weight_decay": 0.3}
    optimizer = build_optimizer(Optimizer.model_validate({name: fields}), model, kinds, c, [])
    assert isinstance(optimizer, AgedAdam)
    for g in optimizer.param_groups:
        assert (g["betas"], g["eps"], g["decoupled_weight_decay"]) == ((0.8, 0.9), 1e-5, decoupled)


def test_sgd_equals_its_formula():
    """v = momentum v + (1 - dampening) (g + decay w), and v = g at first; w -= lr v."""
    c, model, kinds = made()
    fields = {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}
    optimizer = build_optimizer(Optimizer.model_validate({"SGD": fields}), model, kinds, c, [])
    set_lr(optimizer, 0.05)
    p = next(p for n, p in model.named_parameters() if n.endswith("proj_q_dense_layer.weight"))
    w, v = p.detach().double().clone(), None
    for step in range(5):
        grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        p.grad = grad.clone()
        optimizer.step()
        g = grad.double() + 0.1 * w
        v = g if v is None else 0.9 * v + 0.8 * g
        w = w - 0.05 * v
        torch.testing.assert_close(p.double(), w, rtol=1e-5, atol=1e-6)


def test_nesterov_is_torchs():
    c, model, kinds = made()
    optimizer = build_optimizer(
        Optimizer.model_validate({"SGD": {"momentum": 0.9, "nesterov": True}}), model, kinds, c, []
    )
    assert all(g["nesterov"] and g["momentum"] == 0.9 for g in optimizer.param_groups)
