"""A checkpoint as a GGUF file: the weights of its Hugging Face model, its tokenizer, what llama.cpp does otherwise."""

import os
import shlex

from modelzoo.config.errors import UserError
from modelzoo.interop.exporting.checkpoint import Exportable, merge_adapters, name_tokenizer
from modelzoo.interop.gguf.architectures import choose_architecture
from modelzoo.interop.gguf.file import BLOCK, DTYPES, convert_tensors, require_gguf, write_file
from modelzoo.interop.gguf.tokenizer import read_words
from modelzoo.interop.hf.config import choose_family, make_config_json
from modelzoo.interop.hf.tensors import convert_to_hf, fold_scales
from modelzoo.names import WORDS
from modelzoo.progress import format_size


def export_gguf(found: Exportable, out: str, dtype: str) -> str:
    """Write a checkpoint as the file `out`, whole or not at all.

    Args:
        dtype: float32, float16, bfloat16 or q8_0, of the matrices; norms, biases and positions are float32.

    Returns:
        What was written, as text for the user.

    Raises:
        UserError: `gguf` is not installed, llama.cpp has no place for something of the model or its tokenizer, or `out`
            cannot be written.
    """
    require_gguf(out)
    c = found.model
    family = choose_family(c)
    how = choose_architecture(c, family, make_config_json(c, family, found.eos), out)
    weights, _, notes = merge_adapters(found, "GGUF")
    if not found.words:
        raise UserError(f"{out}: GGUF holds the tokenizer, and the training data has none here; give --tokenizer PATH")
    words = read_words(name_tokenizer(found.words), found.eos, c.vocab_size)
    facts = make_config_json(c, family, words.eos)
    tensors = convert_to_hf(fold_scales(weights, c), c, family)
    if not how.tied and c.share_embedding_weights:
        tensors["lm_head.weight"] = tensors[f"{family.top[WORDS]}.weight"]
    total = sum(x.numel() for x in tensors.values())
    arrays, short = convert_tensors(tensors, c, how, facts, dtype, out)
    if c.nonlinearity == "gelu":
        notes.append("llama.cpp computes gelu by its tanh form (gelu_new): up to 5e-4 off in each unit")
    if short:
        notes.append(f"{short} matrices are F16: q8_0 takes rows of a multiple of {BLOCK}")
    write_file(out, c, how, facts, words, arrays, dtype)
    lines = [f"wrote      {out}: {how.name}, {total:,} numbers, matrices in {DTYPES[dtype]}"]
    lines[0] += f", {format_size(os.path.getsize(out))}"
    lines += [f"           {line}" for line in (*notes, *words.notes)]
    return "\n".join([*lines, f'next       llama-cli --model {shlex.quote(out)} -no-cnv --prompt "Aspirin lowers"'])
