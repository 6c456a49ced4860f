"""Any number of labels for a text, from .jsonl (lists) or .tsv/.csv files (joined by | or ,)."""

import re
from collections.abc import Sequence

from modelzoo.evaluation.examples.example import Example, as_text, find_id, read_examples, require_field
from modelzoo.evaluation.examples.remarks import Remark
from modelzoo.evaluation.statistics import metrics
from modelzoo.evaluation.statistics.metrics import Values, Weights
from modelzoo.evaluation.tasks.labels import MultiLabel


class MultiLabelFile(MultiLabel):
    """Fields: every column of the file but the labels."""

    main_metric = "micro_f1"

    def read(self, split: str, fold: int, remark: Remark) -> list[Example]:
        return read_examples(self.path(split), self._example)

    def _example(self, number: int, where: str, row: dict) -> Example:
        value = require_field(row, self.config.label_field, where)
        found = (
            value if isinstance(value, list) else [v for part in re.split(r"[|,]", str(value)) if (v := part.strip())]
        )
        gold = None if value is None else self.sorted({self.known(str(label), where) for label in found})
        fields = {k: as_text(v) for k, v in row.items() if k != self.config.label_field}
        return Example(find_id(row, self.config.id_field, number), fields, gold)

    def metrics(self, golds: Sequence, predictions: Sequence, weights: Weights = None) -> Values:
        return metrics.multilabel(golds, predictions, self.order, weights)

    def describe(self) -> str:
        return f"{self.name}: any of {len(self.order)} labels; micro-F1, macro-F1 and exact match"
