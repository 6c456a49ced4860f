"""Multiple choice as lm-evaluation-harness asks and scores it: solved examples, the question, each choice's likelihood.

Of choices c with log-likelihoods ll(c): `acc` takes the highest ll(c), `acc_norm` the highest ll(c) / characters of c,
`acc_bytes` the highest ll(c) / UTF-8 bytes of c; the first of equals. The delimiter before a choice, which is what
comes before `{label}` in the template's target, counts in ll(c) and not in its length.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from random import Random
from typing import Any, NamedTuple

import numpy as np

from modelzoo.config.errors import UserError
from modelzoo.config.task import Task as Config
from modelzoo.config.task import Template, placeholders
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.forms.classification import Classification
from modelzoo.evaluation.forms.pubmedqa import PubMedQA, Question
from modelzoo.evaluation.statistics import metrics
from modelzoo.evaluation.statistics.metrics import Values, Weights
from modelzoo.evaluation.tasks.base import END, Option
from modelzoo.evaluation.tasks.labels import SingleLabel
from modelzoo.evaluation.tasks.templates import Rendered, render


class Picked(NamedTuple):
    """The label that an example gets by each way of comparing its choices."""

    acc: str
    acc_norm: str
    acc_bytes: str


class Choices(SingleLabel):
    """What every form of multiple choice shares. A label's words are a format string over the example's fields."""

    main_metric = "acc"

    def __init__(self, name: str, config: Config, template: Template, template_path: str):
        super().__init__(name, config, template, template_path)
        for label, words in template.labels.items():
            try:
                placeholders(words)
            except ValueError as e:
                raise UserError(f"{template_path}: labels.{label}: {e}") from None

    @cached_property
    def used(self) -> list[str]:
        """The fields that a prompt is made of."""
        t = self.template
        return list(dict.fromkeys(f for x in (t.description, t.source, *t.labels.values()) for f in placeholders(x)))

    def fields(self) -> list[str]:
        return self.used

    def words(self, example: Example, label: str) -> str:
        """A choice as it counts in lengths: without the delimiter before it."""
        return render(self.labels[label], example, (), self).text + self.tail

    def choices(self, example: Example) -> dict[str, str]:
        return {label: self.head + self.words(example, label) for label in self.labels}

    def pieces(self, example: Example) -> list[str]:
        return [self.choices(example)[example.gold]]

    def longest(self, example: Example) -> list[list[str]]:
        return [[text] for text in self.choices(example).values()]

    def options(self, example: Example, state: Hashable) -> list[Option]:
        return [Option(x, t, "end") for x, t in self.choices(example).items()] if state is None else [END]

    def answer(self, labels: Sequence[str]) -> Picked:
        return Picked(*[labels[0]] * len(Picked._fields))

    def pick(self, example: Example, log_p: Sequence[float]) -> Picked:
        """The prediction from each choice's log-likelihood."""
        labels, words = list(self.labels), [self.words(example, label) for label in self.labels]
        values = np.asarray(log_p, float)
        lengths = [1.0] * len(words), [len(w) for w in words], [len(w.encode()) for w in words]
        return Picked(*(labels[int(np.argmax(values / n))] for n in lengths))

    def constants(self, golds: Sequence[Any]) -> list[Any]:
        return [self.answer([gold]) for gold in super().constants(golds)]

    def metrics(self, golds: Sequence[str], predictions: Sequence[Any], weights: Weights = None) -> Values:
        """Accuracies, and where labels are answers themselves (yes, no), not letters of options, macro-F1 of `acc`."""
        ways = range(len(Picked._fields))
        right = np.array([[p[i] == g for i in ways] for g, p in zip(golds, predictions, strict=True)])
        w = np.ones((1, len(golds))) if weights is None else weights
        values = (w @ right / w.sum(1, keepdims=True)).T
        found: Values = dict(
            zip(Picked._fields, values if weights is not None else map(float, values[:, 0]), strict=True)
        )
        if not set(self.labels) & set(self.used):
            found["macro_f1"] = metrics.classification(golds, [p[0] for p in predictions], weights)["macro_f1"]
        return found

    def source(self, example: Example) -> Rendered:
        """The question after the description, as fine-tuning shows it: without solved examples."""
        long = self.config.long_fields or self.long_fields
        return render(self.template.description + self.template.source, example, long, self)

    def question(self, example: Example) -> str:
        """What is asked, without what comes before it."""
        return render(self.template.source, example, (), self).text

    def group(self, example: Example) -> str | None:
        """The part of the test that an example belongs to."""
        return None if self.config.group_field is None else example.fields[self.config.group_field]

    def solved(self, example: Example) -> str:
        """An example with its answer, and what separates it from the next one."""
        return self.question(example) + self.target(example) + self.template.between

    def shot_pool(self) -> list[Example]:
        return self._known if self.config.shots.count else []

    def read_kept(self, split, fold, remark):
        """Solved examples are read once, whoever asks for their split."""
        if not self.config.shots.count or (split, fold) != (self.config.shots.split, self.config.fold):
            return self.read(split, fold, remark)
        examples, remarks = self._solved
        for what, where in remarks:
            remark(what, where)
        return examples

    @cached_property
    def _solved(self) -> tuple[list[Example], list[tuple[str, str]]]:
        """The split of the solved examples, and what reading it remarks."""
        remarks: list[tuple[str, str]] = []
        remark = lambda what, where: remarks.append((what, where))
        return self.read(self.config.shots.split, self.config.fold, remark), remarks

    @cached_property
    def _known(self) -> list[Example]:
        return self.labelled(self._solved[0], self.config.shots.split)

    def draw_shots(self, examples: Sequence[Example], split: str) -> list[list[Example]]:
        """Solved examples for each of the examples, which are of `split`: those that lm-evaluation-harness draws.

        There a generator is seeded once for a task (here: for a group, where shots are of the same one) and draws from
        the whole pool for one question after the other; in the split that is asked one more, less the question itself.

        Raises:
            UserError: there are fewer than are asked for.
        """
        how = self.config.shots
        if not how.count:
            return [[] for _ in examples]
        pools: dict[str | None, tuple[list[Example], Random]] = {}
        for e in self.shot_pool():
            pools.setdefault(self._pool(e), ([], Random(how.seed)))[0].append(e)
        return [self._draw(e, split, pools.get(self._pool(e), ([], Random(how.seed)))) for e in examples]

    def _pool(self, example: Example) -> str | None:
        return self.group(example) if self.config.shots.same_group else None

    def _draw(self, example: Example, split: str, pool: tuple[list[Example], Random]) -> list[Example]:
        how, (known, generator), own = self.config.shots, pool, split == self.config.shots.split
        usable = [e for e in known if e.id != example.id] if own else known
        if len(usable) < how.count or (own and how.order == "random" and len(known) <= how.count):
            of = f" of group {self._pool(example)!r}" if how.same_group else ""
            raise UserError(
                f"{self.name}: shots.count: {how.count} are asked for, the {how.split} split has "
                f"{len(usable)}{of} for question {example.id[:80]}"
            )
        if how.order == "first":
            return usable[: how.count]
        drawn = generator.sample(known, how.count + own)
        return [e for e in drawn if not own or e.id != example.id][: how.count]

    def prompts(self, examples: Sequence[Example], split: str) -> list[str]:
        """Description, solved examples and question of each: all that comes before a choice."""
        found = []
        for e, shots in zip(examples, self.draw_shots(examples, split), strict=True):
            description = render(self.template.description, e, (), self).text
            found.append(description + "".join(map(self.solved, shots)) + self.question(e))
        return found

    def describe(self) -> str:
        how = self.config.shots
        drawn = "the first of" if how.order == "first" else f"seed {how.seed}, from"
        shots = f"{how.count} solved examples before each question ({drawn} {how.split})" if how.count else "no shots"
        return f"{self.about()}; {shots}; accuracy by likelihood, and by likelihood per character and per byte"

    def about(self) -> str:
        """What the task is, in a few words."""
        return f"multiple choice ({', '.join(self.labels)})"


