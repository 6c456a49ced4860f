"""Relation extraction as classes of marked pairs (DDI, ChemProt as BLUE and BLURB lay them): micro-F1."""

import re
from collections.abc import Sequence

from modelzoo.config.errors import UserError
from modelzoo.evaluation.forms.classification import Classification
from modelzoo.evaluation.statistics import metrics
from modelzoo.evaluation.statistics.metrics import Values, Weights

# What BLUE's index says of a pair, after the document's id: sentence and pair (DDI), or the two entities (ChemProt).
_PAIR = re.compile(r"(\.s[0-9]+\.p[0-9]+|\.T[0-9]+\.T[0-9]+)$")


class Relations(Classification):
    """A row is a sentence with its pair marked (@DRUG$, ...) and the pair's class; `negative` is "no relation"."""

    main_metric = "micro_f1"

    def metrics(self, golds: Sequence[str], predictions: Sequence[str], weights: Weights = None) -> Values:
        if self.config.negative is not None and self.config.negative not in self.labels:
            raise UserError(f"{self.name}: negative: {self.config.negative!r} is no label of {self.template_path}")
        positive = [label for label in self.labels if label != self.config.negative]
        return metrics.micro_f1(golds, predictions, positive, weights)

    def find_unit(self, example_id: str) -> str:
        return _PAIR.sub("", example_id)

    def describe(self) -> str:
        return f"{self.name}: the class of a marked pair; micro-F1 over all classes but {self.config.negative!r}"
