"""A soft prompt's files over the exported Hugging Face model.

A prefix is PEFT's PROMPT_TUNING: its vectors are fed as `inputs_embeds` before the text, so they carry the scale that
the exported word embedding carries. A prompt between source and target has no form there: it keeps our own layout,
soft_prompt.json and soft_prompt.safetensors.
"""

import os
from typing import Literal

from torch import Tensor

from modelzoo.adapter_files import NO_ADAPTER, OUR_FILES, PEFT_FILES
from modelzoo.config.errors import UserError
from modelzoo.config.sections.adapters import SoftPrompt
from modelzoo.config.sections.model import GPTConfig
from modelzoo.interop.adapters.folder import Count, Files, read_adapter, require_kind
from modelzoo.records import Record, check_record

KEY = "prompt_embeddings"


def make_prompt_files(rows: Tensor, section: SoftPrompt, c: GPTConfig, base: str) -> tuple[tuple[str, str], Files]:
    """File names, config and tensors of a soft prompt [tokens, hidden_size] for the exported model at `base`."""
    rows = rows.float() * _embedding_scale(c)
    if section.place == "before_target":
        facts = {"tokens": len(rows), "token_dim": c.hidden_size, "place": section.place}
        return OUR_FILES, ({**facts, "base_model_name_or_path": base}, {KEY: rows})
    return PEFT_FILES, (
        {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "inference_mode": True,
            "num_virtual_tokens": len(rows),
            "token_dim": c.hidden_size,
            "num_transformer_submodules": 1,
            "num_attention_heads": c.num_heads,
            "num_layers": c.num_hidden_layers,
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_name_or_path": None,
        },
        {KEY: rows},
    )


class _Prompt(Record):
    """What is read of PEFT's PROMPT_TUNING."""

    peft_type: str
    num_virtual_tokens: Count | None = None
    token_dim: Count | None = None


class _OurPrompt(Record):
    """soft_prompt.json."""

    tokens: Count
    token_dim: Count
    place: Literal["before_target", "prefix"]


def read_prompt(folder: str, c: GPTConfig) -> tuple[Tensor, str]:
    """A soft prompt of either layout: [tokens, hidden_size] as our model holds it, and its place.

    Raises:
        UserError: no such files, damaged ones, another kind of adapter, or another model's width.
    """
    found, tensors, path = read_adapter(folder)
    if os.path.basename(path) == PEFT_FILES[0]:
        require_kind(found, "PROMPT_TUNING", path)
        config = check_record(found, _Prompt, path, NO_ADAPTER)
        named, place = config.num_virtual_tokens, "prefix"
    else:
        ours = check_record(found, _OurPrompt, path, NO_ADAPTER)
        named, place = ours.tokens, ours.place
    rows = tensors.get(KEY)
    if rows is None or rows.dim() != 2 or rows.shape[1] != c.hidden_size:
        held = "no prompt_embeddings" if rows is None else f"prompt_embeddings {list(rows.shape)}"
        raise UserError(f"{folder}: holds {held}; the model's width is {c.hidden_size}")
    if named not in (None, len(rows)):
        raise UserError(f"{path}: names {named} vectors, the tensors hold {len(rows)}")
    return rows.float() / _embedding_scale(c), place


def _embedding_scale(c: GPTConfig) -> float:
    """What `hf.tensors.fold_scales` multiplies word embeddings by."""
    return 1.0 if c.embedding_layer_norm else c.embeddings_scale
