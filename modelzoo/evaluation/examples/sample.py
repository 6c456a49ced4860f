"""A part of a split that stands for the whole: files are often sorted by their answers, as PubMedQA's folds are."""

import hashlib
from collections.abc import Sequence

from modelzoo.evaluation.examples.example import Example


def take_sample(examples: Sequence[Example], count: int | None) -> list[Example]:
    """`count` of the examples in their order (None, or as many as there are: all), drawn by the hash of their ids.

    The draw depends on no order and no seed, and a smaller one is a part of each larger one.
    """
    if count is None or count >= len(examples):
        return list(examples)
    drawn = sorted(range(len(examples)), key=lambda i: hashlib.sha256(f"sample/{examples[i].id}".encode()).digest())
    return [examples[i] for i in sorted(drawn[:count])]
