"""Templates: format strings filled with an example's fields, recording where the long fields are."""

import string
from typing import NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.example import Example


class Rendered(NamedTuple):
    """A text, and the characters [from, to) of it that may be cut from their end, in the template's order."""

    text: str
    cuttable: list[tuple[int, int]]


def render(template: str, example: Example, long_fields: tuple[str, ...], task) -> Rendered:
    """`template` with the example's fields in it."""
    text, cuttable = "", []
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is None:
            continue
        if name not in example.fields:
            raise UserError(
                f"{task.template_path}: source: there is no field {{{name}}}; example {example.id[:40]} of "
                f"{task.name} has {', '.join(f'{{{n}}}' for n in example.fields)[:300]}"
            )
        if name in long_fields:
            cuttable.append((len(text), len(text) + len(example.fields[name])))
        text += example.fields[name]
    return Rendered(text, cuttable)


def around_label(target: str) -> tuple[str, str]:
    """What comes before and after `{label}`."""
    before, after, seen = "", "", False
    for literal, name, _, _ in string.Formatter().parse(target):
        before, after = (before, after + literal) if seen else (before + literal, after)
        seen = seen or name is not None
    return before, after


def word_and_label(item: str, word: str) -> tuple[str, str]:
    """A named-entity item around its tag: what comes before `{label}` (the word included) and after."""
    before, after = around_label(item.replace("{word}", "{{word}}"))
    return before.replace("{word}", word), after
