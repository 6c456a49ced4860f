"""Configs at Hugging Face's edge: which architecture fits, its config.json, and a GPT-2's config.json as ours."""

import math
from typing import Annotated, Any

from pydantic import Field, ValidationError

from modelzoo.config.errors import UserError
from modelzoo.config.model import GPTConfig
from modelzoo.interop.hf import BLOOM, GPT2, LLAMA, MPT, NEOX, Family
from modelzoo.models.shapes import GLU
from modelzoo.records import Record, check_record

ACTIVATIONS = {"squared_relu": "relu2", "geglu": "gelu", "reglu": "relu", "swiglu": "silu"}  # others have one name


def choose_family(c: GPTConfig) -> Family:
    """The architecture that computes what the config asks for.

    Raises:
        UserError: names each field that no architecture with those positions can express.
    """
    glu, wide = c.nonlinearity in GLU, c.inner_dim != c.hidden_size
    biased = c.use_ffn_bias or c.use_ffn_bias_in_attention or c.use_projection_bias_in_attention
    positions = c.position_embedding_type
    fixed_ffn = (c.filter_size != 4 * c.hidden_size, f"filter_size: {c.filter_size} (4 x hidden_size there)")
    rms = (c.norm_type == "rmsnorm", "norm_type: rmsnorm")
    gated = (glu, f"nonlinearity: {c.nonlinearity}")
    inner = (wide, f"attention_inner_dim: {c.inner_dim}")
    embedding_norm = (c.embedding_layer_norm, "embedding_layer_norm: true")
    always = [
        (c.use_bias_in_output, "use_bias_in_output: true"),
        (c.embeddings_scale == 0, "embeddings_scale: 0"),
    ]
    if positions == "rotary" and c.norm_type == "rmsnorm" and glu:
        partial = c.rotary_width != c.head_dim
        uneven = c.hidden_size % c.num_heads != 0
        family, misfits = LLAMA, [
            (partial, f"rotary_dim: {c.rotary_width} (the whole head, {c.head_dim}, there)"),
            (uneven, f"num_heads: {c.num_heads} that do not divide hidden_size"),
            embedding_norm,
        ]  # fmt: skip
    elif positions == "rotary":
        family, misfits = NEOX, [rms, gated, inner, embedding_norm]
    elif positions == "alibi":
        stretched = (c.pos_scaling_factor != 1.0, f"pos_scaling_factor: {c.pos_scaling_factor}")
        misfits = [stretched, fixed_ffn, inner, rms]
        if c.embedding_layer_norm:
            family = BLOOM
            misfits.append((c.nonlinearity != "gelu_new", f"nonlinearity: {c.nonlinearity} (gelu_new there)"))
        else:
            family = MPT
            misfits += [
                (biased, "biases in linears (none there)"),
                (c.norm_type == "layernorm", "norm_type: layernorm (biasless-layernorm there)"),
                (c.nonlinearity != "gelu", f"nonlinearity: {c.nonlinearity} (gelu there)"),
                (c.num_heads & (c.num_heads - 1) != 0, f"num_heads: {c.num_heads} (a power of two there)"),
            ]
    else:
        family, misfits = GPT2, [rms, gated, inner, embedding_norm]
    if found := [what for wrong, what in [*misfits, *always] if wrong]:
        raise UserError(
            f"model: no Hugging Face architecture has {positions or 'no'} positions ({family.architecture} is the "
            f"nearest) together with {'; '.join(found)}"
        )
    return family


