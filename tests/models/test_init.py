"""Each initializer draws from the distribution its name promises, and a model's weights follow Model Zoo's rules."""

import math

import pytest
import torch

from modelzoo.config.errors import UserError
from modelzoo.config.sections.initializer import Initializer
from modelzoo.models.gpt import GPTModel
from modelzoo.models.init import fill_parameter
from tests.support import tiny

OUT, IN = 400, 600
CUT = 0.87962566103423978  # std of a standard normal cut at two standard deviations
# name, fields, mean, std, bounds
DRAWS = [
    ("uniform", {}, 0, 0.1 / math.sqrt(12), (-0.05, 0.05)),
    ("uniform", {"a": 1.0, "b": 3.0}, 2, 2 / math.sqrt(12), (1, 3)),
    ("normal", {}, 0, 0.05, None),
    ("normal", {"mean": -1.0, "std": 0.5}, -1, 0.5, None),
    ("truncated_normal", {"std": 0.02}, 0, 0.02 * CUT, (-0.04, 0.04)),
    ("truncated_normal", {"mean": 0.0, "std": 0.02, "a": -0.2, "b": 0.2}, 0, 0.02, (-0.2, 0.2)),
    ("xavier_normal", {"gain": 2.0}, 0, 2 * math.sqrt(2 / (OUT + IN)), None),
    ("glorot_normal", {}, 0, math.sqrt(2 / (OUT + IN)), None),
    ("xavier_uniform", {}, 0, math.sqrt(2 / (OUT + IN)), (-math.sqrt(6 / (OUT + IN)), math.sqrt(6 / (OUT + IN)))),
    ("glorot_uniform", {"gain": 0.5}, 0, 0.5 * math.sqrt(2 / (OUT + IN)), None),
    ("kaiming_normal", {}, 0, math.sqrt(2 / IN), None),
    ("kaiming_normal", {"a": 1.0, "mode": "fan_out"}, 0, math.sqrt(1 / OUT), None),
    ("kaiming_uniform", {"nonlinearity": "relu"}, 0, math.sqrt(2 / IN), (-math.sqrt(6 / IN), math.sqrt(6 / IN))),
    # Model Zoo corrects for a cut at two standard deviations but cuts at +-2, which is none: 1 / CUT too wide, as there
    ("variance_scaling", {"scale": 2.0, "mode": "fan_avg"}, 0, math.sqrt(2 / ((OUT + IN) / 2)) / CUT, None),
    ("variance_scaling", {"mode": "fan_out", "distribution": "normal"}, 0, math.sqrt(1 / OUT), None),
    ("variance_scaling", {"distribution": "uniform"}, 0, math.sqrt(1 / IN), (-math.sqrt(3 / IN), math.sqrt(3 / IN))),
    ("lecun_normal", {}, 0, math.sqrt(1 / IN) / CUT, None),
    ("lecun_uniform", {}, 0, math.sqrt(1 / IN), (-math.sqrt(3 / IN), math.sqrt(3 / IN))),
]


@pytest.mark.parametrize("name,fields,mean,std,bounds", DRAWS, ids=lambda v: v if isinstance(v, str) else None)
def test_moments_and_bounds(name, fields, mean, std, bounds):
    torch.manual_seed(0)
    weight = torch.empty(OUT, IN)
    fill_parameter(weight, Initializer(name=name, **fields))
    n = weight.numel()
    assert abs(weight.mean().item() - mean) < 5 * std / math.sqrt(n)
    assert abs(weight.std().item() / std - 1) < 5 / math.sqrt(n) * 2
    if bounds:
        assert bounds[0] <= weight.min() and weight.max() <= bounds[1]
        reach = 0.99 if "uniform" in (name, fields.get("distribution")) else 0.5
        assert weight.max() - weight.min() > reach * (bounds[1] - bounds[0]) or name == "truncated_normal"


def test_constants():
    weight = torch.empty(4, 6)
    for init, expected in (
        (Initializer(name="constant", val=0.25), torch.full((4, 6), 0.25)),
        (Initializer(name="ones"), torch.ones(4, 6)),
        (Initializer(name="zeros"), torch.zeros(4, 6)),
        (Initializer(name="eye"), torch.eye(4, 6)),
    ):
        fill_parameter(weight, init)
        assert torch.equal(weight, expected)


