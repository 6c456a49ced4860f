"""Logits equal a NumPy float64 GPT and Hugging Face's GPT-2, for every variant of the config."""

import numpy as np
import pytest
import torch

from modelzoo.models.gpt import GPTModel, alibi_slopes
from modelzoo.models.shapes import list_parameters
from tests.models import reference
from tests.support import tiny

MUP = {"mup_base_hidden_size": 4, "mup_base_filter_size": 8}


def grouped(heads: int) -> dict:
    """The config of so many heads of keys and values."""
    return {"attention_module": "multiquery_attention", "extra_attention_params": {"num_kv_groups": heads}}


VARIANTS = {
    "learned": {},
    "offset": {"position_embedding_offset": 3},
    "none": {"position_embedding_type": None},
    "fixed": {"position_embedding_type": "fixed"},
    "rotary, a quarter of the head": {"position_embedding_type": "rotary"},
    "rotary, whole head": {"position_embedding_type": "rotary", "rotary_dim": 8},
    "rotary, scaled, other base": {
        "position_embedding_type": "rotary", "rotary_dim": 6, "rope_theta": 500.0, "pos_scaling_factor": 4.0,
    },
    "rotary, llama3's scaling": {  # of the four rates one stays, two are between, and one is divided
        "position_embedding_type": "rotary", "rotary_dim": 8, "rope_theta": 500.0, "pos_scaling_factor": 8.0,
        "pos_scaling_type": "llama3", "pos_scaling_extra_args": {
            "low_freq_factor": 0.5, "high_freq_factor": 8.0, "original_max_position_embeddings": 64,
        },
    },
    "alibi": {"position_embedding_type": "alibi"},
    "alibi, heads no power of two": {
        "position_embedding_type": "alibi", "num_heads": 3, "attention_inner_dim": 12, "pos_scaling_factor": 2.0,
    },
    "alibi, twelve heads": {"position_embedding_type": "alibi", "num_heads": 12, "attention_inner_dim": 24},
    "inner dim": {"attention_inner_dim": 24},
    "rotary with inner dim": {"attention_inner_dim": 24, "position_embedding_type": "rotary", "rotary_dim": 12},
    "dot product": {"attention_type": "dot_product"},
    "qk by layer": {"scale_qk_dot_by_layer_idx": True, "num_hidden_layers": 3},
    "qk by d": {"scale_qk_dot_by_d": True},
    "dot product ignores by d": {"attention_type": "dot_product", "scale_qk_dot_by_d": True},
    "alpha": {"attention_logits_alpha": 2.5},
    "no attention bias": {"use_projection_bias_in_attention": False, "use_ffn_bias_in_attention": False},
    "no ffn bias": {"use_ffn_bias": False},
    "untied": {"share_embedding_weights": False},
    "untied with bias": {"share_embedding_weights": False, "use_bias_in_output": True},
    "tied with bias": {"use_bias_in_output": True},
    "rmsnorm": {"norm_type": "rmsnorm", "layer_norm_epsilon": 1e-3},
    "biasless": {"norm_type": "biasless-layernorm"},
    "embedding norm": {"embedding_layer_norm": True},
    "embedding scale after its norm": {"embedding_layer_norm": True, "embeddings_scale": 3.0},
    "mup": MUP,
    "mup, all scalars": {
        **MUP, "embeddings_scale": 7.0, "output_logits_alpha": 1.7, "attention_logits_alpha": 0.4,
        "scale_output_logits_by_d": False, "use_bias_in_output": True,
    },
    "mup, qk by sqrt d": {**MUP, "scale_qk_dot_by_d": False},
    **{name: {"nonlinearity": name} for name in (*reference.PLAIN, *reference.GATED)},
    "keys and values of two heads for four": {**grouped(2), "num_heads": 4},
    "keys and values of one head, rotary, wide": {
        **grouped(1), "num_heads": 3, "attention_inner_dim": 24, "position_embedding_type": "rotary", "rotary_dim": 6,
    },
    "keys and values of two heads, alibi": {**grouped(2), "num_heads": 4, "position_embedding_type": "alibi"},
    "gptj": {"name": "gptj", "rotary_dim": 4},
    "gptj, two norms, grouped": {
        "name": "gptj", "use_untied_layer_norm": True, "num_heads": 4, "rotary_dim": 2, **grouped(2),
    },
    "gptj, mup": {"name": "gptj", **MUP},
    "swiglu without bias": {"nonlinearity": "swiglu", "use_ffn_bias": False},
}  # fmt: skip


