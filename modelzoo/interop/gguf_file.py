"""A checkpoint as GGUF, llama.cpp's format: the tensors of the Hugging Face export as its converter lays them.

Layouts and keys are those of llama.cpp's convert_hf_to_gguf.py; names of tensors come from its package `gguf`.
"""

import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.model import GPTConfig
from modelzoo.files import replacing
from modelzoo.interop import hf, hf_config
from modelzoo.interop.exportable import Exportable, merge_adapters, name_tokenizer, require_finite
from modelzoo.interop.gguf_words import Words, read_words
from modelzoo.interop.hf_families import BLOOM, GPT2, LLAMA, MPT, NEOX
from modelzoo.models.gpt import rotary_rates
from modelzoo.progress import format_size

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # ours to ggml's
BLOCK = 32  # numbers of a row that q8_0 scales together
ABOUT = "Research model for biomedical text. Not for clinical use: it invents facts, doses and citations."


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


def write_gguf(found: Exportable, out: str, dtype: str) -> str:
    """Write a checkpoint as the file `out`, whole or not at all.

    Args:
        dtype: float32, float16, bfloat16 or q8_0, of the matrices; norms, biases and positions are float32.

    Returns:
        What was written, as text for the user.

    Raises:
        UserError: `gguf` is not installed, llama.cpp has no place for something of the model or its tokenizer, or `out`
            cannot be written.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(f"{out}: GGUF needs llama.cpp's package gguf: pip install gguf") from None
    c = found.model
    family = hf_config.choose_family(c)
    if (how := ARCHITECTURES.get(family.model_type)) is None:
        alibi = "alibi positions, which llama.cpp reads in other forms alone" if family in (BLOOM, MPT) else ""
        raise UserError(f"{out}: GGUF is not written of {alibi or family.architecture}; export it as a folder")
    _check_parts(c, how, hf_config.make_config_json(c, family, found.eos), out)
    weights, _, notes = merge_adapters(found, "GGUF")
    if not found.words:
        raise UserError(f"{out}: GGUF holds the tokenizer, and the training data has none here; give --tokenizer PATH")
    words = read_words(name_tokenizer(found.words), found.eos, c.vocab_size)
    facts = hf_config.make_config_json(c, family, words.eos)
    tensors = hf.convert_to_hf(hf.fold_scales(weights, c), c, family)
    if not how.tied and c.share_embedding_weights:
        tensors["lm_head.weight"] = tensors[f"{family.top[hf.WORDS]}.weight"]
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, how.name.upper()), c.num_hidden_layers)
    arrays, short, total = {}, 0, sum(x.numel() for x in tensors.values())
    for theirs in list(tensors):
        x = tensors.pop(theirs)  # one at a time is held twice
        module = theirs.rpartition(".")[0]
        change = next((f for end, f in how.layouts.items() if module.endswith(end)), None)
        x = (x if change is None else change(x, facts)).contiguous()
        name = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert name is not None, theirs
        kind = _choose_kind(name, x, DTYPES[dtype])
        short += kind == "F16" and dtype == "q8_0"
        if kind == "F16":
            require_finite({name: x.half()}, "float16", out)
        qtype = gguf.GGMLQuantizationType[kind]
        arrays[name] = gguf.quants.quantize(x.numpy(), qtype), qtype
    if c.pos_scaling_type == "llama3":
        slower = c.rope_theta ** (-torch.arange(0, c.rotary_width, 2).float() / c.rotary_width) / rotary_rates(c)
        arrays["rope_freqs.weight"] = slower.numpy(), gguf.GGMLQuantizationType.F32
    if c.nonlinearity == "gelu":
        notes.append("llama.cpp computes gelu by its tanh form (gelu_new): up to 5e-4 off in each unit")
    if short:
        notes.append(f"{short} matrices are F16: q8_0 takes rows of a multiple of {BLOCK}")
    try:
        os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
        with replacing(out, durable=True) as temporary:
            writer = gguf.GGUFWriter(temporary, how.name)
            try:
                _add_facts(writer, gguf, out, c, how, facts, dtype)
                _add_words(writer, words, c)
                for name, (array, qtype) in arrays.items():
                    writer.add_tensor(name, array, raw_dtype=qtype)
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            finally:
                writer.close()
    except OSError as e:
        raise UserError(f"{out}: not written ({e.strerror or e}); nothing of it was kept") from None
    lines = [f"wrote      {out}: {how.name}, {total:,} numbers, matrices in {DTYPES[dtype]}"]
    lines[0] += f", {format_size(os.path.getsize(out))}"
    lines += [f"           {line}" for line in (*notes, *words.notes)]
    return "\n".join([*lines, f'next       llama-cli --model {shlex.quote(out)} -no-cnv --prompt "Aspirin lowers"'])


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


def _choose_kind(name: str, x: Tensor, wanted: str) -> str:
    """ggml's type of a tensor: as llama.cpp's converter, which keeps what is small in float32."""
    if x.dim() < 2 or not name.endswith(".weight") or name.endswith(("_norm.weight", "position_embd.weight")):
        return "F32"
    return "F16" if wanted == "Q8_0" and x.shape[-1] % BLOCK else wanted


def _add_facts(
    writer: Any, gguf: Any, out: str, c: GPTConfig, how: Architecture, facts: Mapping[str, Any], dtype: str
) -> None:
    writer.add_type("model")
    writer.add_name(os.path.basename(out).removesuffix(".gguf"))
    writer.add_description(ABOUT)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    kind = DTYPES[dtype]
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}"])
    for theirs, method in how.keys.items():
        getattr(writer, f"add_{method}")(facts[theirs])
    if c.position_embedding_type == "rotary":
        writer.add_rope_dimension_count(c.rotary_width)
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
        if c.pos_stretch != 1.0:
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(c.pos_stretch)


def _add_words(writer: Any, words: Words, c: GPTConfig) -> None:
    writer.add_tokenizer_model("gpt2")  # byte-level BPE, of any model
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    writer.add_bos_token_id(hf_config.choose_bos(c, words.eos))
    for what in ("eos", "pad"):  # one token, as in the folder's generation_config.json
        getattr(writer, f"add_{what}_token_id")(words.eos)
    writer.add_add_bos_token(c.bos_token_id is not None)
    writer.add_add_eos_token(False)
