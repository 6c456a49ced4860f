"""Named entities by tagging: the model writes each word with its IOB2 tag; only valid tag sequences can be written."""

import re
from collections.abc import Hashable, Sequence
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.config.task import Task as Config
from modelzoo.config.task import Template
from modelzoo.evaluation.examples.conll import read_conll
from modelzoo.evaluation.examples.example import Example, check_unique
from modelzoo.evaluation.examples.files import read_text
from modelzoo.evaluation.examples.pubtator import read_pubtator
from modelzoo.evaluation.examples.remarks import Remark
from modelzoo.evaluation.statistics import metrics
from modelzoo.evaluation.statistics.metrics import Values, Weights
from modelzoo.evaluation.tasks import templates
from modelzoo.evaluation.tasks.base import END, Option, Task

CONLL = (".tsv", ".conll", ".iob", ".iob2")
_TAG = re.compile(r"O|[BI]-\S+")
_SENTENCE = re.compile(r"_s[0-9]+$")  # at the end of an id, as `read_pubtator` makes it


class NER(Task):
    """Fields: text (the words joined by spaces). Golds and predictions: a tag a word. Labels of the template: tags."""

    main_metric = "entity_f1"

    def __init__(self, name: str, config: Config, template: Template, template_path: str):
        super().__init__(name, config, template, template_path)
        if bad := [t for t in self.labels if not _TAG.fullmatch(t)]:
            raise UserError(f"{template_path}: labels: {bad[0]!r} is no IOB2 tag (O, B-Type, I-Type)")
        if "O" not in self.labels:
            raise UserError(f"{template_path}: labels: O is missing")
        self.kinds = sorted({t[2:] for t in self.labels if t != "O"})

    def read(self, split: str, fold: int, remark: Remark) -> list[Example]:
        path = self.path(split)
        if path.endswith(CONLL):
            found = read_conll(path, read_text(path), self.kinds[0] if len(self.kinds) == 1 else None)
        else:
            found = read_pubtator(path, read_text(path), self.config.sentences, remark)
        return check_unique((self._example(*x) for x in found), path)

    def _example(self, where: str, name: str, words: list[str], tags: list[str]) -> Example:
        tags = [tag[:2] + self.config.types.get(tag[2:], tag[2:]) for tag in tags]
        for tag in set(tags):
            self.known(tag, where)
        fields = {"text": " ".join(words)}
        if fields["text"].split(" ") != words:  # a word with a blank inside
            fields["words"] = "\n".join(words)
        return Example(name, fields, tuple(tags))

    def find_unit(self, example_id: str) -> str:
        return _SENTENCE.sub("", example_id)

    def _items(self, example: Example) -> list[tuple[str, str]]:
        return [templates.word_and_label(self.template.item, w) for w in list_words(example)]

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
        return [("O",) * len(list_words(e)) for e in examples]

    def metrics(self, golds: Sequence[Any], predictions: Sequence[Any], weights: Weights = None) -> Values:
        return metrics.entity_f1(golds, predictions, weights)

    def describe(self) -> str:
        unit = "sentences" if self.config.sentences else "documents"
        return f"{self.name}: IOB2 tags of words, {unit}; exact-match entity F1, pooled (seqeval's strict)"


def list_words(example: Example) -> list[str]:
    """The words that are tagged; any space but a blank is a part of one."""
    joined = example.fields.get("words")
    return example.fields["text"].split(" ") if joined is None else joined.split("\n")


def follows(before: str, tag: str) -> bool:
    """IOB2: I- goes on from B- or I- of its type."""
    return not tag.startswith("I-") or before[2:] == tag[2:]
