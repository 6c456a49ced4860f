"""What a config's `soft_prompt` and `lora` make of a model: parts attached, and frozen what does not train."""

from modelzoo.config.trainer import Init
from modelzoo.models import lora, soft_prompt
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import find_lora_targets, list_with_adapters, trains


def adapt(model: GPTModel, init: Init, word_ids: list[int] | None = None) -> GPTModel:
    """Attach the soft prompt and LoRA of `init`; freeze the rest if `init.base_frozen`. Without either nothing changes.

    Values from files (`lora.path`, `soft_prompt.path`) are loaded after it, by `interop.adapter_files.load_adapters`.

    Args:
        word_ids: tokens of `soft_prompt.words`.

    Raises:
        UserError: words that do not fit, or target_modules that match nothing.
    """
    if init.lora is not None:
        lora.attach(model, init.lora, find_lora_targets(init.model, init.lora), init.seed)
    if init.soft_prompt is not None:
        soft_prompt.attach(model, init.soft_prompt, init.seed, word_ids)
    if init.base_frozen:
        kinds = list_with_adapters(init)
        for name, p in model.named_parameters():
            p.requires_grad_(trains(init, kinds[name].kind))
    return model


def redraw(model: GPTModel) -> None:
    """Initialise a soft prompt again, from the word embedding as it now is."""
    words = model.model.embedding_layer.word_embeddings
    if isinstance(words, soft_prompt.SoftPromptEmbedding):
        words.draw()
