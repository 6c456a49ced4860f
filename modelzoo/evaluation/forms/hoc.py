"""Hallmarks of Cancer: ten labels, by one of three protocols whose scores do not compare."""

import os
import re
from collections.abc import Sequence

from modelzoo.config.errors import UserError
from modelzoo.config.task import Task as Config
from modelzoo.config.task import Template
from modelzoo.evaluation.examples.example import Example, as_text, check_unique, require_field
from modelzoo.evaluation.examples.files import read_rows
from modelzoo.evaluation.examples.remarks import Remark
from modelzoo.evaluation.statistics import metrics
from modelzoo.evaluation.statistics.metrics import Values, Weights
from modelzoo.evaluation.tasks.labels import MultiLabel
from modelzoo.reading import exists

# In the order of the files' label numbers (and of BLUE's eval_hoc.py).
HALLMARKS = (
    "activating invasion and metastasis",
    "avoiding immune destruction",
    "cellular energetics",
    "enabling replicative immortality",
    "evading growth suppressors",
    "genomic instability and mutation",
    "inducing angiogenesis",
    "resisting cell death",
    "sustaining proliferative signaling",
    "tumor promoting inflammation",
)
EMPTY = "empty"
_LABEL = re.compile(r"[0-9]_[01]")  # a hallmark's number, and whether it holds
PROTOCOLS = {
    "BLUE": "BLUE protocol: documents, those without a label left out; example-based F1 (of mean precision and recall)",
    "BLURB": "BLURB protocol: all documents (1,295/186/371), micro-F1 over the ten hallmarks",
    "BioGPT": "BioGPT protocol: sentences, micro-F1 over eleven classes, 'empty' among them (on the split named here; "
    "BioGPT's own valid and test files are one and the same)",
}
MAIN = {"BLUE": "example_f1", "BLURB": "micro_f1", "BioGPT": "micro_f1_11"}


class HoC(MultiLabel):
    """Fields: text (a document's sentences joined, or one sentence). Golds: hallmark names, perhaps none."""

    long_fields = ("text",)

    def __init__(self, name: str, config: Config, template: Template, template_path: str):
        if unknown := [label for label in template.labels if label not in HALLMARKS]:
            raise UserError(f"{template_path}: labels: unknown {unknown[0]!r}; known: {', '.join(HALLMARKS)}")
        words = {h: template.labels.get(h, h) for h in HALLMARKS}
        super().__init__(name, config, template.model_copy(update={"labels": words}), template_path)
        self.main_metric = MAIN[self.protocol]

    @property
    def protocol(self) -> str:
        """One of PROTOCOLS."""
        assert self.config.protocol is not None  # the schema asks `form: hoc` for one
        return self.config.protocol

    def read(self, split: str, fold: int, remark: Remark) -> list[Example]:
        path = os.path.join(self.folder(), getattr(self.config, split) or f"{split}.tsv")
        if not exists(path):
            raise UserError(f"{path}: no such file (columns labels, sentence, index); score another split with --split")
        sentences = check_unique((self._sentence(where, row) for where, row in read_rows(path)), path)
        if self.protocol == "BioGPT":
            return sentences
        documents: dict[str, list[Example]] = {}
        for s in sentences:
            documents.setdefault(_find_document(s.id), []).append(s)
        joined = [
            Example(pmid, {"text": " ".join(s.fields["text"] for s in parts)}, self._union(parts))
            for pmid, parts in documents.items()
        ]
        if self.protocol != "BLUE":
            return joined
        for e in joined:
            if not e.gold:
                remark("documents without a label: left out, as BLUE does", e.id)
        return [e for e in joined if e.gold]

    def find_unit(self, example_id: str) -> str:
        return _find_document(example_id) if self.protocol == "BioGPT" else example_id

    def _sentence(self, where: str, row: dict[str, str]) -> Example:
        found = set()
        for cell in as_text(require_field(row, "labels", where)).split(","):
            if not _LABEL.fullmatch(cell):
                raise UserError(f"{where}: unknown label {cell[:40]!r}; labels are written 0_0,1_1,...,9_0")
            if cell.endswith("1"):
                found.add(HALLMARKS[int(cell[0])])
        name, text = (as_text(require_field(row, column, where)) for column in ("index", "sentence"))
        return Example(name, {"text": text}, self.sorted(found))

    def _union(self, sentences: list[Example]) -> tuple[str, ...]:
        return self.sorted({label for s in sentences for label in s.gold})

    def metrics(self, golds: Sequence, predictions: Sequence, weights: Weights = None) -> Values:
        if self.protocol == "BLUE":
            return metrics.example_f1(golds, predictions, weights)
        if self.protocol == "BLURB":
            return metrics.multilabel(golds, predictions, HALLMARKS, weights)
        gold_sets, predicted = ([x or (EMPTY,) for x in side] for side in (golds, predictions))
        found = metrics.multilabel(gold_sets, predicted, (*HALLMARKS, EMPTY), weights)
        return {"micro_f1_11": found["micro_f1"], "exact": found["exact"]}

    def describe(self) -> str:
        return f"Hallmarks of Cancer, {PROTOCOLS[self.protocol]}"


def _find_document(sentence: str) -> str:
    """The id of a sentence's document."""
    return sentence.rpartition("_")[0] or sentence
