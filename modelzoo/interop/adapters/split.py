"""A checkpoint with a soft prompt or LoRA as a base model and an adapter, for its exported folder."""

import os
from typing import Any

from torch import Tensor

from modelzoo.adapter_files import PEFT_FILES
from modelzoo.config.sections.adapters import LoRA
from modelzoo.interop.adapters.lora import make_lora_files
from modelzoo.interop.adapters.soft_prompt import make_prompt_files
from modelzoo.interop.hf.families import Family
from modelzoo.models import lora
from modelzoo.names import LORA_A, SOFT_PROMPT, is_adapter
from modelzoo.planning.start_checkpoint import SavedState

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
        files = make_lora_files(weights, low, c, family, out)
        return (PEFT_FILES, files), base, masks, [f"{FOLDER}/: LoRA in PEFT's layout; {_peft(here)}"]
    notes = []
    if low is not None:
        base, masks, dense = merge_lora({n: x for n, x in weights.items() if n != SOFT_PROMPT}, masks, low)
        notes += ["LoRA is merged into the weights: PEFT loads one adapter, and that is the prompt", *dense]
    names, files = make_prompt_files(weights[SOFT_PROMPT], prompt, c, out)
    if names == PEFT_FILES:
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
