"""Exported weights compute the same logits in transformers; models of transformers compute the same logits here."""

import json

import pytest
import torch
from safetensors.torch import save_file

from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import GPTConfig
from modelzoo.interop.hf.config import choose_family, make_config_json
from modelzoo.interop.hf.model_section import read_model
from modelzoo.interop.hf.schemas import KINDS
from modelzoo.interop.hf.tensors import convert_from_hf, convert_to_hf, fold_scales
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import check_weights, list_parameters
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
GROUPED = {"attention_module": "multiquery_attention", "extra_attention_params": {"num_kv_groups": 2}, "num_heads": 4}
PARALLEL = {"name": "gptj", "use_untied_layer_norm": True, "use_ffn_bias": True, "rotary_dim": 4}
GPTJ = {
    "name": "gptj", "rotary_dim": 4, "use_projection_bias_in_attention": False, "use_ffn_bias_in_attention": False,
}  # fmt: skip
WAVES = {
    "pos_scaling_factor": 8.0, "pos_scaling_type": "llama3",
    "pos_scaling_extra_args": {
        "low_freq_factor": 0.5, "high_freq_factor": 8.0, "original_max_position_embeddings": 64,
    },
}  # fmt: skip
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
    "rotary, llama3's scaling": ("gpt_neox", {**ROTARY, **WAVES}),
    "llama, llama3's scaling": ("llama", {**LLAMA, **NO_BIAS, **WAVES}),
    "rotary, few biases": ("gpt_neox", {**ROTARY, "use_projection_bias_in_attention": False, "use_ffn_bias": False}),
    "rotary, no biases": ("gpt_neox", {**ROTARY, **NO_BIAS, "norm_type": "biasless-layernorm", "nonlinearity": "relu"}),
    "llama": ("llama", {**LLAMA, **NO_BIAS}),
    "llama, biases": ("llama", {**LLAMA, "share_embedding_weights": False}),
    "llama, some biases": ("llama", {**LLAMA, "use_projection_bias_in_attention": False}),
    "llama, geglu, wide": ("llama", {**LLAMA, "nonlinearity": "geglu", "attention_inner_dim": 24, "rotary_dim": 12}),
    "llama, reglu, mup": ("llama", {**LLAMA, **MUP, "nonlinearity": "reglu", "pos_scaling_factor": 2.0}),
    "llama, shared keys": ("llama", {**LLAMA, **NO_BIAS, **GROUPED, "rotary_dim": 4}),
    "llama, one key, mup": (
        "llama",
        {**LLAMA, **MUP, **GROUPED, "rotary_dim": 4, "extra_attention_params": {"num_kv_groups": 1}},
    ),
    "parallel": ("gpt_neox", PARALLEL),
    "parallel, untied, mup": ("gpt_neox", {**PARALLEL, **MUP, "share_embedding_weights": False}),
    "parallel, no biases": ("gpt_neox", {**PARALLEL, **NO_BIAS}),
    "gptj": ("gptj", GPTJ),
    "gptj, tied with bias, mup": ("gptj", {**GPTJ, **MUP, "use_bias_in_output": True, "use_ffn_bias": True}),
    "gptj, untied with bias": ("gptj", {**GPTJ, "use_bias_in_output": True, "share_embedding_weights": False}),
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
    family = choose_family(c)
    tensors = convert_to_hf(fold_scales(weights, c), c, family)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(make_config_json(c, family, 0)))
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
        (GROUPED, "num_kv_groups: 2"),
        ({**LLAMA, **NO_BIAS, "name": "gptj", "use_untied_layer_norm": True}, "side by side"),
        ({**GPTJ, "position_embedding_type": "learned"}, "side by side"),
        ({**GPTJ, "use_ffn_bias_in_attention": True}, "biases in attention"),
        ({**GPTJ, "rope_theta": 500.0}, "rope_theta: 500.0"),
        ({**PARALLEL, **GROUPED}, "num_kv_groups"),
        ({**BLOOM, "nonlinearity": "gelu"}, "nonlinearity: gelu"),
        ({**MPT, "filter_size": 32}, "filter_size: 32"),
        ({**MPT, "num_heads": 3, "hidden_size": 18, "filter_size": 72}, "num_heads: 3"),
        ({**MPT, "pos_scaling_factor": 2.0}, "pos_scaling_factor"),
    ],
)
def test_what_no_architecture_expresses_is_named(fields, names):
    with pytest.raises(UserError, match="no Hugging Face architecture") as e:
        choose_family(tiny(**fields))
    assert names in str(e.value) and "\n" not in str(e.value)


