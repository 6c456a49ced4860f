"""Tasks as token ids: [source][soft prompt][answer], cut to the context in the source's long fields alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from modelzoo.config.errors import UserError
from modelzoo.data.tokenizer import Tokenizer
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.prompts.soft_prompt import NONE, Soft, add_soft
from modelzoo.evaluation.tasks.base import Task


class Counts(NamedTuple):
    """How many examples and tokens there are, and how many were cut."""

    examples: int
    truncated: int  # examples whose long fields were cut
    tokens_cut: int
    tokens: int  # that remain, soft prompt and answer not counted


class Prompt(NamedTuple):
    """What comes before an answer."""

    ids: list[int]
    cut: int  # tokens taken out of the long fields


def encode_prompt(task: Task, example: Example, tokenizer: Tokenizer, length: int, soft: Soft = NONE) -> Prompt:
    """The ids before an answer, soft prompt and BOS included, so that the longest answer still fits `length` ids.

    Raises:
        UserError: what may not be cut does not fit.
    """
    answer = max(len(_joined(pieces, tokenizer)) for pieces in task.longest(example))
    room = length - soft.tokens - answer - len(tokenizer.prefix)
    rendered = task.source(example)
    ids, offsets = tokenizer.offsets(rendered.text)
    extra, kept = len(ids) - room, ids
    for begin, end in reversed(rendered.cuttable):
        if extra <= 0:
            break
        inside = [i for i, (a, b) in enumerate(offsets) if begin <= a and b <= end]
        first = max(len(inside) - extra, 0)
        while first and inside[first:] and offsets[inside[first]][0] == offsets[inside[first - 1]][0]:
            first -= 1  # bytes of one character go together
        gone = set(inside[first:])
        extra -= len(gone)
        keep = [i for i in range(len(kept)) if i not in gone]
        kept, offsets = [kept[i] for i in keep], [offsets[i] for i in keep]
    if extra > 0:
        cuttable = ", ".join(task.config.long_fields or task.long_fields) or "nothing"
        least = len(kept) + length - room
        raise UserError(
            f"{task.name}: example {example.id} needs {least} tokens after cutting all that may be "
            f"({cuttable}), the context is {length}; shorten the template ({task.template_path}) or take a longer "
            "context (a model of more positions, or a higher finetune.max_sequence_length where it is set)"
        )
    read = add_soft(tokenizer.prefix + kept, soft)
    # a token must come before the first one that is predicted
    return Prompt(read or [tokenizer.eos], len(ids) - len(kept))


def encode_pieces(pieces: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """An answer's ids with the end of text: piece by piece, as constrained decoding writes them."""
    return [*_joined(pieces, tokenizer), tokenizer.eos]


def _joined(pieces: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    return [t for piece in pieces for t in tokenizer.encode(piece)]


def encode_training(
    task: Task, examples: Sequence[Example], tokenizer: Tokenizer, length: int, soft: Soft = NONE
) -> tuple[np.ndarray, Counts]:
    """Training rows: the loss counts on the answer and its end of text, nowhere else.

    Returns:
        [n, 3, length] int32 (input_ids, attention_mask = loss mask, labels), and what was cut.

    Raises:
        UserError: an example without a gold answer, or one that does not fit.
    """
    data = np.zeros((len(examples), 3, length), np.int32)
    data[:, ::2] = tokenizer.eos
    prompts = [encode_prompt(task, e, tokenizer, length, soft) for e in examples]
    for row, example, prompt in zip(data, examples, prompts, strict=True):
        if example.gold is None:
            raise UserError(f"{task.name}: example {example.id} has no label to train on")
        answer = encode_pieces(task.pieces(example), tokenizer)
        ids = [*prompt.ids, *answer]
        row[0, : len(ids) - 1] = ids[:-1]
        row[1, len(prompt.ids) - 1 : len(ids) - 1] = 1
        row[2, len(prompt.ids) - 1 : len(ids) - 1] = answer
    return data, count(prompts, soft)


def count(prompts: Sequence[Prompt], soft: Soft = NONE) -> Counts:
    """Totals over prompts."""
    cut = [p.cut for p in prompts]
    left = sum(len(p.ids) - soft.tokens for p in prompts)
    return Counts(len(prompts), sum(c > 0 for c in cut), sum(cut), left)
