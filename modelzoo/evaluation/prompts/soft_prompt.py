"""A model's soft prompt in a row of ids: learned vectors have ids from the vocabulary's size on."""

from typing import NamedTuple

from modelzoo.config.trainer import Init


class Soft(NamedTuple):
    """A model's soft prompt as a row holds it."""

    tokens: int = 0  # learned vectors
    first: int = 0  # the id of the first, which the others follow: the vocabulary's size
    place: str = "before_target"  # or prefix

    @classmethod
    def of(cls, init: Init) -> "Soft":
        prompt = init.soft_prompt
        return cls() if prompt is None else cls(prompt.tokens, init.model.vocab_size, prompt.place)


NONE = Soft()


def add_soft(ids: list[int], soft: Soft) -> list[int]:
    """A context's ids with a model's soft prompt where it was trained to be."""
    learned = list(range(soft.first, soft.first + soft.tokens))
    return learned + ids if soft.place == "prefix" else ids + learned
