"""Which Hugging Face architecture computes what a config asks for, and its config.json."""

import math
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import GPTConfig
from modelzoo.interop.hf.families import BLOOM, GPT2, GPTJ, LLAMA, MPT, NEOX, Family
from modelzoo.models.shapes import GLU

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
    head_bias = (c.use_bias_in_output, "use_bias_in_output: true")
    grouped = (c.kv_heads != c.num_heads, f"num_kv_groups: {c.kv_heads}")
    side_by_side = (c.parallel, "name: gptj (attention and feed-forward side by side)")
    stretched = (c.pos_scaling_factor != 1.0, f"pos_scaling_factor: {c.pos_scaling_factor}")
    always = (c.embeddings_scale == 0, "embeddings_scale: 0")
    if positions == "rotary" and c.tied_norms:
        in_attention = c.use_ffn_bias_in_attention or c.use_projection_bias_in_attention
        family, misfits = GPTJ, [
            rms, gated, inner, embedding_norm, grouped, stretched,
            (in_attention, "biases in attention (none there)"),
            (c.rope_theta != 1e4, f"rope_theta: {c.rope_theta} (10000 there)"),
        ]  # fmt: skip
    elif positions == "rotary" and c.norm_type == "rmsnorm" and glu:
        partial = c.rotary_width != c.head_dim
        uneven = c.hidden_size % c.num_heads != 0
        family, misfits = LLAMA, [
            (partial, f"rotary_dim: {c.rotary_width} (the whole head, {c.head_dim}, there)"),
            (uneven, f"num_heads: {c.num_heads} that do not divide hidden_size"),
            embedding_norm, side_by_side, head_bias,
        ]  # fmt: skip
    elif positions == "rotary":
        family, misfits = NEOX, [rms, gated, inner, embedding_norm, grouped, head_bias]
    elif positions == "alibi":
        misfits = [stretched, fixed_ffn, inner, rms, grouped, side_by_side, head_bias]
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
        family, misfits = GPT2, [rms, gated, inner, embedding_norm, grouped, side_by_side, head_bias]
    if found := [what for wrong, what in [*misfits, always] if wrong]:
        raise UserError(
            f"model: no Hugging Face architecture has {positions or 'no'} positions ({family.architecture} is the "
            f"nearest) together with {'; '.join(found)}"
        )
    return family


def choose_bos(c: GPTConfig, eos: int | None) -> int | None:
    """The `bos_token_id` of an export: the model's own, else the token that ends a text, as GPT-2's is."""
    return eos if c.bos_token_id is None else c.bos_token_id


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
        "bos_token_id": choose_bos(c, eos),
        "eos_token_id": eos,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    d, layers, heads, eps = c.hidden_size, c.num_hidden_layers, c.num_heads, c.layer_norm_epsilon
    if family in (GPT2, GPTJ):
        sizes = {"n_positions": c.max_position_embeddings, "n_embd": d, "n_layer": layers, "n_head": heads}
        sizes |= {"rotary_dim": c.rotary_width} if family is GPTJ else {}
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
    scaling = None  # transformers 4's place for it
    if c.pos_scaling_factor != 1.0:
        scaling = {"rope_type": c.pos_scaling_type, "factor": c.pos_scaling_factor}
        scaling |= c.waves.model_dump() if c.pos_scaling_type == "llama3" else {"type": "linear"}
        rope = {**scaling, "rope_theta": c.rope_theta}
    shared = {
        **common, **sizes, "num_attention_heads": heads, "hidden_act": act, "attention_dropout": attention,
        "max_position_embeddings": c.max_position_embeddings, "attention_bias": True,
    }  # fmt: skip
    if family is NEOX:
        rope["partial_rotary_factor"] = share
        return {**shared, "layer_norm_eps": eps, "use_parallel_residual": c.parallel, "hidden_dropout": c.dropout_rate,
                "rotary_pct": share, "rotary_emb_base": c.rope_theta, "rope_scaling": scaling,
                "rope_parameters": rope}  # fmt: skip
    bias = c.use_projection_bias_in_attention or c.use_ffn_bias_in_attention
    return {**shared, "rms_norm_eps": eps, "head_dim": c.head_dim, "num_key_value_heads": c.kv_heads,
            "attention_bias": bias, "mlp_bias": c.use_ffn_bias, "rope_theta": c.rope_theta, "rope_scaling": scaling,
            "rope_parameters": rope}  # fmt: skip