def make_config_json(c: GPTConfig, family: Family, eos: int | None) -> dict[str, Any]:
    """config.json for `family`, in the spelling that transformers 4 and 5 both read."""
    embedding = c.dropout_rate if c.embedding_dropout_rate is None else c.embedding_dropout_rate
    attention = c.dropout_rate if c.attention_dropout_rate is None else c.attention_dropout_rate
    act = ACTIVATIONS.get(c.nonlinearity, c.nonlinearity)
    common = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": c.vocab_size,
        "initializer_range": c.initializer_range,
        "tie_word_embeddings": c.share_embedding_weights,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    d, layers, heads, eps = c.hidden_size, c.num_hidden_layers, c.num_heads, c.layer_norm_epsilon
    if family is GPT2:
        sizes = {"n_positions": c.max_position_embeddings, "n_embd": d, "n_layer": layers, "n_head": heads}
        rates = {"resid_pdrop": c.dropout_rate, "embd_pdrop": embedding, "attn_pdrop": attention}
        return {
            **common, **sizes, **rates, "n_inner": c.filter_size, "activation_function": act, "layer_norm_epsilon": eps
        }  # fmt: skip
    if family is BLOOM:
        rates = {"hidden_dropout": c.dropout_rate, "attention_dropout": attention}
        sizes = {"hidden_size": d, "n_layer": layers, "n_head": heads, "seq_length": c.max_position_embeddings}
        return {**common, **sizes, "layer_norm_epsilon": eps, **rates}
    if family is MPT:
        sizes = {"d_model": d, "n_layers": layers, "n_heads": heads, "max_seq_len": c.max_position_embeddings}
        return {**common, **sizes, "expansion_ratio": 4, "layer_norm_epsilon": eps, "no_bias": True,
                "attn_config": {"alibi": True, "alibi_bias_max": 8}}  # fmt: skip
    sizes = {"hidden_size": d, "intermediate_size": c.filter_size, "num_hidden_layers": layers}
    share = c.rotary_width / c.head_dim
    while int(c.head_dim * share) < c.rotary_width:  # they multiply back and truncate
        share = math.nextafter(share, 1.0)
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.pos_scaling_factor != 1.0:
        rope = {"rope_type": "linear", "factor": c.pos_scaling_factor, "rope_theta": c.rope_theta}
    scaling = {"type": "linear", "factor": c.pos_scaling_factor} if c.pos_scaling_factor != 1.0 else None
    shared = {
        **common, **sizes, "num_attention_heads": heads, "hidden_act": act, "attention_dropout": attention,
        "max_position_embeddings": c.max_position_embeddings, "attention_bias": True,
    }  # fmt: skip
    if family is NEOX:
        rope["partial_rotary_factor"] = share
        return {**shared, "layer_norm_eps": eps, "use_parallel_residual": False, "hidden_dropout": c.dropout_rate,
                "rotary_pct": share, "rotary_emb_base": c.rope_theta, "rope_scaling": scaling,
                "rope_parameters": rope}  # fmt: skip
    bias = c.use_projection_bias_in_attention or c.use_ffn_bias_in_attention
    return {**shared, "rms_norm_eps": eps, "head_dim": c.head_dim, "num_key_value_heads": heads,
            "attention_bias": bias, "mlp_bias": c.use_ffn_bias, "rope_theta": c.rope_theta, "rope_scaling": scaling,
            "rope_parameters": rope}  # fmt: skip


# GPT-2's config keys: theirs to ours. `None`: changes nothing that a checkpoint computes.
IMPORTED = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_heads",
    "n_inner": "filter_size",
    "activation_function": "nonlinearity",
    "resid_pdrop": "dropout_rate",
    "embd_pdrop": "embd_pdrop",
    "attn_pdrop": "attention_dropout_rate",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "share_embedding_weights",
    "scale_attn_by_inverse_layer_idx": "scale_qk_dot_by_layer_idx",
}


Size = Annotated[int, Field(gt=0, le=2**20)]


class _GPT2(Record):
    """What is read of a GPT-2's config.json. null means the default, as for transformers."""

    model_type: str
    vocab_size: Size | None = None
    n_positions: Size | None = None
    n_embd: Size | None = None
    n_layer: Annotated[int, Field(gt=0, le=2**12)] | None = None
    n_head: Size | None = None
    n_inner: Size | None = None
    activation_function: str | None = None
    resid_pdrop: float | None = None
    embd_pdrop: float | None = None
    attn_pdrop: float | None = None
    layer_norm_epsilon: float | None = None
    initializer_range: float | None = None
    tie_word_embeddings: bool | None = None
    scale_attn_by_inverse_layer_idx: bool | None = None
    scale_attn_weights: bool | None = None
    add_cross_attention: bool | None = None


def read_model_section(found: Any, path: str) -> dict[str, Any]:
    """trainer.init.model, a valid one, for what a GPT-2's config.json (`path`) holds.

    Raises:
        UserError: another model type, a value that is none, or something that a GPT of ours does not compute; names
            the key.
    """
    kind = found.get("model_type") if isinstance(found, dict) else None
    if isinstance(kind, str) and kind != "gpt2":
        raise UserError(f"{path}: model_type {kind[:40]!r}; only gpt2 and biogpt can be imported")
    theirs = check_record(found, _GPT2, path, "is not the config.json of a GPT-2")
    if theirs.add_cross_attention:
        raise UserError(f"{path}: add_cross_attention: true asks for cross-attention, which this trainer does not have")
    defaults = {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "resid_pdrop": 0.1,
        "embd_pdrop": 0.1, "attn_pdrop": 0.1, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }  # fmt: skip
    given = {**defaults, **{k: v for k in _GPT2.model_fields if (v := getattr(theirs, k)) is not None}}
    given.setdefault("n_inner", 4 * given["n_embd"])
    if given["n_embd"] % given["n_head"]:
        raise UserError(f"{path}: n_head: {given['n_head']} does not divide n_embd, {given['n_embd']}")
    section = {ours: given[theirs] for theirs, ours in IMPORTED.items() if theirs in given}
    act = {"relu2": "squared_relu", "swish": "silu", "gelu_pytorch_tanh": "gelu_new"}
    section["nonlinearity"] = act.get(section["nonlinearity"], section["nonlinearity"])
    scaled = given.get("scale_attn_weights", True)
    section = {
        "name": "gpt2",
        **section,
        "position_embedding_type": "learned",
        "attention_type": "scaled_dot_product" if scaled else "dot_product",
    }
    named = {ours: key for key, ours in IMPORTED.items()}
    try:
        GPTConfig.model_validate(section)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        key = ".".join(named.get(str(part), str(part)) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {f'{key}: ' if key else ''}{reason}; this trainer has no such GPT-2") from None
    return section
