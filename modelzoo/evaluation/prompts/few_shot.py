"""Prompts of multiple choice as token ids, made and cut as lm-evaluation-harness does it.

Context and choice are tokenized as one text, so that tokens may reach over what is between them. What exceeds the
model's context goes at the beginning: the description and the first solved examples, and only if the question alone is
too long a part of it. Both are counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.data.tokenizer import Tokenizer
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.forms.choice import Choices
from modelzoo.evaluation.prompts.soft_prompt import NONE, Soft, add_soft


class ChoiceCounts(NamedTuple):
    """As `encode.Counts`, and how many prompts lost a part of the question itself."""

    examples: int
    truncated: int
    tokens_cut: int
    tokens: int
    questions_cut: int


class Asked(NamedTuple):
    """One question: (context, continuation) ids for each choice, and what was cut of the longest."""

    pairs: list[tuple[list[int], list[int]]]
    tokens: int  # of the longest context that is left, soft prompt not counted
    cut: int
    question_cut: bool


def encode_questions(
    task: Choices, examples: Sequence[Example], split: str, tokenizer: Tokenizer, length: int, soft: Soft = NONE
) -> list[Asked]:
    """Each example's prompt with each of its choices.

    Raises:
        UserError: a choice that has no tokens of its own, or more than the context.
    """
    found = []
    for example, prompt in zip(examples, task.prompts(examples, split), strict=True):
        pairs, left, cut = [], [], []
        choices = task.choices(example)
        before, behind = encode_choices(prompt, list(choices.values()), tokenizer)
        for label, after in zip(choices, behind, strict=True):
            room = length + 1 - soft.tokens - len(after)  # the last token is predicted, and never read
            if not after or room < 1:
                why = f"more tokens than the context of {length}" if after else "no token of its own after its prompt"
                raise UserError(f"{task.name}: question {example.id[:80]}: choice {label} has {why}")
            kept = (before or [tokenizer.first])[-room:]
            left.append(len(kept))
            cut.append(max(len(before) - room, 0))
            pairs.append((add_soft(kept, soft), after))
        question = len(tokenizer.encode(task.question(example).rstrip())) if max(cut) else 0
        found.append(Asked(pairs, max(left), max(cut), min(left) < question))
    return found


def encode_choices(prompt: str, choices: Sequence[str], tokenizer: Tokenizer) -> tuple[list[int], list[list[int]]]:
    """Ids of a prompt, and of each choice behind it: those that both have together, as lm-evaluation-harness has it.

    Spaces at the prompt's end are its choices'. BOS comes first, where the model has one.
    """
    context, spaces = prompt.rstrip(), prompt[len(prompt.rstrip()) :]
    before = tokenizer.encode(context)
    behind = [tokenizer.encode(context + spaces + text)[len(before) :] for text in choices]
    return tokenizer.prefix + before, behind


def count_cut(asked: Sequence[Asked]) -> ChoiceCounts:
    """Totals over questions."""
    return ChoiceCounts(
        len(asked),
        sum(a.cut > 0 for a in asked),
        sum(a.cut for a in asked),
        sum(a.tokens for a in asked),
        sum(a.question_cut for a in asked),
    )
