"""llama.cpp's counterparts of Hugging Face architectures: keys, layouts of tensors, and what each of them computes.

Keys and layouts are those of llama.cpp's convert_hf_to_gguf.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import GPTConfig
from modelzoo.interop.hf.families import BLOOM, GPT2, LLAMA, MPT, NEOX, Family


def _transpose(x: Tensor, facts: Mapping[str, Any]) -> Tensor:
    """[in, out] to [out, in]; a bias stays."""
    return x.t() if x.dim() == 2 else x


def _unpack_heads(x: Tensor, facts: Mapping[str, Any]) -> Tensor:
    """Rows of q, k and v head by head, to all of q, all of k, all of v."""
    return x.unflatten(0, (facts["num_attention_heads"], 3, -1)).transpose(0, 1).flatten(0, 2)


def _pair(x: Tensor, heads: int) -> Tensor:
    """Rows of each head from rotary pairs (i, i + dim/2) to (2i, 2i+1)."""
    return x.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


class Architecture(NamedTuple):
    """llama.cpp's counterpart of a Hugging Face architecture.

    keys: methods of gguf's writer, without `add_`, by the key of config.json that they take. layouts: what the tensors
    of a module need, by the end of its name. activations: those that it computes; gelu by its tanh form. tied: whether
    the head may be left to the word embeddings. ropes: the ways of stretching rotary positions that it has.
    """

    name: str
    keys: dict[str, str]
    layouts: dict[str, Callable[[Tensor, Mapping[str, Any]], Tensor]]
    activations: tuple[str, ...]
    tied: bool
    ropes: tuple[str, ...] = ("default", "linear")


_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "head_count",
    "max_position_embeddings": "context_length",
}
ARCHITECTURES = {
    GPT2.model_type: Architecture(
        "gpt2",
        {
            "n_embd": "embedding_length",
            "n_layer": "block_count",
            "n_inner": "feed_forward_length",
            "n_head": "head_count",
            "n_positions": "context_length",
            "layer_norm_epsilon": "layer_norm_eps",
        },
        dict.fromkeys(("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), _transpose),
        ("gelu_new", "gelu"),
        tied=True,
    ),
    NEOX.model_type: Architecture(
        "gptneox",
        {
            **_SIZES,
            "layer_norm_eps": "layer_norm_eps",
            "use_parallel_residual": "parallel_residual",
            "rotary_emb_base": "rope_freq_base",
        },
        {"attention.query_key_value": _unpack_heads},
        ("gelu_new", "gelu"),
        tied=False,
    ),
    LLAMA.model_type: Architecture(
        "llama",
        {
            **_SIZES,
            "vocab_size": "vocab_size",
            "rms_norm_eps": "layer_norm_rms_eps",
            "num_key_value_heads": "head_count_kv",
            "rope_theta": "rope_freq_base",
        },
        {
            "self_attn.q_proj": lambda x, facts: _pair(x, facts["num_attention_heads"]),
            "self_attn.k_proj": lambda x, facts: _pair(x, facts["num_key_value_heads"]),
        },
        ("swiglu",),
        tied=True,
        ropes=("default", "linear", "llama3"),
    ),
}


def choose_architecture(c: GPTConfig, family: Family, facts: Mapping[str, Any], out: str) -> Architecture:
    """llama.cpp's counterpart of `family`.

    Args:
        facts: config.json of the model. out: the file to write, which errors name.

    Raises:
        UserError: it has none, or does not compute something of this model; names the field.
    """
    if (how := ARCHITECTURES.get(family.model_type)) is None:
        alibi = "alibi positions, which llama.cpp reads in other forms alone" if family in (BLOOM, MPT) else ""
        raise UserError(f"{out}: GGUF is not written of {alibi or family.architecture}; export it as a folder")
    _check_parts(c, how, facts, out)
    return how


def _check_parts(c: GPTConfig, how: Architecture, facts: Mapping[str, Any], out: str) -> None:
    """Refuse what llama.cpp's graph of the architecture does not compute; names the field."""
    if c.nonlinearity not in how.activations:
        there = " or ".join(how.activations)
        raise UserError(
            f"{out}: nonlinearity: {c.nonlinearity}: llama.cpp's {how.name} has {there}; export it as a folder"
        )
    if (rope := facts.get("rope_parameters", {}).get("rope_type", "default")) not in how.ropes:
        there = " or ".join(how.ropes)
        raise UserError(f"{out}: pos_scaling_type: {rope}: llama.cpp's {how.name} has {there}; export it as a folder")
