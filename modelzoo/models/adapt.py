"""What a config's `soft_prompt` and `lora` make of a model: parts attached, and frozen what does not train."""

import torch

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Init
from modelzoo.models import hf_config, lora, peft, soft_prompt
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import lora_targets, trains, with_adapters


def adapt(model: GPTModel, init: Init, word_ids: list[int] | None = None) -> GPTModel:
    """Attach what `init` asks for, and freeze the rest if it asks for that. Without either nothing changes.

    Args:
        word_ids: tokens of `soft_prompt.words`.

    Raises:
        UserError: words that do not fit, or target_modules that match nothing.
    """
    if init.lora is not None:
        lora.attach(model, init.lora, lora_targets(init.model, init.lora), init.seed)
        _begin_lora(model, init)
    if init.soft_prompt is not None:
        soft_prompt.attach(model, init.soft_prompt, init.seed, word_ids, _prompt_rows(init))
    if init.base_frozen:
        kinds = with_adapters(init)
        for name, p in model.named_parameters():
            p.requires_grad_(trains(init, kinds[name].kind))
    return model


@torch.no_grad()
def _begin_lora(model: GPTModel, init: Init) -> None:
    """Put the matrices of `lora.path` in, if it is given."""
    ours = init.lora
    if ours.path is None:
        return
    theirs, matrices = peft.read_lora(ours.path, init.model, hf_config.choose(init.model))
    modules = tuple(sorted(lora_targets(init.model, ours)))
    if (theirs.r, theirs.target_modules) != (ours.r, modules) or abs(theirs.scale / ours.scale - 1) > 1e-6:
        raise UserError(
            f"trainer.init.lora.path: {ours.path} has r: {theirs.r}, alpha: {theirs.alpha:g} and target_modules: "
            f"[{', '.join(theirs.target_modules)}]; give these"
        )
    for name, x in matrices.items():
        model.get_parameter(name).copy_(x)


def _prompt_rows(init: Init) -> torch.Tensor | None:
    """The vectors of `soft_prompt.path`, if it is given."""
    ours = init.soft_prompt
    if ours.path is None:
        return None
    rows, place = peft.read_prompt(ours.path, init.model)
    if (len(rows), place) != (ours.tokens, ours.place):
        raise UserError(
            f"trainer.init.soft_prompt.path: {ours.path} has tokens: {len(rows)} and place: {place}; give these"
        )
    return rows


def redraw(model: GPTModel) -> None:
    """Begin a soft prompt anew, from the word embedding as it now is."""
    words = model.model.embedding_layer.word_embeddings
    if isinstance(words, soft_prompt.SoftPromptEmbedding):
        words.draw()
