"""What every task can do. A form (one small file each) overrides how files are read and how answers are scored."""

import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from modelzoo.config.errors import UserError
from modelzoo.config.task import Task as Config
from modelzoo.config.task import Template, placeholders
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.examples.remarks import Remark, pass_over
from modelzoo.evaluation.examples.sample import take_sample
from modelzoo.evaluation.statistics.metrics import Values, Weights
from modelzoo.evaluation.tasks import templates
from modelzoo.reading import exists

SPLITS = ("train", "dev", "test")


class Option(NamedTuple):
    """One way on from a state of an answer: `text` is written, `label` noted (None: nothing to note)."""

    label: str | None
    text: str | None  # None: the answer ends here
    state: Hashable


END = Option(None, None, None)


class Task:
    """A task: its examples, how they are put to a model, what the model may answer, how answers are scored.

    Answers are paths through `options`; single labels may instead be compared by their likelihood (`choices`).
    """

    main_metric: str
    long_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, config: Config, template: Template, template_path: str):
        self.name, self.config, self.template, self.template_path = name, config, template, template_path
        if not template.labels:
            raise UserError(f"{template_path}: labels: missing; give each label its words")
        self.head, self.tail = templates.around_label(template.target)

    def examples(self, split: str, fold: int | None = None, remark: Remark = pass_over) -> list[Example]:
        """The examples of a split (train, dev or test), in the files' order; `max_examples` draws some of them.

        Args:
            fold: of tasks with folds; default: the task's.
            remark: is called for each thing in the files that is left out.

        Raises:
            UserError: a file that is missing, malformed or empty; an id twice; a label that the task does not know.
        """
        if split not in SPLITS:
            raise UserError(f"{self.name}: no split {split!r}; known: {', '.join(SPLITS)}")
        found = self.read_kept(split, self.config.fold if fold is None else fold, remark)
        if not found:
            raise UserError(f"{self.name}: the {split} split holds no example")
        taken = take_sample(found, self.config.max_examples)
        kept = {e.id for e in taken}
        for e in found:
            if e.id not in kept:
                remark(f"left out: max_examples takes {len(taken):,} of {len(found):,}, drawn by their ids", e.id)
        return taken

    def read_kept(self, split: str, fold: int, remark: Remark) -> list[Example]:
        """`read`, but what is kept already is not read again."""
        return self.read(split, fold, remark)

    def labelled(self, examples: Sequence[Example], split: str) -> list[Example]:
        """The examples of a split whose gold is known.

        Raises:
            UserError: there is none: nothing could be scored.
        """
        if found := [e for e in examples if e.gold is not None]:
            return found
        raise UserError(f"{self.name}: no example of the {split} split has a label, so there is nothing to score")

    def read(self, split: str, fold: int, remark: Remark) -> list[Example]:
        raise NotImplementedError

    def metrics(self, golds: Sequence[Any], predictions: Sequence[Any], weights: Weights = None) -> Values:
        """Scores by name, `main_metric` among them: numbers, or with weights [resamples, n] arrays [resamples]."""
        raise NotImplementedError

    def find_unit(self, example_id: str) -> str:
        """What is drawn together with other examples in a bootstrap: the document, where several are of one."""
        return example_id

    def describe(self) -> str:
        """One line for a person: the data, what is predicted, and the metric."""
        raise NotImplementedError

    def fields(self) -> list[str]:
        """The fields that the text before an answer is made of."""
        return list(dict.fromkeys(placeholders(self.template.source)))

    def source(self, example: Example) -> templates.Rendered:
        """The text before the answer, with what may be cut from it."""
        return templates.render(self.template.source, example, self.config.long_fields or self.long_fields, self)

    def shot_pool(self) -> list[Example]:
        """The examples that solved ones are drawn from; none where a task has no such."""
        return []

    def prompts(self, examples: Sequence[Example], split: str) -> list[str]:
        """The texts that come before the answers of examples of `split`, nothing cut."""
        return [self.source(e).text for e in examples]

    def pieces(self, example: Example) -> list[str]:
        """The gold answer as pieces that are tokenized one by one, as `options` writes them."""
        raise NotImplementedError

    def target(self, example: Example) -> str:
        """The gold answer's text, without the end-of-text token."""
        return "".join(self.pieces(example))

    def longest(self, example: Example) -> list[list[str]]:
        """Answers among which the longest is: room for it is kept when a text is cut."""
        raise NotImplementedError

    def choices(self, example: Example) -> dict[str, str] | None:
        """Each label's answer text, where an answer is one of a few; None where it is built of parts."""
        return None

    def options(self, example: Example, state: Hashable) -> list[Option]:
        """The ways on from `state`; an answer begins in state None."""
        raise NotImplementedError

    def answer(self, labels: Sequence[str]) -> Any:
        """The prediction that noted these labels on its path."""
        raise NotImplementedError

    def choose(self, labels: Sequence[str], log_p: np.ndarray) -> Any:
        """The prediction from each label's log-likelihood; the first of equals."""
        return labels[int(np.argmax(log_p))]

    def baseline(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Any]:
        """The best answer without reading: of the constant ones, what scores best on `train`; the first of equals."""
        golds = [e.gold for e in train if e.gold is not None]
        scores = {c: self.metrics(golds, [c] * len(golds))[self.main_metric] for c in self.constants(golds)}
        return [max(scores, key=scores.__getitem__)] * len(examples)

    def constants(self, golds: Sequence[Any]) -> list[Any]:
        """Answers that one might always give, the commonest first."""
        return [gold for gold, _ in Counter(golds).most_common(10)]

    def official(self, predictions: Mapping[str, Any]) -> Any:
        """Predictions by example id, as the official scorer reads them (JSON); None where there is no such form."""
        return None

    def folder(self) -> str:
        """Where the task's files lie."""
        if self.config.data_dir is None:
            raise UserError(f"{self.name}: no data_dir; give it in the task's file or by --data_dir")
        if not os.path.isdir(self.config.data_dir):
            made = f"; {self.remake()}" if self.config.origin else ""
            raise UserError(f"{self.config.data_dir}: no such folder (the data of {self.name}); give --data_dir{made}")
        return self.config.data_dir

    def remake(self) -> str:
        """How to get the task's files, where the task says it."""
        origin = self.config.origin
        return "give another file" if origin is None else f"`{origin.command}` makes the files from {origin.url}"

    def path(self, split: str) -> str:
        """The file of a split that the task names."""
        name = getattr(self.config, split)
        if name is None:
            raise UserError(f"{self.name}: names no file for the {split} split; add `{split}: FILE` to the task")
        path = os.path.join(self.folder(), name)
        if self.config.origin is not None and not exists(path):
            raise UserError(f"{path}: no such file; {self.remake()}")
        return path

    def known(self, label: str, where: str) -> str:
        """`label`, if the template has words for it."""
        if label not in self.labels:
            known = ", ".join(self.labels)
            raise UserError(f"{where}: unknown label {label[:80]!r}; {self.template_path} knows {known}")
        return label

    @property
    def labels(self) -> Mapping[str, str]:
        return self.template.labels
