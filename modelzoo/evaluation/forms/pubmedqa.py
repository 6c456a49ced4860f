"""PubMedQA, reasoning-required: question and abstract to yes, no or maybe, (arXiv 1909.06146)."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.examples.files import read_json
from modelzoo.evaluation.examples.remarks import Remark
from modelzoo.evaluation.statistics import metrics
from modelzoo.evaluation.statistics.metrics import Values, Weights
from modelzoo.evaluation.tasks.labels import SingleLabel
from modelzoo.reading import exists
from modelzoo.records import Record, check_record

FOLDS, QUESTIONS, TEST_IDS = "pqal_folds.json", "pqal_cv_500.json", "pqal_test_ids.json"
# The whole PQA-L as its authors publish it, and the test set as their preprocess/split_dataset.py writes it.
TEST_FILES = ("ori_pqal.json", "test_set.json")


class Question(Record):
    """A question of PQA-L; keys beyond these are not read."""

    QUESTION: str
    CONTEXTS: list[str]
    LABELS: list[str] = Field(default=[])
    LONG_ANSWER: str | None = None
    final_decision: str | None = None


class PubMedQA(SingleLabel):
    """Fields: question, context (the abstract's sections as one text), sections (with their headings)."""

    main_metric = "accuracy"
    long_fields = ("context", "sections")

    def read(self, split: str, fold: int, remark: Remark) -> list[Example]:
        if split == "test":
            return self._test()
        path, key = os.path.join(self.folder(), FOLDS), f"pqal_fold{fold}"
        made = f"; {self.remake()}" if self.config.origin else ""
        folds = read_json(path, f" (the ten official folds); give the folder that holds it by --data_dir{made}")
        if not isinstance(folds, dict) or not isinstance(folds.get(key), dict) or split not in folds[key]:
            raise UserError(f"{path}: has no {split} ids for {key}")
        return self._pick(os.path.join(self.folder(), QUESTIONS), _ids(folds[key][split], f"{path}: {key}.{split}"))

    def _test(self) -> list[Example]:
        path = os.path.join(self.folder(), TEST_IDS)
        ids = _ids(read_json(path), path)
        for name in TEST_FILES:
            if exists(path := os.path.join(self.folder(), name)):
                return self._pick(path, ids)
        raise UserError(
            f"{self.folder()}: has the test set's ids but not its questions; put ori_pqal.json there "
            "(github.com/pubmedqa/pubmedqa, data/), or score dev folds with --split dev"
        )

    def _pick(self, path: str, ids: list[str]) -> list[Example]:
        questions = read_json(path)
        if not isinstance(questions, dict):
            raise UserError(f"{path}: is not an object of PMID: question")
        if missing := [i for i in ids if i not in questions]:
            raise UserError(
                f"{path}: lacks {len(missing)} of the split's {len(ids)} questions, {missing[0][:80]} among them"
            )
        return [self._example(path, i, questions[i]) for i in ids]

    def _example(self, path: str, pmid: str, value: Any) -> Example:
        q = check_record(value, Question, f"{path}: {pmid}", "has no QUESTION with CONTEXTS")
        if len(q.LABELS) not in (0, len(q.CONTEXTS)):
            raise UserError(f"{path}: {pmid}: LABELS: {len(q.LABELS)} headings of {len(q.CONTEXTS)} CONTEXTS")
        gold = q.final_decision
        return Example(pmid, self.make_fields(q), None if gold is None else self.known(gold, f"{path}: {pmid}"))

    def make_fields(self, question: Question) -> dict[str, str]:
        """What templates may name."""
        contexts = [" ".join(c.split()) for c in question.CONTEXTS]
        headings = question.LABELS or [""] * len(contexts)
        sections = [f"{h.capitalize()}: {c}" if h else c for h, c in zip(headings, contexts, strict=True)]
        return {
            "question": " ".join(question.QUESTION.split()),
            "context": " ".join(contexts),
            "sections": "\n".join(sections),
        }

    def metrics(self, golds: Sequence[str], predictions: Sequence[str], weights: Weights = None) -> Values:
        """Accuracy and macro-F1, as the official evaluation.py."""
        return metrics.classification(golds, predictions, weights)

    def official(self, predictions: Mapping[str, Any]) -> dict[str, str]:
        """{PMID: yes|no|maybe}, for the official evaluation.py."""
        return dict(predictions)

    def describe(self) -> str:
        return (
            "PubMedQA, reasoning-required setting (question + abstract without its conclusion; yes/no/maybe); "
            f"official fold {self.config.fold} of 10 (450 train, 50 dev), 500 test questions; accuracy and macro-F1"
        )


def _ids(found: Any, where: str) -> list[str]:
    """PMIDs as text: those of a list, or the keys of an object.

    Raises:
        UserError: they are neither, or one occurs twice.
    """
    listed = list(found) if isinstance(found, list | dict) else [None]
    if not all(isinstance(i, str | int) and not isinstance(i, bool) for i in listed):
        raise UserError(f"{where}: is not a list of PMIDs")
    ids = [str(i) for i in listed]
    if twice := [i for i, n in Counter(ids).items() if n > 1]:
        raise UserError(f"{where}: id {twice[0][:80]} occurs twice")
    return ids
