"""Names of the model's tensors, as Model Zoo spells them: weights, their masks, and what adapters add. No torch."""

from collections.abc import Mapping
from typing import TypeVar

from modelzoo.reading import is_number

T = TypeVar("T")

WORDS = "model.embedding_layer.word_embeddings"
POSITIONS = "model.embedding_layer.position_embeddings.embed"
HEAD = "model.lm_head"
WORDS_WEIGHT, HEAD_WEIGHT = f"{WORDS}.weight", f"{HEAD}.weight"
SOFT_PROMPT = f"{WORDS}.soft_prompt"
LORA_A, LORA_B = ".lora_A", ".lora_B"  # behind the name of the linear module
_MASK = "_mask"


def name_mask(weight: str) -> str:
    """The name of the mask of the parameter `weight`."""
    return weight + _MASK


def is_mask(name: str) -> bool:
    """Whether a tensor of a checkpoint's model is a mask."""
    return name.endswith(_MASK)


def name_weight(name: str) -> str:
    """The parameter that the mask `name` belongs to; a parameter's own name stays."""
    return name.removesuffix(_MASK)


def split_masks(tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, T]]:
    """A checkpoint's model tensors as weights and masks, both by the parameter's name, in the order given."""
    weights = {n: x for n, x in tensors.items() if not is_mask(n)}
    return weights, {name_weight(n): x for n, x in tensors.items() if is_mask(n)}


def is_lora(name: str) -> bool:
    """Whether a parameter is one of LoRA's two factors."""
    return name.endswith((LORA_A, LORA_B))


def is_adapter(name: str) -> bool:
    """Whether a parameter is one that LoRA or a soft prompt adds to the model."""
    return name == SOFT_PROMPT or is_lora(name)


def layer_of(name: str) -> int | None:
    """The number of the decoder layer that a parameter belongs to; None outside them."""
    number = name.partition(".layers.")[2].partition(".")[0]
    return int(number) if is_number(number) else None
