"""Our parameters under Hugging Face's names, both ways: one table of name pairs for each architecture that fits.

A Hugging Face model computes what ours does if its architecture has every part that the config asks for
(`hf_config.choose`); scalars that it has no place for (muP's, attention scales) are multiplied into weights by `fold`.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.model import GPTConfig
from modelzoo.models.decoder import Attention
from modelzoo.models.gpt import GPT, EmbeddingLayer
from modelzoo.names import HEAD, POSITIONS, WORDS

LAYER = "model.transformer_decoder.layers.{}."
QKV = tuple(f"self_attn.proj_{p}_dense_layer" for p in "qkv")
OUTPUT, FFN_IN, FFN_OUT = "self_attn.proj_output_dense_layer", "ffn.ffn.0.linear_layer", "ffn.ffn.1.linear_layer"
FFN_GATE = "ffn.ffn.0.linear_layer_for_glu"
LINEAR = (*QKV, OUTPUT, FFN_IN, FFN_GATE, FFN_OUT)


class Family(NamedTuple):
    """A Hugging Face architecture: module names (ours to theirs) and the layout of its tensors.

    packed: their module that holds queries, keys and values together: all queries first ("thirds"), or head by head
    ("heads"). biases: whether their linears and norms always have biases (absent ones of ours become zeros), where
    None leaves it to the config. transposed: linears are [in, out]. half: rotary pairs (i, i + dim/2), ours (2i, 2i+1).
    """

    model_type: str
    architecture: str
    layer: str
    top: dict[str, str]
    within: dict[str, str]
    packed: tuple[str, str] | None = None
    biases: bool | None = True
    transposed: bool = False
    half: bool = False


_GPT2_LAYER = {"norm1": "ln_1", "norm3": "ln_2", OUTPUT: "attn.c_proj", FFN_IN: "mlp.c_fc", FFN_OUT: "mlp.c_proj"}
GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    "transformer.h.{}.",
    {WORDS: "transformer.wte", POSITIONS: "transformer.wpe", "model.ln_f": "transformer.ln_f"},
    _GPT2_LAYER,
    packed=("attn.c_attn", "thirds"),
    transposed=True,
)
_FFN = {FFN_IN: "mlp.dense_h_to_4h", FFN_OUT: "mlp.dense_4h_to_h"}
_NORMS = {"norm1": "input_layernorm", "norm3": "post_attention_layernorm"}
NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    "gpt_neox.layers.{}.",
    {WORDS: "gpt_neox.embed_in", "model.ln_f": "gpt_neox.final_layer_norm"},
    {**_NORMS, OUTPUT: "attention.dense", **_FFN},
    packed=("attention.query_key_value", "heads"),
    half=True,
)
LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    "model.layers.{}.",
    {WORDS: "model.embed_tokens", "model.ln_f": "model.norm"},
    {
        **_NORMS,
        **{ours: f"self_attn.{p}_proj" for ours, p in zip(QKV, "qkv", strict=True)},
        **{OUTPUT: "self_attn.o_proj", FFN_IN: "mlp.up_proj", FFN_GATE: "mlp.gate_proj", FFN_OUT: "mlp.down_proj"},
    },
    biases=None,
    half=True,
)
BLOOM = Family(
    "bloom",
    "BloomForCausalLM",
    "transformer.h.{}.",
    {
        WORDS: "transformer.word_embeddings",
        "model.embedding_ln_f": "transformer.word_embeddings_layernorm",
        "model.ln_f": "transformer.ln_f",
    },
    {**_NORMS, OUTPUT: "self_attention.dense", **_FFN},
    packed=("self_attention.query_key_value", "heads"),
)
MPT = Family(
    "mpt",
    "MptForCausalLM",
    "transformer.blocks.{}.",
    {WORDS: "transformer.wte", "model.ln_f": "transformer.norm_f"},
    {"norm1": "norm_1", "norm3": "norm_2", OUTPUT: "attn.out_proj", FFN_IN: "ffn.up_proj", FFN_OUT: "ffn.down_proj"},
    packed=("attn.Wqkv", "thirds"),
    biases=False,
)


@torch.no_grad()
def fold_scales(weights: Mapping[str, Tensor], c: GPTConfig) -> dict[str, Tensor]:
    """`weights` (ours by name) with every scalar of the config multiplied in, and positions as a plain table.

    Afterwards attention logits are scaled by 1 / sqrt(head_dim), embeddings and logits by 1.
    """
    out = {n: w.float() for n, w in weights.items()}
    with torch.device("meta"):  # the scalars alone; no weight is drawn
        small = c.model_copy(update={"vocab_size": 1, "num_hidden_layers": 0, "max_position_embeddings": 1})
        output = GPT(small).output_scale
    for i, scale in enumerate(query_scales(c)):
        _scale(out, f"{LAYER.format(i)}{QKV[0]}", scale)
    table = _positions(out, c)
    if table is not None:
        out[f"{POSITIONS}.weight"] = table
    e = c.embeddings_scale
    if c.embedding_layer_norm:
        _scale(out, "model.embedding_ln_f", e)
    else:
        _scale(out, WORDS, e)
        _scale(out, POSITIONS, e)
        if c.share_embedding_weights:
            output /= e  # the head reads the scaled embeddings
    _scale(out, "model.ln_f", output)
    return out


def query_scales(c: GPTConfig) -> list[float]:
    """By layer, what `fold` multiplies queries by: the config's attention scale times sqrt(head_dim)."""
    with torch.device("meta"):
        return [Attention(c, i).scale * math.sqrt(c.head_dim) for i in range(c.num_hidden_layers)]


