"""A checkpoint as a Hugging Face folder: weights, masks, config, tokenizer, adapter and card."""

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field

from modelzoo.checksums import write_checksums
from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import GPTConfig
from modelzoo.data import format as f
from modelzoo.data.tokenizer import check_vocabulary
from modelzoo.data.tokenizer_files import copy_files
from modelzoo.files import making_folder, write_text
from modelzoo.interop.adapters.split import FOLDER, split_adapter
from modelzoo.interop.cards.markdown import escape
from modelzoo.interop.cards.model_card import render_card
from modelzoo.interop.exporting.checkpoint import Exportable, note_unread
from modelzoo.interop.hf.config import choose_bos, choose_family, make_config_json
from modelzoo.interop.hf.tensor_files import MASKS, require_finite, write_tensors
from modelzoo.interop.hf.tensors import convert_to_hf, fold_scales
from modelzoo.records import Record, read_record
from modelzoo.training.runs.folder import RunFolder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Added(Record):
    id: Annotated[int, Field(ge=0, lt=2**31)]
    content: str


class _Vocabulary(Record):
    vocab: Annotated[dict[str, Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class _Tokenizer(Record):
    """What is read here of a tokenizer.json."""

    model: _Vocabulary
    added_tokens: list[_Added] | None = None


def export_hf(found: Exportable, out: str, dtype: str) -> str:
    """Write a checkpoint as the folder `out`, whole or not at all: what transformers, lm-eval and PEFT load.

    Returns:
        What was written, as text for the user.

    Raises:
        UserError: no architecture computes the model, `dtype` does not hold its weights, or `out` cannot be written.
    """
    c, eos, words = found.model, found.eos, found.words
    family = choose_family(c)
    adapter, weights, masks, notes = split_adapter(found.weights, found.masks, found.saved, family, out)
    tensors = {n: x.to(DTYPES[dtype]) for n, x in convert_to_hf(fold_scales(weights, c), c, family).items()}
    require_finite(tensors, dtype, out)
    texts = {
        "config.json": {**make_config_json(c, family, eos), "torch_dtype": dtype, "dtype": dtype},
        "generation_config.json": {
            "bos_token_id": choose_bos(c, eos),
            "eos_token_id": eos,
            "pad_token_id": eos,
        },
    }
    if f.TOKENIZER in {os.path.basename(v) for v in words}:
        texts["tokenizer_config.json"] = _tokenizer_config(words[0], eos, c)
    name = os.path.basename(os.path.abspath(out))
    run = RunFolder.containing(found.path).path
    readme = render_card(name, family.architecture, found.config, found.state, masks, run, note_unread)
    if notes:
        readme += "\n## Adapter\n\n" + "".join(f"{escape(line, 2000)}\n" for line in notes)
    other = convert_to_hf(masks, c, family, masks=True) if masks else {}
    _write(out, tensors, other, texts, readme, words, c.bos_token_id, adapter)
    lines = [
        f"wrote      {out}: {family.architecture}, {sum(x.numel() for x in tensors.values()):,} numbers in {dtype}"
    ]
    lines.append(f"           {', '.join(sorted(os.listdir(out)))}")
    lines += [f"           {line}" for line in notes]
    if not words:
        lines.append("           no tokenizer: the training data's folder has none here; name one with --tokenizer")
    lines.append(f"next       transformers.AutoModelForCausalLM.from_pretrained({json.dumps(out, ensure_ascii=False)})")
    return "\n".join(lines)


def _tokenizer_config(path: str, eos: int | None, c: GPTConfig) -> dict[str, Any]:
    found = read_record(path, _Tokenizer, "missing", "is not a byte-level tokenizer.json")
    ids = {**found.model.vocab, **{t.content: t.id for t in found.added_tokens or ()}}
    check_vocabulary(path, max(ids.values()) + 1, c.vocab_size)
    named = (eos, choose_bos(c, eos))
    text, first = (next((t for t, i in ids.items() if i == wanted), None) for wanted in named)
    special = {"eos_token": text, "bos_token": first, "pad_token": text}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": c.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        **{k: v for k, v in special.items() if v},
    }


def _write(
    out: str,
    tensors,
    masks,
    texts: Mapping[str, Any],
    readme: str,
    words: list[str],
    bos: int | None,
    adapter=None,
) -> None:
    """The whole folder or nothing."""
    try:
        with making_folder(out) as temporary:
            write_tensors(os.path.join(temporary, "model.safetensors"), tensors)
            if masks:
                write_tensors(os.path.join(temporary, MASKS), masks)
            for name, content in texts.items():
                write_text(os.path.join(temporary, name), json.dumps(content, indent=2) + "\n")
            write_text(os.path.join(temporary, "README.md"), readme)
            if adapter is not None:
                (config, weights), (facts, parts) = adapter
                inner = os.path.join(temporary, FOLDER)
                os.makedirs(inner)
                write_text(os.path.join(inner, config), json.dumps(facts, indent=2) + "\n")
                write_tensors(os.path.join(inner, weights), parts)
                write_checksums(inner)
            copy_files(words, temporary, bos)
            write_checksums(temporary)
    except OSError as e:
        raise UserError(f"{out}: not written ({e.strerror or e}); nothing of it was kept") from None
