"""Our tensors under Hugging Face's names and in its layouts, both ways.

A Hugging Face model computes what ours does if its architecture has every part that the config asks for
(`config.choose_family`); scalars that it has no place for (muP's, attention scales) are multiplied into weights by
`fold_scales`.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import GPTConfig
from modelzoo.interop.hf.families import LAYER, LINEAR, QKV, Family
from modelzoo.models.decoder import Attention
from modelzoo.models.gpt import GPT, EmbeddingLayer
from modelzoo.names import HEAD, POSITIONS, WORDS


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
    if f"{HEAD}.bias" in out:
        out[f"{HEAD}.bias"] = out[f"{HEAD}.bias"] * output
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
    put(HEAD, family.head, False)
    if not masks and HEAD in (family.biases or ()):  # also of a tied head, whose weight is the embedding's
        out.setdefault(f"{family.head}.bias", torch.zeros(c.vocab_size))
    return {n: x.contiguous() for n, x in out.items()}


def _biased(c: GPTConfig, family: Family, ours: str) -> bool:
    """Whether their module has a bias although ours may have none."""
    if family.biases is not None:
        return any(part in ours for part in family.biases)
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


def _halve(x: Tensor, c: GPTConfig, back: bool = False) -> Tensor:
    """Rows of a query or key projection [heads * head_dim, ...] with rotary pairs (2i, 2i+1) moved to (i, i + dim/2).

    Args:
        back: the other way round.
    """
    r = c.rotary_width
    order = torch.tensor([*range(0, r, 2), *range(1, r, 2), *range(r, c.head_dim)])
    return x.unflatten(0, (-1, c.head_dim))[:, order.argsort() if back else order].flatten(0, 1)


def convert_from_hf(tensors: Mapping[str, Tensor], c: GPTConfig, family: Family) -> dict[str, Tensor]:
    """A checkpoint's tensors (or masks) under our names and in our layout: `convert_to_hf` turned round.

    Raises:
        UserError: a tensor has another number of dimensions, or is there although the architecture has none such.
    """
    theirs = _name_whole(tensors, family)
    tied = theirs.pop(f"{family.head}.weight", None) if c.share_embedding_weights else None
    words = theirs.get(f"{family.top[WORDS]}.weight")
    if tied is not None and (words is None or not torch.equal(tied, words)):
        raise UserError(f"{family.head}.weight differs from {family.top[WORDS]}.weight, yet the config ties them")
    out: dict[str, Tensor] = {}

    def take(ours: str, other: str, linear: bool) -> None:
        for kind in ("weight", "bias"):
            if (x := theirs.pop(f"{other}.{kind}", None)) is not None:
                _check_dim(f"{other}.{kind}", x, 2 if linear and kind == "weight" else x.dim(), family)
                x = x.t() if linear and family.transposed and kind == "weight" else x
                out[f"{ours}.{kind}"] = _unhalve(f"{other}.{kind}", x, ours, c, family).contiguous()

    for ours, other in {**family.top, HEAD: family.head}.items():
        take(ours, other, False)
    for i in range(c.num_hidden_layers):
        ours, at = LAYER.format(i), family.layer.format(i)
        for name, other in family.within.items():
            take(ours + name, at + other, name in LINEAR)
        for kind in ("weight", "bias") if family.packed else ():
            assert family.packed is not None
            packed = f"{at}{family.packed[0]}.{kind}"
            if (x := theirs.pop(packed, None)) is not None:
                _check_dim(packed, x, 2 if kind == "weight" else 1, family)
                for name, part in zip(QKV, _unpack(packed, x, c, family), strict=True):
                    out[f"{ours}{name}.{kind}"] = _unhalve(packed, part, name, c, family).contiguous()
    if theirs:
        raise UserError(f"{sorted(theirs)[0]}: is no tensor of a {family.architecture} with these sizes")
    return out


def _name_whole(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Tensors by their whole names, which models that were saved without their head shorten; buffers are left out."""
    found: dict[str, Tensor] = {}
    for n, x in tensors.items():
        name = n.replace("lm_head.", f"{family.head}.") if n.startswith("lm_head.") else n  # transformers 5's name
        name = name if name.startswith((family.base, f"{family.head}.")) else family.base + name
        if name.endswith(family.buffers):
            continue
        if name in found:
            raise UserError(f"{n}: is there twice, the other time as {name}")
        found[name] = x
    return found


def _unpack(name: str, x: Tensor, c: GPTConfig, family: Family) -> tuple[Tensor, ...]:
    """Queries, keys and values [out, ...] of a packed weight or bias."""
    x = x.t() if family.transposed and x.dim() == 2 else x
    by_head = family.packed is not None and family.packed[1] == "heads"
    parts = 3 * c.num_heads if by_head else 3
    if len(x) % parts:
        raise UserError(f"{name}: has {len(x)} outputs; {parts} equal parts do not fit in it")
    if by_head:
        return tuple(p.flatten(0, 1) for p in x.unflatten(0, (c.num_heads, 3, -1)).unbind(1))
    return x.chunk(3)


def _unhalve(name: str, x: Tensor, ours: str, c: GPTConfig, family: Family) -> Tensor:
    if not (family.half and ours.endswith(QKV[:2])):
        return x
    if x.dim() == 0 or len(x) % c.head_dim:
        raise UserError(f"{name}: is {list(x.shape)}; heads of {c.head_dim} do not fit in it")
    return _halve(x, c, back=True)


def _check_dim(name: str, x: Tensor, dim: int, family: Family) -> None:
    if x.dim() != dim:
        raise UserError(f"{name}: is {list(x.shape)}; a {family.architecture} has {dim} dimensions there")
