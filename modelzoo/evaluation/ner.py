"""Named entities by tagging: the model writes each word with its IOB2 tag; only valid tag sequences can be written."""

import re
from collections.abc import Hashable, Sequence
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.config.task import Task as Config
from modelzoo.config.task import Template
from modelzoo.evaluation import metrics, pubtator, templates
from modelzoo.evaluation.examples import Example, check_unique, read_text, split_lines
from modelzoo.evaluation.metrics import Values, Weights
from modelzoo.evaluation.task import END, Option, Task

CONLL = (".tsv", ".conll", ".iob", ".iob2")
_TAG = re.compile(r"O|[BI]-\S+")


class NER(Task):
    """Fields: text (the words joined by spaces). Golds and predictions: a tag a word. Labels of the template: tags."""

    main_metric = "entity_f1"

    def __init__(self, name: str, config: Config, template: Template, template_path: str):
        super().__init__(name, config, template, template_path)
        if bad := [t for t in self.labels if not _TAG.fullmatch(t)]:
            raise UserError(f"{template_path}: labels: {bad[0]!r} is no IOB2 tag (O, B-Type, I-Type)")
        if "O" not in self.labels:
            raise UserError(f"{template_path}: labels: O is missing")

    def read(self, split: str, fold: int) -> list[Example]:
        path = self.path(split)
        if path.endswith(CONLL):
            found = conll(path, read_text(path))
        else:
            found = pubtator.examples(path, read_text(path), self.config.sentences)
        return check_unique((self._example(*x) for x in found), path)

    def _example(self, where: str, name: str, words: list[str], tags: list[str]) -> Example:
        for tag in set(tags):
            self.known(tag, where)
        return Example(name, {"text": " ".join(words)}, tuple(tags))

    def _items(self, example: Example) -> list[tuple[str, str]]:
        return [templates.word_and_label(self.template.item, w) for w in example.fields["text"].split()]

    def _written(self, example: Example, tags: Sequence[str]) -> list[str]:
        parts = [self.head]
        for (before, after), tag in zip(self._items(example), tags, strict=True):
            parts += [before, self.labels[tag], after]
        return [p for p in (*parts, self.tail) if p]

    def pieces(self, example: Example) -> list[str]:
        return self._written(example, example.gold)

    def longest(self, example: Example) -> list[list[str]]:
        return [self._written(example, [tag] * len(self._items(example))) for tag in self.labels]

    def options(self, example: Example, state: Hashable) -> list[Option]:
        """A state is (word, part of its item, tag before)."""
        if state == "end":
            return [END]
        items = self._items(example)
        if state is None:
            first = (0, "before", "O")
            return [Option(None, self.head, first)] if self.head else self.options(example, first)
        assert isinstance(state, tuple)
        i, part, tag = state
        if i == len(items):
            return [Option(None, self.tail, "end")] if self.tail else [END]
        before, after = items[i]
        if part == "before" and before:
            return [Option(None, before, (i, "tag", tag))]
        if part == "after":
            return [Option(None, after, (i + 1, "before", tag))]
        then = (i, "after") if after else (i + 1, "before")
        return [Option(t, words, (*then, t)) for t, words in self.labels.items() if follows(tag, t)]

    def answer(self, labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(labels)

    def baseline(self, train: Sequence[Example], examples: Sequence[Example]) -> list[tuple[str, ...]]:
        """No entity anywhere."""
        return [("O",) * len(e.fields["text"].split()) for e in examples]

    def metrics(self, golds: Sequence[Any], predictions: Sequence[Any], weights: Weights = None) -> Values:
        return metrics.entity_f1(golds, predictions, weights)

    def describe(self) -> str:
        unit = "sentences" if self.config.sentences else "documents"
        return f"{self.name}: IOB2 tags of words, {unit}; exact-match entity F1, pooled (seqeval's strict)"


def follows(before: str, tag: str) -> bool:
    """IOB2: I- goes on from B- or I- of its type."""
    return not tag.startswith("I-") or before[2:] == tag[2:]


def conll(path: str, text: str):
    """(where, id, words, tags) of each sentence: a word and its tag a line (first and last column), blank between."""
    words, tags, number, begun = [], [], 0, 1
    for n, line in enumerate([*split_lines(text), ""], 1):
        if line.startswith("-DOCSTART-"):
            continue
        if not line.strip():
            if words:
                number += 1
                yield f"{path}:{begun}", str(number), words, tags
            words, tags, begun = [], [], n + 1
            continue
        cells = line.split()
        if len(cells) < 2:
            raise UserError(f"{path}:{n}: has no tag after the word {cells[0]!r}")
        tag = cells[-1]
        if not _TAG.fullmatch(tag):
            raise UserError(f"{path}:{n}: {tag!r} is no IOB tag (O, B-Type, I-Type)")
        if not follows(tags[-1] if tags else "O", tag):
            tag = "B" + tag[1:]  # IOB1 lets an entity begin with I-
        words.append(cells[0])
        tags.append(tag)
