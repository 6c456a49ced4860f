"""A file of GGUF, llama.cpp's format: a Hugging Face model's tensors as its converter lays them, facts and tokens.

Types of tensors are those of llama.cpp's convert_hf_to_gguf.py; names of tensors come from its package `gguf`.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import GPTConfig
from modelzoo.files import replacing
from modelzoo.interop.gguf.architectures import Architecture
from modelzoo.interop.gguf.tokenizer import Words
from modelzoo.interop.hf.config import choose_bos
from modelzoo.interop.hf.tensor_files import require_finite
from modelzoo.models.gpt import rotary_rates

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}  # ours to ggml's
BLOCK = 32  # numbers of a row that q8_0 scales together
ABOUT = "Research model for biomedical text. Not for clinical use: it invents facts, doses and citations."
Arrays = dict[str, tuple[Any, Any]]  # by ggml's names: a tensor's bytes, and its gguf.GGMLQuantizationType


def require_gguf(out: str) -> None:
    """Refuse to write `out` where the package is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(f"{out}: GGUF needs llama.cpp's package gguf: pip install gguf") from None


def convert_tensors(
    tensors: dict[str, Tensor], c: GPTConfig, how: Architecture, facts: Mapping[str, Any], dtype: str, out: str
) -> tuple[Arrays, int]:
    """A Hugging Face model's tensors as a GGUF file holds them; `tensors` is emptied, for memory.

    Args:
        facts: config.json of the model. dtype: float32, float16, bfloat16 or q8_0, of the matrices.

    Returns:
        The tensors, and how many of them are F16 because q8_0 does not fit their rows.

    Raises:
        UserError: a tensor has values beyond what float16 holds.
    """
    import gguf

    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, how.name.upper()), c.num_hidden_layers)
    arrays: Arrays = {}
    short = 0
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
    return arrays, short


def write_file(
    out: str, c: GPTConfig, how: Architecture, facts: Mapping[str, Any], words: Words, arrays: Arrays, dtype: str
) -> None:
    """Write `out`, whole or not at all. Arguments as `convert_tensors` takes and gives them.

    Raises:
        UserError: it cannot be written.
    """
    import gguf

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
    writer.add_bos_token_id(choose_bos(c, words.eos))
    for what in ("eos", "pad"):  # one token, as in the folder's generation_config.json
        getattr(writer, f"add_{what}_token_id")(words.eos)
    writer.add_add_bos_token(c.bos_token_id is not None)
    writer.add_add_eos_token(False)
