"""Named entities by tagging: the model writes each word with its IOB2 tag; only valid tag sequences can be written."""

import re
from collections.abc import Hashable, Sequence
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.config.task import Task as Config
from modelzoo.config.task import Template
from modelzoo.evaluation import metrics, pubtator, templates
from modelzoo.evaluation.examples import Example, Remark, check_unique, read_text, split_lines
from modelzoo.evaluation.metrics import Values, Weights
from modelzoo.evaluation.task import END, Option, Task

CONLL = (".tsv", ".conll", ".iob", ".iob2")
_TAG = re.compile(r"O|[BI]-\S+")
_READ = re.compile(r"O|([BIESLU])(?:-(\S+))?")  # of files


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
            found = conll(path, read_text(path), self.kinds[0] if len(self.kinds) == 1 else None)
        else:
            found = pubtator.examples(path, read_text(path), self.config.sentences, remark)
        return check_unique((self._example(*x) for x in found), path)

    def _example(self, where: str, name: str, words: list[str], tags: list[str]) -> Example:
        tags = [tag[:2] + self.config.types.get(tag[2:], tag[2:]) for tag in tags]
        for tag in set(tags):
            self.known(tag, where)
        fields = {"text": " ".join(words)}
        if fields["text"].split(" ") != words:  # a word with a blank inside
            fields["words"] = "\n".join(words)
        return Example(name, fields, tuple(tags))

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


def conll(path: str, text: str, only: str | None = None):
    """(where, id, words, IOB2 tags) of each sentence: a word and its tag a line (first and last column), blank between.

    Columns end at tabs where the file has any, else at blanks; no other space ends one. Tags are IOB2, IOB1, IOE, IOBES
    or BILOU.

    Args:
        only: the type of tags that name none (B, I).
    """
    words, tags, number, begun, tabs = [], [], 0, 1, "\t" in text
    for n, line in enumerate([*split_lines(text), ""], 1):
        line = line.strip(" \t" if not tabs else " ")
        if not line.strip("\t") or line.startswith("-DOCSTART-"):
            if words:
                number += 1
                yield f"{path}:{begun}", str(number), words, convert_tags(tags)
            words, tags, begun = [], [], n + 1
            continue
        cells = [c.strip(" ") for c in line.rstrip("\t").split("\t")] if tabs else re.split(" +", line)
        if len(cells) < 2:
            raise UserError(f"{path}:{n}: has no tag after the word {cells[0]!r}{' (and no tab)' if tabs else ''}")
        match = _READ.fullmatch(cells[-1])
        if match is None:
            hint = "; remove the line if it names the columns" if n == 1 else ""
            raise UserError(f"{path}:{n}: {cells[-1]!r} is no IOB tag (O, B-Type, I-Type; E-, S-, L-, U-){hint}")
        if not cells[0]:
            raise UserError(f"{path}:{n}: has no word before the tag {cells[-1]!r}")
        if match[1] and not (match[2] or only):
            raise UserError(f"{path}:{n}: tag {cells[-1]!r} names no type, and the template knows several")
        words.append(cells[0])
        tags.append(f"{match[1]}-{match[2] or only}" if match[1] else "O")


def convert_tags(tags: Sequence[str]) -> list[str]:
    """Tags in IOB2, of IOB1 or IOE, which mark a border between neighbours alone, or of IOBES or BILOU."""
    made, inside = [], None
    for tag in tags:
        kind = tag[2:]
        made.append(tag if tag == "O" else ("I-" if tag[0] in "IEL" and inside == kind else "B-") + kind)
        inside = kind if tag[0] in "BI" else None
    return made
