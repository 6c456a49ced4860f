"""What `run.py export` does with a soft prompt and LoRA, and `run.py prompt`: what learned vectors are near to."""

import os
import shlex
from typing import Any

import torch
from torch import Tensor

from modelzoo.config.adapters import LoRA
from modelzoo.config.errors import UserError
from modelzoo.config.load import load
from modelzoo.config.trainer import Config
from modelzoo.data import tokenizer
from modelzoo.interop import peft
from modelzoo.interop.hf_families import Family
from modelzoo.models import lora
from modelzoo.models.soft_prompt import find_nearest
from modelzoo.names import LORA_A, SOFT_PROMPT, WORDS_WEIGHT, is_adapter
from modelzoo.planning import start_checkpoint
from modelzoo.planning.start_checkpoint import SavedState
from modelzoo.training import checkpoint
from modelzoo.training.run_folder import RunFolder

FOLDER = "adapter"
Tensors = dict[str, Tensor]
Adapter = tuple[tuple[str, str], tuple[dict[str, Any], Tensors]]  # file names, config and tensors


def split_adapter(
    weights: Tensors, masks: Tensors, saved: SavedState, family: Family, out: str
) -> tuple[Adapter | None, Tensors, Tensors, list[str]]:
    """A checkpoint's adapter for its exported folder, the base's weights and masks, and notes for the user.

    PEFT loads one adapter of one kind. With a soft prompt, LoRA is therefore merged into the weights, which leaves
    those that it changes without masks.
    """
    low, prompt, c = saved.lora, saved.soft_prompt, saved.model
    base = {n: x for n, x in weights.items() if not is_adapter(n)}
    here = os.path.join(out, FOLDER)
    if prompt is None:
        if low is None:
            return None, weights, masks, []
        files = peft.make_lora_files(weights, low, c, family, out)
        return (peft.PEFT_FILES, files), base, masks, [f"{FOLDER}/: LoRA in PEFT's layout; {_peft(here)}"]
    notes = []
    if low is not None:
        base, masks, dense = merge_lora({n: x for n, x in weights.items() if n != SOFT_PROMPT}, masks, low)
        notes += ["LoRA is merged into the weights: PEFT loads one adapter, and that is the prompt", *dense]
    names, files = peft.make_prompt_files(weights[SOFT_PROMPT], prompt, c, out)
    if names == peft.PEFT_FILES:
        notes.append(f"{FOLDER}/: the soft prompt as PEFT's prompt tuning; {_peft(here)}")
    else:
        notes.append(f"{FOLDER}/: the soft prompt in our own layout; PEFT has no prompt between source and target. Put")
        notes.append("its rows between their embeddings, as inputs_embeds (docs/soft_prompts.md)")
    return (names, files), base, masks, notes


def merge_lora(weights: Tensors, masks: Tensors, config: LoRA) -> tuple[Tensors, Tensors, list[str]]:
    """Weights with LoRA's updates in them, the masks that are left, and a line about those that are not."""
    changed = {f"{n.removesuffix(LORA_A)}.weight" for n in weights if n.endswith(LORA_A)}
    dense = len(changed & masks.keys())
    left = {n: x for n, x in masks.items() if n not in changed}
    return lora.merge(weights, config), left, [f"{dense} weights that had masks are dense now"] if dense else []


def _peft(folder: str) -> str:
    return f'peft.PeftModel.from_pretrained(model, "{folder}")'


def format_prompt_table(path: str, words: str | None = None, nearest: int = 5) -> str:
    """The vocabulary's tokens that each learned vector of a run or step folder is nearest to.

    Args:
        words: tokenizer.json or its folder; default: the run's own. Without any, tokens are printed as ids.
        nearest: how many tokens a vector.

    Raises:
        UserError: no whole checkpoint, or one without a soft prompt.
    """
    if nearest < 1:
        raise UserError(f"--nearest {nearest}: give at least 1")
    found = start_checkpoint.find_checkpoint(path)
    files, state = checkpoint.load(found)
    held, section = files.get("model", {}), start_checkpoint.check_state(state, found).soft_prompt
    if SOFT_PROMPT not in held or section is None:
        raise UserError(f"{found}: has no soft prompt; it is of a run without trainer.init.soft_prompt")
    rows, table = held[SOFT_PROMPT].float(), held.get(WORDS_WEIGHT, torch.empty(0)).float()
    if rows.dim() != 2 or rows.shape[1:] != table.shape[1:]:
        raise UserError(f"{found}: its soft prompt is {list(rows.shape)}, its word embedding {list(table.shape)}")
    text = _texts(words, found, len(table))
    lines = [
        f"{found}: soft prompt of {len(rows)} vectors ({section.place}, from {section.init}), width "
        f"{rows.shape[1]}; a word's norm is {float(table.norm(dim=1).mean()):.3f} on average",
        "",
        "| vector | norm | nearest by cosine | nearest by dot product |",
        "|---:|---:|---|---|",
    ]
    cosine, dot = find_nearest(rows, table, nearest)
    for i, row in enumerate(rows):
        cells = (", ".join(f"{text(t)} {v:.3f}" for v, t in side[i]) for side in (cosine, dot))
        lines.append(f"| {i} | {float(row.norm()):.3f} | {' | '.join(cells)} |")
    lines += [
        "",
        f"next       python run.py export {shlex.quote(path)} OUT   (the vectors, with the Hugging Face model)",
    ]
    return "\n".join(lines)


def _texts(words: str | None, checkpoint_path: str, vocab_size: int):
    """A function from a token id to its text in the table."""
    if words is None:
        try:
            init = load(RunFolder.containing(checkpoint_path).config, Config).trainer.init
            words = start_checkpoint.find_tokenizer_path(init, checkpoint_path)
        except UserError:  # a step folder alone, or the data is elsewhere now
            return str
    backend = tokenizer.parse_tokenizer(tokenizer.read_tokenizer(words), words)
    tokenizer.check_vocabulary(words, tokenizer.vocabulary_size(backend), vocab_size)

    def show(i: int) -> str:
        text = backend.decode([i], skip_special_tokens=False) or f"#{i}"
        text = text if text.isprintable() else ascii(text)[1:-1]  # one line, and no orders to a terminal
        return "`" + text.replace("|", "\\|") + "`"

    return show
