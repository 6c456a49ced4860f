"""PubMedQA, reasoning-required: question and abstract to yes, no or maybe, (arXiv 1909.06146)."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.evaluation import metrics
from modelzoo.evaluation.examples import Example, read_json
from modelzoo.evaluation.metrics import Values, Weights
from modelzoo.evaluation.task import SingleLabel

FOLDS, QUESTIONS, TEST_IDS = "pqal_folds.json", "pqal_cv_500.json", "pqal_test_ids.json"
# The whole PQA-L as its authors publish it, and the test set as their preprocess/split_dataset.py writes it.
TEST_FILES = ("ori_pqal.json", "test_set.json")


class PubMedQA(SingleLabel):
    """Fields: question, context (the abstract's sections as one text), sections (with their headings)."""

    main_metric = "accuracy"
    long_fields = ("context", "sections")

    def read(self, split: str, fold: int) -> list[Example]:
        if split == "test":
            return self._test()
        path = os.path.join(self.folder(), FOLDS)
        folds = read_json(path, " (the ten official folds); give the folder that holds it by --data_dir")
        try:
            ids = [str(i) for i in folds[f"pqal_fold{fold}"][split]]
        except (KeyError, TypeError):
            raise UserError(f"{path}: has no {split} ids for pqal_fold{fold}") from None
        if twice := [i for i, n in Counter(ids).items() if n > 1]:
            raise UserError(f"{path}: pqal_fold{fold}.{split}: id {twice[0]} occurs twice")
        return self._pick(os.path.join(self.folder(), QUESTIONS), ids)

    def _test(self) -> list[Example]:
        ids = [str(i) for i in read_json(os.path.join(self.folder(), TEST_IDS))]
        for name in TEST_FILES:
            if os.path.exists(path := os.path.join(self.folder(), name)):
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
                f"{path}: lacks {len(missing)} of the split's {len(ids)} questions, {missing[0]} among them"
            )
        return [self._example(path, i, questions[i]) for i in ids]

    def _example(self, path: str, pmid: str, q: dict[str, Any]) -> Example:
        where = f"{path}: {pmid}"
        try:
            contexts = [" ".join(c.split()) for c in q["CONTEXTS"]]
            headings = [*q.get("LABELS", []), *[""] * len(contexts)]
            question = " ".join(q["QUESTION"].split())
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{where}: has no QUESTION with CONTEXTS") from None
        sections = [f"{h.capitalize()}: {c}" if h else c for h, c in zip(headings, contexts, strict=False)]
        fields = {"question": question, "context": " ".join(contexts), "sections": "\n".join(sections)}
        gold = q.get("final_decision")
        return Example(pmid, fields, None if gold is None else self.known(gold, where))

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