class Choice(Choices, Classification):
    """From .jsonl, .tsv or .csv. A label that is a column's name, too, is the letter of the option in that column."""

    def _example(self, number: int, where: str, row: dict) -> Example:
        found = super()._example(number, where, row)
        needed = [*self.used, *([self.config.group_field] if self.config.group_field else [])]
        for name in dict.fromkeys([*needed, *(x for x in self.labels if x in found.fields)]):
            if name not in found.fields:
                raise UserError(f"{where}: has no column {name!r} (it has {', '.join(map(str, row))[:200]})")
            if not found.fields[name].strip() and (name in self.labels or name == "question"):
                raise UserError(f"{where}: {name}: is empty; {self.remake()}")
        return found

    def gold(self, label: str, where: str) -> str:
        if label not in self.labels:
            raise UserError(f"{where}: {self.config.label_field}: {label[:80]!r} is none of {', '.join(self.labels)}")
        return label


class PubMedQAChoice(Choices, PubMedQA):
    """PubMedQA's folds. Fields, as the files have them: question, context (a section a line), long_answer."""

    long_fields = ("context", "long_answer")

    def _example(self, path: str, pmid: str, value: Any) -> Example:
        found = super()._example(path, pmid, value)
        for name in ("question", "long_answer"):
            if name in self.used and not found.fields[name].strip():
                raise UserError(f"{path}: {pmid}: {name.upper()}: is missing or empty; {self.remake()}")
        return found

    def make_fields(self, question: Question) -> dict[str, str]:
        return {
            "question": question.QUESTION,
            "context": "\n".join(question.CONTEXTS),
            "long_answer": question.LONG_ANSWER or "",
        }

    def official(self, predictions: Mapping[str, Any]) -> dict[str, str]:
        return {i: p[0] for i, p in predictions.items()}

    def about(self) -> str:
        return f"PubMedQA, fold {self.config.fold} of 10 and the 500 test questions (yes, no, maybe)"
