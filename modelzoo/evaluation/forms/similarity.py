"""Sentence similarity (BIOSSES): the expected score over label words against people's scores, by correlation."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from modelzoo.config.errors import UserError
from modelzoo.config.task import Task as Config
from modelzoo.config.task import Template
from modelzoo.evaluation.forms.classification import Classification
from modelzoo.evaluation.statistics import metrics
from modelzoo.evaluation.statistics.metrics import Values, Weights

_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")


class Similarity(Classification):
    """Labels are points of the task's `scale` (label: value); golds and predictions are numbers on it.

    A model compares the labels' likelihoods and predicts the mean value under them; writing one label gives its value.
    """

    main_metric = "pearson"

    def __init__(self, name: str, config: Config, template: Template, template_path: str):
        super().__init__(name, config, template, template_path)
        if set(config.scale) != set(self.labels):
            raise UserError(f"{name}: scale: must give a value to each label of {template_path}")

    def gold(self, label: str, where: str) -> float:
        low, high = min(self.config.scale.values()), max(self.config.scale.values())
        if not _NUMBER.fullmatch(label):
            raise UserError(f"{where}: {label[:40]!r} is not a number")
        value = float(label)
        if not low <= value <= high:
            raise UserError(f"{where}: {value:g} is outside the scale {low:g} to {high:g}")
        return value

    def pieces(self, example) -> list[str]:
        """The label nearest to the gold value; the lower of two as near."""
        nearest = min(self.labels, key=lambda k: (abs(self.config.scale[k] - example.gold), self.config.scale[k]))
        return [self.text(nearest)]

    def choose(self, labels: Sequence[str], log_p: np.ndarray) -> float:
        p = np.exp(log_p - log_p.max())
        return float(p @ [self.config.scale[k] for k in labels] / p.sum())

    def answer(self, labels: Sequence[str]) -> float:
        return self.config.scale[labels[0]]

    def metrics(self, golds: Sequence[Any], predictions: Sequence[Any], weights: Weights = None) -> Values:
        return metrics.correlation(golds, predictions, weights)

    def describe(self) -> str:
        return f"{self.name}: expected score over {', '.join(self.labels)}; Pearson's and Spearman's correlation"