WIDE = {"hidden_size": 96, "filter_size": 192, "vocab_size": 500, "max_position_embeddings": 300, "num_heads": 4}
LAYER = "model.transformer_decoder.layers.0"
PARTS = {
    "words": "model.embedding_layer.word_embeddings.weight",
    "positions": "model.embedding_layer.position_embeddings.embed.weight",
    "q": f"{LAYER}.self_attn.proj_q_dense_layer.weight",
    "v": f"{LAYER}.self_attn.proj_v_dense_layer.weight",
    "out": f"{LAYER}.self_attn.proj_output_dense_layer.weight",
    "ffn0": f"{LAYER}.ffn.ffn.0.linear_layer.weight",
    "glu": f"{LAYER}.ffn.ffn.0.linear_layer_for_glu.weight",
    "ffn1": f"{LAYER}.ffn.ffn.1.linear_layer.weight",
    "head": "model.lm_head.weight",
}
DEEP = 1 / math.sqrt(2 * 2)  # two layers
NORMAL = lambda std: {"name": "normal", "std": std}
# Model Zoo 2.10's GPT2LMHeadModel.__init__ and FeedForwardNetworkConfig.post_init, rule by rule. `cut` marks the
# truncated normal at two standard deviations, the default.
RULES = {
    "defaults": ({}, dict.fromkeys(("words", "positions", "q", "v", "ffn0"), 0.02 * CUT)
                 | dict.fromkeys(("out", "ffn1"), 0.02 * CUT * DEEP)),
    "initializer_range": ({"initializer_range": 0.1}, {"q": 0.1 * CUT, "out": 0.1 * CUT * DEEP, "words": 0.1 * CUT}),
    "initializer speaks for all but embeddings": (
        {"initializer": NORMAL(0.3)},
        {"q": 0.3, "v": 0.3, "ffn0": 0.3, "out": 0.3, "ffn1": 0.3, "words": 0.02 * CUT, "positions": 0.02 * CUT}),
    "ffn's last matrix follows ffn_initializer where nothing else is said": (
        {"initializer": NORMAL(0.3), "ffn_initializer": NORMAL(0.7)},
        {"q": 0.3, "out": 0.3, "ffn0": 0.7, "ffn1": 0.7}),
    "output layers": (
        {"output_layer_initializer": NORMAL(0.4)}, {"q": 0.02 * CUT, "out": 0.4, "ffn1": 0.4, "ffn0": 0.02 * CUT}),
    "each by its own": (
        {"initializer": NORMAL(0.1), "ffn_initializer": NORMAL(0.2), "output_layer_initializer": NORMAL(0.3),
         "ffn_output_layer_initializer": NORMAL(0.4), "embedding_initializer": NORMAL(0.5)},
        {"q": 0.1, "ffn0": 0.2, "out": 0.3, "ffn1": 0.4, "words": 0.5, "positions": 0.5}),
    "an untied head is a plain normal": (
        {"share_embedding_weights": False, "embedding_initializer": NORMAL(0.5)}, {"head": 0.02, "words": 0.5}),
    "gated": ({"nonlinearity": "swiglu", "ffn_initializer": NORMAL(0.2)}, {"ffn0": 0.2, "glu": 0.2}),
    "mup": (
        {"mup_base_hidden_size": 24, "mup_base_filter_size": 12},  # widths 4 and 16 times the base's
        {"q": 0.01 * CUT, "v": 0.01 * CUT, "ffn0": 0.01 * CUT, "out": 0.01 * CUT * DEEP,
         "ffn1": 0.02 / 4 * CUT * DEEP, "words": 0.02 * CUT}),
    "mup with its own initializers": (
        {"mup_base_hidden_size": 24, "mup_base_filter_size": 12, "initializer": NORMAL(0.3),
         "output_layer_initializer": NORMAL(0.4), "ffn_output_layer_initializer": NORMAL(0.8)},
        {"q": 0.15, "ffn0": 0.15, "out": 0.2 * DEEP, "ffn1": 0.2 * DEEP}),
    # GPTJModel.__init__: no depth, and the feed-forward follows the output layers
    "gptj": ({"name": "gptj"}, dict.fromkeys(("words", "q", "v", "out", "ffn0", "ffn1"), 0.02 * CUT)),
    "gptj with its own initializers": (
        {"name": "gptj", "initializer": NORMAL(0.1), "output_layer_initializer": NORMAL(0.3)},
        {"q": 0.1, "out": 0.3, "ffn0": 0.3, "ffn1": 0.3}),
    "gptj, mup": (
        {"name": "gptj", "mup_base_hidden_size": 24, "mup_base_filter_size": 12},
        {"q": 0.01 * CUT, "ffn0": 0.01 * CUT, "out": 0.01 * CUT * DEEP, "ffn1": 0.02 / 4 * CUT * DEEP}),
}  # fmt: skip


@pytest.mark.parametrize("fields,expected", RULES.values(), ids=RULES)
def test_which_initializer_draws_which_weight(fields, expected):
    model = GPTModel(tiny(**WIDE, **fields), seed=1)
    weights = dict(model.named_parameters())
    for part, std in expected.items():
        weight = weights[PARTS[part]]
        assert abs(weight.std().item() / std - 1) < 6 / math.sqrt(weight.numel()), part


def test_mup_scales_the_cut_with_the_spread():
    cut = {"name": "truncated_normal", "std": 0.02, "a": -0.03, "b": 0.05}
    fields = {"mup_base_hidden_size": 24, "mup_base_filter_size": 48, "initializer": cut}
    weight = dict(GPTModel(tiny(**WIDE, **fields), seed=1).named_parameters())[PARTS["q"]]
    assert -0.015 <= weight.min() < -0.0149 and 0.0245 < weight.max() <= 0.025


def test_mup_refuses_what_it_cannot_scale():
    fields = {"mup_base_hidden_size": 24, "mup_base_filter_size": 48, "initializer": "xavier_uniform"}
    with pytest.raises(UserError, match="xavier_uniform"):
        GPTModel(tiny(**WIDE, **fields), seed=1)


def test_biases_are_zero_norms_one_and_the_seed_decides_the_rest():
    c = tiny(embedding_layer_norm=True, share_embedding_weights=False, use_bias_in_output=True)
    first, again, other = (dict(GPTModel(c, seed=s).named_parameters()) for s in (5, 5, 6))
    for name, p in first.items():
        assert torch.equal(p, again[name]), name
        if p.dim() < 2:
            assert torch.equal(p, torch.full_like(p, 0.0 if name.endswith("bias") else 1.0)), name
        else:
            assert not torch.equal(p, other[name]), name