def _scale(weights: dict[str, Tensor], module: str, by: float) -> None:
    for kind in ("weight", "bias"):
        if by != 1.0 and f"{module}.{kind}" in weights:
            weights[f"{module}.{kind}"] = weights[f"{module}.{kind}"] * by


def _positions(weights: Mapping[str, Tensor], c: GPTConfig) -> Tensor | None:
    """[max_position_embeddings, hidden_size] that is added to the embeddings; None where positions act in attention."""
    if c.position_embedding_type == "learned":
        return weights[f"{POSITIONS}.weight"][c.position_embedding_offset :]
    if c.position_embedding_type == "fixed":
        return EmbeddingLayer(c.model_copy(update={"vocab_size": 1})).fpe.clone()
    if c.position_embedding_type is None:
        return torch.zeros(c.max_position_embeddings, c.hidden_size)
    return None


def convert_to_hf(
    tensors: Mapping[str, Tensor], c: GPTConfig, family: Family, masks: bool = False
) -> dict[str, Tensor]:
    """Our tensors (folded weights, or masks by the names of their weights) under Hugging Face's names and layout.

    Masks keep to the weights that have one; a packed weight of which only a part has one is live in the rest.
    """
    out: dict[str, Tensor] = {}

    def put(ours: str, theirs: str, linear: bool) -> None:
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in tensors:
                x = tensors[f"{ours}.{kind}"]
                x = _halve(x, c) if family.half and ours.endswith(QKV[:2]) else x
                out[f"{theirs}.{kind}"] = x.t() if linear and family.transposed and kind == "weight" else x
        if not masks and f"{theirs}.weight" in out and f"{theirs}.bias" not in out and _biased(c, family, ours):
            w = tensors[f"{ours}.weight"]
            out[f"{theirs}.bias"] = torch.zeros(w.shape[0])

    for ours, theirs in family.top.items():
        put(ours, theirs, False)
    for i in range(c.num_hidden_layers):
        ours, theirs = LAYER.format(i), family.layer.format(i)
        for name, other in family.within.items():
            put(ours + name, theirs + other, name in LINEAR)
        if family.packed:
            module, order = family.packed
            _pack(tensors, out, ours, theirs + module, order, c, family, masks)
    if not c.share_embedding_weights:
        head = "embed_out" if family is NEOX else "lm_head"
        put(HEAD, head, False)
    return {n: x.contiguous() for n, x in out.items()}


def _biased(c: GPTConfig, family: Family, ours: str) -> bool:
    """Whether their module has a bias although ours may have none."""
    if family.biases is not None:
        return family.biases and not ours.endswith(("embeddings", "embed", "lm_head"))
    attention = c.use_projection_bias_in_attention or c.use_ffn_bias_in_attention
    return attention if "self_attn" in ours else c.use_ffn_bias if ".ffn." in ours else False