BACK = [n for n, (kind, _) in EXPRESSIBLE.items() if kind in KINDS and "mup" not in n]


@pytest.mark.parametrize("name", BACK)
def test_what_went_out_comes_back(name):
    """Weights and config: the same numbers, next to zeros where the architecture has biases that ours had not."""
    c = tiny(**EXPRESSIBLE[name][1])
    family = choose_family(c)
    model, weights = drawn(c)
    out = convert_to_hf(fold_scales(weights, c), c, family)
    found = read_model(make_config_json(c, family, 0), "config.json")
    assert found.family is family and not found.notes
    again = GPTConfig.model_validate(found.section)
    back = convert_from_hf(out, again, family)
    assert {n: tuple(x.shape) for n, x in back.items()} == {n: s.size for n, s in list_parameters(again).items()}
    plain = fold_scales(weights, c)
    for name, x in back.items():
        assert torch.equal(x, plain[name]) if name in plain else not x.any(), name
    other = GPTModel(again).eval()
    other.load_state_dict(back, strict=False)
    ids = torch.randint(0, c.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(other, ids), logits(model, ids), rtol=1e-5, atol=1e-5)


SIZES = {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
OLD = {"vocab_size": 41, "n_positions": 10, "n_embd": 16, "n_layer": 3, "n_head": 4}
LONG = {**SIZES, "max_position_embeddings": 10}
THEIRS = {
    "gpt2": ("GPT2", OLD),
    "gpt2, untied": ("GPT2", {**OLD, "tie_word_embeddings": False}),
    "gpt2, relu": ("GPT2", {**OLD, "activation_function": "relu", "n_inner": 24}),
    "gpt2, unscaled": ("GPT2", {**OLD, "scale_attn_weights": False}),
    # BioMedLM's config.json, but for its sizes; Cerebras-GPT's
    "biomedlm": ("GPT2", {**OLD, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True,
                          "activation_function": "gelu_new", "summary_type": "cls_index", "n_ctx": 10}),
    "cerebras-gpt": ("GPT2", {**OLD, "activation_function": "gelu", "n_inner": 64, "scale_attn_weights": True}),
    "gptj": ("GPTJ", {**OLD, "rotary_dim": 2}),
    "gptj, tied": ("GPTJ", {**OLD, "rotary_dim": 4, "tie_word_embeddings": True, "n_inner": 20}),
    "pythia": ("GPTNeoX", {**LONG, "num_attention_heads": 2}),
    "neox, in turn": ("GPTNeoX", {
        **LONG, "num_attention_heads": 2, "use_parallel_residual": False, "tie_word_embeddings": True,
    }),
    "neox, no biases": ("GPTNeoX", {**LONG, "attention_bias": False, "rotary_pct": 1.0, "rotary_emb_base": 500.0}),
    "neox, stretched": ("GPTNeoX", {**LONG, "rotary_pct": 0.5, "rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "neox, gelu_fast": ("GPTNeoX", {**LONG, "hidden_act": "gelu_fast", "rotary_pct": 0.5}),
    "llama": ("Llama", LONG),
    "llama, shared keys": ("Llama", {**LONG, "num_key_value_heads": 2, "rope_theta": 500000.0}),
    "llama, one key, tied": ("Llama", {**LONG, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, biases": ("Llama", {**LONG, "attention_bias": True, "mlp_bias": True}),
    "llama, wide, gelu": ("Llama", {**LONG, "head_dim": 6, "hidden_act": "gelu"}),
    "llama, stretched": ("Llama", {**LONG, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama 3": ("Llama", {**LONG, "rope_theta": 500.0, "head_dim": 8, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 8.0,
        "original_max_position_embeddings": 64,
    }}),
    "mistral": ("Mistral", {**LONG, "num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": ("Qwen2", {**LONG, "num_key_value_heads": 2, "tie_word_embeddings": True}),
}  # fmt: skip


def made(name: str):
    """A model of transformers', every weight far from its initial value."""
    torch.manual_seed(3)
    kind, fields = THEIRS[name]
    # transformers passes over a GPT-2's scale fields in its default attention; the eager one follows them.
    config = getattr(transformers, f"{kind}Config")(**fields, initializer_range=0.3, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.mark.parametrize("name", THEIRS)
def test_a_model_of_transformers_computes_the_same_here(name):
    theirs = made(name)
    found = read_model(theirs.config.to_dict(), "config.json")
    c = GPTConfig.model_validate(found.section)
    ours = convert_from_hf(theirs.state_dict(), c, found.family)
    assert not found.notes
    assert {n: tuple(x.shape) for n, x in ours.items()} == {n: s.size for n, s in list_parameters(c).items()}
    model = GPTModel(c).eval()
    model.load_state_dict(ours, strict=False)
    ids = torch.randint(0, 41, (2, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(ids).logits
    assert wanted.std() > 0.1
    torch.testing.assert_close(logits(model, ids), wanted, rtol=1e-5, atol=1e-5 * max(1.0, wanted.abs().max().item()))


def test_a_sliding_window_is_the_context():
    """Within it a Mistral sees all that came before; beyond it, other tokens than this trainer's model would."""
    sizes = {**LONG, "num_key_value_heads": 1, "max_position_embeddings": 64}
    config = transformers.MistralConfig(**sizes, sliding_window=6)
    found = read_model(config.to_dict(), "config.json")
    assert found.section["max_position_embeddings"] == 6
    assert len(found.notes) == 1 and "sliding_window: 6" in found.notes[0] and "64" in found.notes[0]


@pytest.mark.parametrize(
    "config,names",
    [
        (
            {"model_type": "bloom"},
            "'bloom'; can be imported: gpt2, gptj, gpt_neox, llama, mistral, qwen2, biogpt",
        ),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention"),
        ({}, "model_type"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_scaling: 'yarn'"),
        ({"model_type": "gpt_neox", "rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters: 'dynamic'"),
        ({"model_type": "llama", "rope_scaling": {"type": "linear"}}, "factor"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"model_type": "llama", "hidden_act": "gelu_pytorch_tanh"}, "hidden_act: 'gelu_pytorch_tanh'"),
        ({"model_type": "llama", "num_key_value_heads": 5}, "num_key_value_heads: 5"),
        ({"model_type": "llama", "num_attention_heads": 5}, "num_attention_heads: 5"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "llama", "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: 0.5"),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"]}, "layer_types: 'chunked_attention'"),
        ({"model_type": "gpt_neox", "rotary_pct": 0.01}, "rotary_pct"),
        ({"model_type": "gpt_neox", "hidden_act": "mish"}, "hidden_act"),
        ({"model_type": "gptj", "rotary_dim": None}, "rotary_dim"),
        ({"model_type": "gpt_neox", "attention_bias": "yes"}, "attention_bias"),
    ],
)
def test_what_the_model_cannot_hold_is_refused_by_its_key(config, names):
    with pytest.raises(UserError, match=r"config\.json: ") as e:
        read_model(config, "config.json")
    assert names in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["gpt2", "pythia", "llama, shared keys"])
def test_tensors_that_do_not_fit_are_named(name):
    theirs = made(name)
    found = read_model(theirs.config.to_dict(), "config.json")
    c, family = GPTConfig.model_validate(found.section), found.family
    tensors = dict(theirs.state_dict())
    for broken in (n for n in tensors if "layers.0" in n or "h.0" in n):
        for x in (tensors[broken].flatten()[:7], torch.tensor(1.0)):
            try:
                back = convert_from_hf({**tensors, broken: x}, c, family)
            except UserError as e:
                assert broken in str(e)
            else:
                with pytest.raises(UserError):
                    check_weights({n: w.shape for n, w in back.items()}, c, "there")
    with pytest.raises(UserError, match=r"extra\.weight"):
        convert_from_hf({**tensors, "extra.weight": torch.zeros(1)}, c, family)


MASKED = (
    *("learned", "learned, untied", "rotary, default width", "bloom", "mpt"),
    *("llama", "llama, shared keys", "parallel", "gptj"),
)


@pytest.mark.parametrize("name", MASKED)
def test_masks_lie_as_their_weights_do(name):
    """Where a mask is False the exported weight is zero, and only there: the mask went the way of its weight."""
    c = tiny(**EXPRESSIBLE[name][1])
    family = choose_family(c)
    _, weights = drawn(c)
    draw = torch.Generator().manual_seed(5)
    masks = {
        n: torch.rand(s.size, generator=draw) > 0.6
        for n, s in list_parameters(c).items()
        if s.kind == "linear" and "proj_v" not in n  # values stay dense: a pack with a part that has no mask
    }
    weights = {n: torch.where(masks[n], w, 0.0) if n in masks else w for n, w in weights.items()}
    tensors = convert_to_hf(fold_scales(weights, c), c, family)
    found = convert_to_hf(masks, c, family, masks=True)
    assert found.keys() <= tensors.keys() and found
    for n, mask in found.items():
        assert mask.dtype == torch.bool and torch.equal(mask, tensors[n] != 0), n
    assert sum(int((~m).sum()) for m in found.values()) == sum(int((~m).sum()) for m in masks.values())
