"""Exported weights compute the same logits in transformers; a GPT-2 of transformers computes the same logits here."""

import json

import pytest
import torch
from safetensors.torch import save_file

from modelzoo.config.errors import UserError
from modelzoo.config.model import GPTConfig
from modelzoo.interop import hf, hf_config
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import list_parameters
from tests.support import tiny

transformers = pytest.importorskip("transformers")
MUP = {
    "mup_base_hidden_size": 8,
    "mup_base_filter_size": 24,
    "embeddings_scale": 7.0,
    "output_logits_alpha": 1.7,
    "scale_qk_dot_by_d": True,
    "attention_logits_alpha": 2.5,
}
NO_BIAS = dict.fromkeys(("use_ffn_bias", "use_ffn_bias_in_attention", "use_projection_bias_in_attention"), False)
ROTARY = {"position_embedding_type": "rotary", "rotary_dim": 4}
LLAMA = {"position_embedding_type": "rotary", "rotary_dim": 8, "norm_type": "rmsnorm", "nonlinearity": "swiglu"}
ALIBI = {"position_embedding_type": "alibi", "filter_size": 64}
BLOOM = {**ALIBI, "embedding_layer_norm": True, "nonlinearity": "gelu_new"}
MPT = {**ALIBI, **NO_BIAS, "norm_type": "biasless-layernorm"}
EXPRESSIBLE = {
    "learned": ("gpt2", {}),
    "learned, untied": ("gpt2", {"share_embedding_weights": False}),
    "learned, mup": ("gpt2", MUP),
    "learned, untied, mup": ("gpt2", {**MUP, "share_embedding_weights": False}),
    "learned, offset": ("gpt2", {"position_embedding_offset": 3}),
    "learned, no biases": ("gpt2", {**NO_BIAS, "norm_type": "biasless-layernorm"}),
    "learned, no projection biases": ("gpt2", {"use_projection_bias_in_attention": False}),
    "learned, unscaled attention": ("gpt2", {"attention_type": "dot_product"}),
    "learned, scaled by layer": ("gpt2", {"scale_qk_dot_by_layer_idx": True, "filter_size": 40}),
    **{
        f"learned, {act}": ("gpt2", {"nonlinearity": act})
        for act in ("gelu_new", "quick_gelu", "relu", "silu", "tanh", "sigmoid", "squared_relu", "linear")
    },
    "fixed": ("gpt2", {"position_embedding_type": "fixed"}),
    "fixed, mup": ("gpt2", {**MUP, "position_embedding_type": "fixed"}),
    "none": ("gpt2", {"position_embedding_type": None}),
    "rotary": ("gpt_neox", ROTARY),
    "rotary, whole head": ("gpt_neox", {**ROTARY, "rotary_dim": 8}),
    "rotary, default width": ("gpt_neox", {"position_embedding_type": "rotary"}),
    "rotary, 6 of 10": ("gpt_neox", {**ROTARY, "hidden_size": 20, "rotary_dim": 6}),
    "rotary, mup": ("gpt_neox", {**ROTARY, **MUP}),
    "rotary, untied": ("gpt_neox", {**ROTARY, "share_embedding_weights": False, "rope_theta": 500.0}),
    "rotary, stretched": ("gpt_neox", {**ROTARY, "pos_scaling_factor": 2.5}),
    "rotary, few biases": ("gpt_neox", {**ROTARY, "use_projection_bias_in_attention": False, "use_ffn_bias": False}),
    "rotary, no biases": ("gpt_neox", {**ROTARY, **NO_BIAS, "norm_type": "biasless-layernorm", "nonlinearity": "relu"}),
    "llama": ("llama", {**LLAMA, **NO_BIAS}),
    "llama, biases": ("llama", {**LLAMA, "share_embedding_weights": False}),
    "llama, some biases": ("llama", {**LLAMA, "use_projection_bias_in_attention": False}),
    "llama, geglu, wide": ("llama", {**LLAMA, "nonlinearity": "geglu", "attention_inner_dim": 24, "rotary_dim": 12}),
    "llama, reglu, mup": ("llama", {**LLAMA, **MUP, "nonlinearity": "reglu", "pos_scaling_factor": 2.0}),
    "bloom": ("bloom", BLOOM),
    "bloom, mup": ("bloom", {**BLOOM, **MUP}),
    "bloom, three heads": ("bloom", {**BLOOM, "num_heads": 3, "hidden_size": 18, "filter_size": 72}),
    "mpt": ("mpt", MPT),
    "mpt, mup": ("mpt", {**MPT, **MUP}),
}


def drawn(c: GPTConfig, seed: int = 0) -> tuple[GPTModel, dict[str, torch.Tensor]]:
    """A model with every weight, bias and norm far from its initial value, so that none can be left out unseen."""
    torch.manual_seed(seed)
    model = GPTModel(c).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if "norm" in name or "ln_f" in name else 0.0, 0.3)
    return model, {n: p.detach() for n, p in model.named_parameters()}


