"""What `lora.path` and `soft_prompt.path` name, put into a model that has the parts for it."""

import torch

from modelzoo.config.errors import UserError
from modelzoo.config.sections.adapters import LoRA, SoftPrompt
from modelzoo.config.trainer import Init
from modelzoo.interop.adapters.lora import read_lora
from modelzoo.interop.adapters.soft_prompt import read_prompt
from modelzoo.interop.hf.config import choose_family
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import find_lora_targets
from modelzoo.models.soft_prompt import SoftPromptEmbedding


@torch.no_grad()
def load_adapters(model: GPTModel, init: Init) -> None:
    """Load the adapters of `model` from the files that `init` names; without any nothing changes.

    Args:
        model: as `models.adapt.adapt` left it.

    Raises:
        UserError: a file is missing, damaged, or holds an adapter of another shape than the config's.
    """
    if (lora := init.lora) is not None and lora.path is not None:
        _load_lora(model, init, lora, lora.path)
    if (prompt := init.soft_prompt) is not None and prompt.path is not None:
        _load_prompt(model, init, prompt, prompt.path)


def _load_lora(model: GPTModel, init: Init, ours: LoRA, path: str) -> None:
    theirs, matrices = read_lora(path, init.model, choose_family(init.model))
    modules = tuple(sorted(find_lora_targets(init.model, ours)))
    if (theirs.r, theirs.target_modules) != (ours.r, modules) or abs(theirs.scale / ours.scale - 1) > 1e-6:
        raise UserError(
            f"trainer.init.lora.path: {path} has r: {theirs.r}, alpha: {theirs.alpha:g} and target_modules: "
            f"[{', '.join(theirs.target_modules)}]; give these"
        )
    for name, x in matrices.items():
        mine = model.get_parameter(name)
        if mine.shape != x.shape:
            raise UserError(
                f"trainer.init.lora.path: {path}: {name} is {list(x.shape)}, the model's {list(mine.shape)}"
            )
        mine.copy_(x)


def _load_prompt(model: GPTModel, init: Init, ours: SoftPrompt, path: str) -> None:
    rows, place = read_prompt(path, init.model)
    if (len(rows), place) != (ours.tokens, ours.place):
        raise UserError(f"trainer.init.soft_prompt.path: {path} has tokens: {len(rows)} and place: {place}; give these")
    words = model.model.embedding_layer.word_embeddings
    assert isinstance(words, SoftPromptEmbedding)
    words.rows = rows
    words.draw()
