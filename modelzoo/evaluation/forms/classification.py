"""One label of a few for a text, from .jsonl, .tsv or .csv files: yes/no questions, classes, multiple choice."""

from collections.abc import Sequence
from typing import Any

from modelzoo.evaluation.examples.example import Example, as_text, find_id, read_examples, require_field
from modelzoo.evaluation.examples.remarks import Remark
from modelzoo.evaluation.statistics import metrics
from modelzoo.evaluation.statistics.metrics import Values, Weights
from modelzoo.evaluation.tasks.labels import SingleLabel


class Classification(SingleLabel):
    """Fields: every column of the file but the label."""

    main_metric = "accuracy"

    def read(self, split: str, fold: int, remark: Remark) -> list[Example]:
        return read_examples(self.path(split), self._example)

    def _example(self, number: int, where: str, row: dict) -> Example:
        label = require_field(row, self.config.label_field, where)
        fields = {k: as_text(v) for k, v in row.items() if k != self.config.label_field}
        gold = None if label is None else self.gold(str(label), where)
        return Example(find_id(row, self.config.id_field, number), fields, gold)

    def gold(self, label: str, where: str) -> str | float:
        """What the metrics compare."""
        return self.known(label, where)

    def metrics(self, golds: Sequence[Any], predictions: Sequence[Any], weights: Weights = None) -> Values:
        return metrics.classification(golds, predictions, weights)

    def describe(self) -> str:
        return f"{self.name}: one of {', '.join(self.labels)}; accuracy and macro-F1"