def load_exported(folder, c: GPTConfig, weights):
    family = hf_config.choose_family(c)
    tensors = hf.convert_to_hf(hf.fold_scales(weights, c), c, family)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(hf_config.make_config_json(c, family, 0)))
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="float32")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval(), family


@torch.no_grad()
def logits(model: GPTModel, ids: torch.Tensor) -> torch.Tensor:
    return model.model.logits(model.model.hidden(ids))


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_logits_equal_in_transformers(tmp_path, name):
    kind, fields = EXPRESSIBLE[name]
    c = tiny(**fields)
    model, weights = drawn(c)
    theirs, family = load_exported(tmp_path, c, weights)
    assert family.model_type == kind == theirs.config.model_type
    ids = torch.randint(0, c.vocab_size, (3, c.max_position_embeddings), generator=torch.Generator().manual_seed(1))
    ours = logits(model, ids)
    with torch.no_grad():
        found = theirs(ids).logits
    assert ours.std() > 0.1  # the comparison means something
    torch.testing.assert_close(found, ours, rtol=1e-5, atol=1e-5 * max(1.0, ours.abs().max().item()))


@pytest.mark.parametrize(
    "fields,names",
    [
        ({"use_bias_in_output": True}, "use_bias_in_output"),
        ({"norm_type": "rmsnorm"}, "norm_type: rmsnorm"),
        ({"nonlinearity": "swiglu"}, "nonlinearity: swiglu"),
        ({"embedding_layer_norm": True}, "embedding_layer_norm"),
        ({"attention_inner_dim": 24}, "attention_inner_dim"),
        ({**ROTARY, "norm_type": "rmsnorm"}, "norm_type: rmsnorm"),
        ({**LLAMA, "rotary_dim": 4}, "rotary_dim: 4"),
        (ALIBI, "biases in linears"),
        ({**BLOOM, "nonlinearity": "gelu"}, "nonlinearity: gelu"),
        ({**MPT, "filter_size": 32}, "filter_size: 32"),
        ({**MPT, "num_heads": 3, "hidden_size": 18, "filter_size": 72}, "num_heads: 3"),
        ({**MPT, "pos_scaling_factor": 2.0}, "pos_scaling_factor"),
    ],
)
def test_what_no_architecture_expresses_is_named(fields, names):
    with pytest.raises(UserError, match="no Hugging Face architecture") as e:
        hf_config.choose_family(tiny(**fields))
    assert names in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gpt2_comes_back_as_it_went(tied):
    c = tiny(share_embedding_weights=tied)
    _, weights = drawn(c)
    back = hf.convert_from_gpt2(hf.convert_to_hf(weights, c, hf.GPT2), c)
    assert back.keys() == weights.keys()
    for name in back:
        assert torch.equal(back[name], weights[name]), name


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"activation_function": "relu", "n_inner": 24},
        {"scale_attn_weights": False},
    ],
)
def test_a_gpt2_of_transformers_computes_the_same_here(fields):
    torch.manual_seed(3)
    sizes = {"vocab_size": 41, "n_positions": 10, "n_embd": 16, "n_layer": 3, "n_head": 4}
    # transformers 4.57 passes over both scale fields in its default attention; the eager one follows them.
    config = transformers.GPT2Config(**sizes, initializer_range=0.3, attn_implementation="eager", **fields)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    c = GPTConfig.model_validate(hf_config.read_model_section(config.to_dict(), "config.json"))
    ours = hf.convert_from_gpt2(theirs.state_dict(), c)
    assert {n: tuple(x.shape) for n, x in ours.items()} == {n: s.size for n, s in list_parameters(c).items()}
    model = GPTModel(c).eval()
    model.load_state_dict(ours, strict=False)
    ids = torch.randint(0, 41, (2, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {"model_type": "gpt2", "add_cross_attention": True}, {}])
def test_what_is_no_gpt2_is_refused(config):
    with pytest.raises(UserError, match=r"config\.json: "):
        hf_config.read_model_section(config, "config.json")


@pytest.mark.parametrize("name", ["learned", "rotary, default width", "llama", "bloom", "mpt", "learned, untied"])
def test_masks_lie_as_their_weights_do(name):
    """Where a mask is False the exported weight is zero, and only there: the mask went the way of its weight."""
    c = tiny(**EXPRESSIBLE[name][1])
    family = hf_config.choose_family(c)
    _, weights = drawn(c)
    draw = torch.Generator().manual_seed(5)
    masks = {
        n: torch.rand(s.size, generator=draw) > 0.6
        for n, s in list_parameters(c).items()
        if s.kind == "linear" and "proj_v" not in n  # values stay dense: a pack with a part that has no mask
    }
    weights = {n: torch.where(masks[n], w, 0.0) if n in masks else w for n, w in weights.items()}
    tensors = hf.convert_to_hf(hf.fold_scales(weights, c), c, family)
    found = hf.convert_to_hf(masks, c, family, masks=True)
    assert found.keys() <= tensors.keys() and found
    for n, mask in found.items():
        assert mask.dtype == torch.bool and torch.equal(mask, tensors[n] != 0), n
    assert sum(int((~m).sum()) for m in found.values()) == sum(int((~m).sum()) for m in masks.values())