def _pack(tensors, out, ours: str, theirs: str, order: str, c: GPTConfig, family: Family, masks: bool) -> None:
    for kind in ("weight", "bias"):
        parts = [tensors.get(f"{ours}{p}.{kind}") for p in QKV]
        if all(p is None for p in parts):
            if masks or kind == "weight" or not family.biases:
                continue
            parts = [torch.zeros(c.inner_dim)] * 3
        like = next(p for p in parts if p is not None)
        parts = [torch.ones_like(like) if p is None else p for p in parts]
        if family.half:
            parts[:2] = [_halve(p, c) for p in parts[:2]]
        x = torch.stack(parts)  # [3, inner, ...]
        if order == "heads":
            x = x.unflatten(1, (c.num_heads, -1)).transpose(0, 1)  # [heads, 3, head_dim, ...]
            x = x.flatten(0, 2)
        else:
            x = x.flatten(0, 1)
        out[f"{theirs}.{kind}"] = x.t() if kind == "weight" and family.transposed else x


def _halve(x: Tensor, c: GPTConfig) -> Tensor:
    """Rows of a query or key projection [inner, ...] with rotary pairs (2i, 2i+1) moved to (i, i + dim/2)."""
    r = c.rotary_width
    order = [*range(0, r, 2), *range(1, r, 2), *range(r, c.head_dim)]
    return x.unflatten(0, (c.num_heads, c.head_dim))[:, order].flatten(0, 1)


def convert_from_gpt2(tensors: Mapping[str, Tensor], c: GPTConfig, masks: bool = False) -> dict[str, Tensor]:
    """A GPT-2 checkpoint's tensors (or masks) under our names and layout: `to_hf` turned round.

    Raises:
        UserError: a tensor is missing, or one is there that a GPT-2 does not have.
    """
    prefix = "transformer."
    theirs: dict[str, Tensor] = {}
    for n, x in tensors.items():
        name = n if n.startswith((prefix, "lm_head")) else prefix + n
        if name.endswith((".attn.bias", ".attn.masked_bias")):  # causal masks
            continue
        if name in theirs:
            raise UserError(f"{n}: is there twice, with and without `{prefix}`")
        theirs[name] = x
    tied = theirs.pop("lm_head.weight", None) if c.share_embedding_weights else None
    words = theirs.get(f"{GPT2.top[WORDS]}.weight")
    if tied is not None and (words is None or not torch.equal(tied, words)):
        raise UserError("lm_head.weight differs from transformer.wte.weight, yet the config ties them")
    assert GPT2.packed is not None
    names = {ours: other for ours, other in GPT2.top.items()}
    if not c.share_embedding_weights:
        names[HEAD] = "lm_head"
    out: dict[str, Tensor] = {}

    def take(ours: str, other: str, linear: bool) -> None:
        for kind in ("weight", "bias"):
            x = theirs.pop(f"{other}.{kind}", None)
            if x is not None:
                _check_dim(f"{other}.{kind}", x, 2 if linear and kind == "weight" else x.dim())
                out[f"{ours}.{kind}"] = (x.t() if linear and kind == "weight" else x).contiguous()

    for ours, other in names.items():
        take(ours, other, False)
    for i in range(c.num_hidden_layers):
        ours, at = LAYER.format(i), GPT2.layer.format(i)
        for name, other in GPT2.within.items():
            take(ours + name, at + other, name in LINEAR)
        for kind in ("weight", "bias"):
            x = theirs.pop(f"{at}{GPT2.packed[0]}.{kind}", None)
            if x is not None:
                _check_dim(f"{at}{GPT2.packed[0]}.{kind}", x, 2 if kind == "weight" else 1)
                if x.shape[-1] % 3:
                    raise UserError(f"{at}{GPT2.packed[0]}.{kind}: is {list(x.shape)}; three parts do not fit in it")
                for name, part in zip(QKV, (x.t() if kind == "weight" else x).chunk(3), strict=True):
                    out[f"{ours}{name}.{kind}"] = part.contiguous()
    if theirs:
        raise UserError(f"{sorted(theirs)[0]}: is no tensor of a GPT-2 with these sizes")
    return out


def _check_dim(name: str, x: Tensor, dim: int) -> None:
    if x.dim() != dim:
        raise UserError(f"{name}: is {list(x.shape)}; a GPT-2 has {dim} dimensions there")