def model_of(c, scale=0.3):
    """A model with every parameter drawn at random, so that none is at a value that hides a fault."""
    model = GPTModel(c)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, scale, generator=draw)
    weights = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    return model.eval(), weights


@torch.no_grad()
def logits_of(model, ids, **more):
    return model.model.logits(model.model.hidden(torch.as_tensor(ids), **more)).numpy()


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_the_reference(fields):
    c = tiny(**fields)
    model, weights = model_of(c)
    ids = np.random.default_rng(0).integers(0, 37, (3, 12))
    ours = logits_of(model.double(), ids)
    theirs = np.stack([reference.logits(c, weights, row) for row in ids])
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["learned", "fixed", "rotary", "alibi", None])
def test_documents_with_spans_and_positions_equal_the_reference(kind):
    c = tiny(position_embedding_type=kind)
    model, weights = model_of(c)
    ids = np.random.default_rng(1).integers(0, 37, (2, 12))
    positions = np.array([[*range(5), *range(7)], [*range(1), *range(11)]])
    spans = np.array([[*range(4, -1, -1), *range(6, -1, -1)], [0, *range(10, -1, -1)]])
    more = {"position_ids": torch.as_tensor(positions), "span": torch.as_tensor(spans)}
    theirs = np.stack([reference.logits(c, weights, *row) for row in zip(ids, positions, spans)])
    np.testing.assert_allclose(logits_of(model.double(), ids, **more), theirs, rtol=1e-5, atol=1e-5)


