"""BioGPT of transformers (`BioGptForCausalLM`) as a GPT of ours: its config.json and its tensors.

It is a pre-LN decoder with learned positions from row 2 on and embeddings of tokens scaled by sqrt(hidden_size). Here
`embeddings_scale` scales tokens and positions, so the table of positions is divided by it (by 32, exactly, for
microsoft/biogpt). Its norms' epsilon is 1e-5, whatever config.json says: transformers does not read it there.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import GPTConfig
from modelzoo.interop.hf.families import FFN_IN, FFN_OUT, LAYER, OUTPUT, QKV
from modelzoo.interop.hf.model_section import check_section
from modelzoo.interop.hf.schemas import ACTIVATIONS, Layers, Size
from modelzoo.names import HEAD, POSITIONS, WORDS
from modelzoo.records import Record, check_record

OFFSET, EPSILON = 2, 1e-5
TOP = {
    "biogpt.embed_tokens": WORDS,
    "biogpt.embed_positions": POSITIONS,
    "biogpt.layer_norm": "model.ln_f",
    "output_projection": HEAD,
}
WITHIN = {
    "self_attn_layer_norm": "norm1",
    "final_layer_norm": "norm3",
    **{f"self_attn.{p}_proj": ours for p, ours in zip("qkv", QKV, strict=True)},
    "self_attn.out_proj": OUTPUT,
    "fc1": FFN_IN,
    "fc2": FFN_OUT,
}
KEYS = {  # config.json's to ours
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "filter_size",
    "hidden_act": "nonlinearity",
    "hidden_dropout_prob": "dropout_rate",
    "attention_probs_dropout_prob": "attention_dropout_rate",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "share_embedding_weights",
}


class _BioGPT(Record):
    """What is read of config.json. null means the default, as for transformers."""

    vocab_size: Size | None = None
    hidden_size: Size | None = None
    num_hidden_layers: Layers | None = None
    num_attention_heads: Size | None = None
    intermediate_size: Size | None = None
    hidden_act: str | None = None
    hidden_dropout_prob: float | None = None
    attention_probs_dropout_prob: float | None = None
    max_position_embeddings: Size | None = None
    initializer_range: float | None = None
    tie_word_embeddings: bool | None = None
    scale_embedding: bool | None = None


DEFAULTS = _BioGPT(
    vocab_size=42384, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
    hidden_act="gelu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, max_position_embeddings=1024,
    initializer_range=0.02, tie_word_embeddings=True, scale_embedding=True,
)  # fmt: skip


def read_model_section(found: Any, path: str) -> dict[str, Any]:
    """trainer.init.model, a valid one, for what a BioGPT's config.json (`path`) holds.

    Raises:
        UserError: a value that is none, or that a GPT of ours does not compute; names the key.
    """
    theirs = check_record(found, _BioGPT, path, "is not the config.json of a BioGPT")
    given = {k: getattr(DEFAULTS, k) if (v := getattr(theirs, k)) is None else v for k in _BioGPT.model_fields}
    given["hidden_act"] = ACTIVATIONS.get(given["hidden_act"], given["hidden_act"])
    section = {
        "name": "gpt2",
        **{ours: given[theirs] for theirs, ours in KEYS.items()},
        "position_embedding_type": "learned",
        "position_embedding_offset": OFFSET,
        "embeddings_scale": math.sqrt(given["hidden_size"]) if given["scale_embedding"] else 1.0,
        "layer_norm_epsilon": EPSILON,
        "attention_type": "scaled_dot_product",
    }
    check_section(section, {ours: key for key, ours in KEYS.items()}, "BioGPT", path)
    return section


def convert_weights(tensors: Mapping[str, Tensor], c: GPTConfig) -> dict[str, Tensor]:
    """A BioGPT's tensors under our names, positions divided by the scale of the embeddings.

    Raises:
        UserError: a tensor that a BioGPT of these sizes does not have, or a tied head with weights of its own.
    """
    names = dict(TOP)
    for i in range(c.num_hidden_layers):
        names |= {f"biogpt.layers.{i}.{theirs}": f"{LAYER.format(i)}{ours}" for theirs, ours in WITHIN.items()}
    out: dict[str, Tensor] = {}
    for name, x in tensors.items():
        whole = name if name.startswith(("biogpt.", "output_projection.")) else f"biogpt.{name}"
        module, _, kind = whole.rpartition(".")
        ours = f"{names.get(module)}.{kind}"
        if module not in names or ours in out:
            raise UserError(f"{name}: is no tensor of a BioGPT with these sizes, or is there twice")
        out[ours] = x
    if c.share_embedding_weights and (head := out.pop(f"{HEAD}.weight", None)) is not None:
        words = out.get(f"{WORDS}.weight")
        if words is None or not torch.equal(head, words):
            raise UserError(
                "output_projection.weight differs from biogpt.embed_tokens.weight, yet the config ties them"
            )
    if f"{POSITIONS}.weight" in out:
        out[f"{POSITIONS}.weight"] = out[f"{POSITIONS}.weight"].float() / c.embeddings_scale
    return out
