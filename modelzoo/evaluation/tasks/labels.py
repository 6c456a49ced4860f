"""Tasks whose answer is one label, or a set of labels."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from modelzoo.config.task import Task as Config
from modelzoo.config.task import Template
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.tasks.base import END, Option, Task


class SingleLabel(Task):
    """The answer is one label."""

    def text(self, label: str) -> str:
        return self.head + self.labels[label] + self.tail

    def choices(self, example: Example) -> dict[str, str]:
        return {label: self.text(label) for label in self.labels}

    def pieces(self, example: Example) -> list[str]:
        return [self.text(example.gold)]

    def longest(self, example: Example) -> list[list[str]]:
        return [[self.text(label)] for label in self.labels]

    def options(self, example: Example, state: Hashable) -> list[Option]:
        if state is None:
            return [Option(label, self.text(label), "end") for label in self.labels]
        return [END]

    def answer(self, labels: Sequence[str]) -> Any:
        return labels[0]


class MultiLabel(Task):
    """The answer is a set of labels (golds and predictions: sorted as the template lists them), perhaps empty."""

    def __init__(self, name: str, config: Config, template: Template, template_path: str):
        super().__init__(name, config, template, template_path)
        self.order = list(template.labels)
        # A space before the labels belongs to their first word, as byte-level tokenizers have it.
        self.lead = self.head[len(self.head.rstrip(" ")) :]
        self.head = self.head.rstrip(" ")

    def sorted(self, labels: set[str]) -> tuple[str, ...]:
        return tuple(label for label in self.order if label in labels)

    def pieces(self, example: Example) -> list[str]:
        words = [self.labels[label] for label in example.gold] or [self.template.empty]
        joined = [(self.template.separator if i else self.lead) + word for i, word in enumerate(words)]
        return [p for p in (self.head, *joined, self.tail) if p]

    def longest(self, example: Example) -> list[list[str]]:
        return [self.pieces(example._replace(gold=gold)) for gold in (self.order, ())]

    def options(self, example: Example, state: Hashable) -> list[Option]:
        if state is None:
            return [Option(None, self.head, -1)] if self.head else self.options(example, -1)
        if state == "end":
            return [END]
        tail = Option(None, self.tail, "end") if self.tail else END
        if state == "tail":
            return [tail]
        assert isinstance(state, int)  # the place of the label before, -1 before the first
        before = self.template.separator if state >= 0 else self.lead
        ways = [
            Option(self.order[i], before + self.labels[self.order[i]], i) for i in range(state + 1, len(self.order))
        ]
        return [*ways, tail if state >= 0 else Option(None, self.lead + self.template.empty, "tail")]

    def answer(self, labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(labels)

    def constants(self, golds: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """The commonest sets, and the commonest labels together: one, two, ..."""
        labels = [label for label, _ in Counter(x for gold in golds for x in gold).most_common()]
        together = [self.sorted(set(labels[: n + 1])) for n in range(len(labels))]
        return list(dict.fromkeys([*super().constants(golds), *together]))