def test_long_and_short_attention_kernels_agree():
    """Beyond a length the attention may run on another kernel: the reference holds on both sides."""
    c = tiny(max_position_embeddings=600, num_hidden_layers=1, num_heads=2)
    model, weights = model_of(c)
    ids = np.random.default_rng(2).integers(0, 37, (1, 600))
    ours = logits_of(model, ids)[0]
    np.testing.assert_allclose(ours, reference.logits(c, weights, ids[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_logits_equal_hugging_face_gpt2(activation):
    from transformers import GPT2Config, GPT2LMHeadModel

    c = tiny(nonlinearity=activation)
    model, _ = model_of(c, scale=0.2)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=37, n_positions=12, n_embd=16, n_layer=2, n_head=2, n_inner=32,
            activation_function=activation, layer_norm_epsilon=c.layer_norm_epsilon,
        )
    ).eval()  # fmt: skip
    ours = dict(model.named_parameters())
    with torch.no_grad():
        t = theirs.transformer
        t.wte.weight.copy_(ours["model.embedding_layer.word_embeddings.weight"])
        t.wpe.weight.copy_(ours["model.embedding_layer.position_embeddings.embed.weight"])
        for i, block in enumerate(t.h):
            at = f"model.transformer_decoder.layers.{i}"
            for kind in ("weight", "bias"):
                qkv = [ours[f"{at}.self_attn.proj_{p}_dense_layer.{kind}"] for p in "qkv"]
                turned = lambda x: x.t() if x.dim() == 2 else x
                getattr(block.attn.c_attn, kind).copy_(torch.cat([turned(x) for x in qkv], -1))
                getattr(block.attn.c_proj, kind).copy_(turned(ours[f"{at}.self_attn.proj_output_dense_layer.{kind}"]))
                getattr(block.mlp.c_fc, kind).copy_(turned(ours[f"{at}.ffn.ffn.0.linear_layer.{kind}"]))
                getattr(block.mlp.c_proj, kind).copy_(turned(ours[f"{at}.ffn.ffn.1.linear_layer.{kind}"]))
                getattr(block.ln_1, kind).copy_(ours[f"{at}.norm1.{kind}"])
                getattr(block.ln_2, kind).copy_(ours[f"{at}.norm3.{kind}"])
        for kind in ("weight", "bias"):
            getattr(t.ln_f, kind).copy_(ours[f"model.ln_f.{kind}"])
        ids = torch.randint(37, (4, 12), generator=torch.Generator().manual_seed(0))
        np.testing.assert_allclose(logits_of(model, ids), theirs(ids).logits.numpy(), atol=1e-5)


@pytest.mark.parametrize("heads", range(1, 34))
def test_alibi_slopes(heads):
    np.testing.assert_allclose(alibi_slopes(heads), reference.slopes(heads), rtol=1e-12)


BIASES = ("use_ffn_bias", "use_projection_bias_in_attention", "use_ffn_bias_in_attention")
GRID = [
    {**positions, **norm, **tie, "nonlinearity": activation, **dict.fromkeys(BIASES, bias)}
    for positions in (
        {"position_embedding_type": "learned", "position_embedding_offset": 2},
        {"position_embedding_type": "rotary", "attention_inner_dim": 24},
        {"position_embedding_type": None, "embedding_layer_norm": True},
    )
    for norm in ({"norm_type": "layernorm"}, {"norm_type": "rmsnorm"}, {"norm_type": "biasless-layernorm"})
    for tie in ({}, {"share_embedding_weights": False}, {"share_embedding_weights": False, "use_bias_in_output": True})
    for activation in ("gelu", "swiglu")
    for bias in (True, False)
] + [
    {**grouped(1), "name": "gptj", "use_untied_layer_norm": untied} for untied in (False, True)
]  # fmt: skip


def test_names_and_shapes_are_the_tables():
    for fields in GRID:
        c = tiny(**fields)
        with torch.device("meta"):
            model = GPTModel(c)
        found = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
        assert found == [(n, s.size) for n, s in list_parameters(c).items()], fields
        kinds = {"Embedding": "embedding", "LayerNorm": "norm", "RMSNorm": "norm", "Linear": "linear"}
        modules = {}
        for m, module in model.named_modules():
            modules |= {f"{m}.{n}": kinds[type(module).__name__] for n, _ in module.named_parameters(recurse=False)}
        for name, shape in list_parameters(c).items():
            kind = "bias" if modules[name] == "linear" and name.endswith("bias") else modules[name]
            assert shape.kind == ("head" if "lm_head.weight" in name else kind), name


def test_names_are_model_zoos():
    names = list_parameters(tiny(share_embedding_weights=False, use_bias_in_output=True))
    layer = "model.transformer_decoder.layers.1"
    assert {
        "model.embedding_layer.word_embeddings.weight", "model.embedding_layer.position_embeddings.embed.weight",
        *(f"{layer}.self_attn.proj_{p}_dense_layer.{k}" for p in ("q", "k", "v", "output") for k in ("weight", "bias")),
        *(f"{layer}.ffn.ffn.{i}.linear_layer.{k}" for i in (0, 1) for k in ("weight", "bias")),
        *(f"{layer}.{n}.{k}" for n in ("norm1", "norm3") for k in ("weight", "bias")),
        "model.ln_f.weight", "model.ln_f.bias", "model.lm_head.weight", "model.lm_head.bias",
    } <= names.keys()  # fmt: skip


LLAMA = {
    "position_embedding_type": "rotary", "norm_type": "rmsnorm", "nonlinearity": "swiglu", "rotary_dim": 128,
    "share_embedding_weights": False, **dict.fromkeys(BIASES, False),
}  # fmt: skip
NEOX = {"name": "gptj", "use_untied_layer_norm": True, "use_ffn_bias": True, "share_embedding_weights": False}


@pytest.mark.parametrize(
    "layers,width,heads,filter_size,vocab,fields,published",
    [
        (32, 4096, 32, 11008, 32000, LLAMA, 6_738_415_616),  # Llama 2 7B
        (80, 8192, 64, 28672, 32000, {**LLAMA, **grouped(8)}, 68_976_648_192),  # Llama 2 70B
        (12, 768, 12, 3072, 50304, NEOX, 162_322_944),  # Pythia 160M
        (28, 4096, 16, 16384, 50400, {  # GPT-J 6B
            "name": "gptj", "use_ffn_bias": True, "use_bias_in_output": True, "share_embedding_weights": False,
            "use_projection_bias_in_attention": False, "use_ffn_bias_in_attention": False,
        }, 6_050_882_784),
    ],
)  # fmt: skip
def test_published_models_have_as_many_parameters(layers, width, heads, filter_size, vocab, fields, published):
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_heads": heads, "filter_size": filter_size}
    assert sum(s.numel for s in list_parameters(tiny(**sizes, vocab_size=vocab, **fields)).values()) == published
