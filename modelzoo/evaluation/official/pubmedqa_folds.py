"""PubMedQA's PQA-L into its official 500 test questions and ten folds, from ori_pqal.json.

The draws are those of the authors' preprocess/split_dataset.py (github.com/pubmedqa/pubmedqa): one generator, seeded
with 0, shuffles the ids of each answer for the halves, then for the folds.
"""

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.evaluation.official.archive import Archive

ANSWERS = ("yes", "no", "maybe")
ALL, TRUTH = "ori_pqal.json", "test_ground_truth.json"
FOLDS = "pqal_folds.json"  # of what is made


def split_pqal(answers: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    """The test's ids, and the ids of each fold's dev part.

    Args:
        answers: of all questions by id, in the file's order.
    """
    generator = Random(0)
    rest, test = _split(answers, list(answers), 2, generator)
    return test, _split(answers, rest, 10, generator)


def _split(answers: Mapping[str, str], ids: Sequence[str], parts: int, generator: Random) -> list[list[str]]:
    """`ids` in parts with the same shares of answers; where the last part comes out short, each other gives it one."""
    found: list[list[str]] = [[] for _ in range(parts)]
    for answer in ANSWERS:
        alike = [i for i in ids if answers[i] == answer]
        generator.shuffle(alike)
        size = math.ceil(len(alike) / parts)
        for part, begin in zip(found, range(0, parts * size, size or 1), strict=False):
            part += alike[begin:] if part is found[-1] else alike[begin : begin + size]
    if len(found[-1]) != len(found[0]):
        for part in found[:-1]:
            moved = generator.choice(part)
            part.remove(moved)
            found[-1].append(moved)
    return found


def read_pubmedqa(archive: Archive) -> dict[str, Any]:
    """The files that `form: pubmedqa` reads, by name.

    Raises:
        UserError: a file is missing, a question has no known answer, or the test that comes out is not the published
            one of test_ground_truth.json.
    """
    values = {}
    for name in (ALL, TRUTH):
        if not (names := archive.find(name)):
            made = archive.find(FOLDS)
            more = f"; it has {FOLDS}, so it is made already: give it by --data_dir" if made else ""
            raise UserError(f"{archive.path}: has no {name} (github.com/pubmedqa/pubmedqa, data/){more}")
        values[name] = archive.read_json(names[0])
        if not isinstance(values[name], dict):
            raise UserError(f"{archive.where(names[0])}: is not an object by PMID")
    questions, truth = values[ALL], values[TRUTH]
    for i, q in questions.items():
        if not isinstance(q, dict) or q.get("final_decision") not in ANSWERS:
            raise UserError(f"{archive.where(archive.find(ALL)[0])}: {i[:80]}: final_decision: is not yes, no or maybe")
    answers = {i: q["final_decision"] for i, q in questions.items()}
    test, folds = split_pqal(answers)
    if {i: answers[i] for i in test} != truth:
        differ = len(set(test) ^ set(truth))
        raise UserError(
            f"{archive.where(archive.find(ALL)[0])}: gives another test set than {TRUTH} ({differ} ids differ); "
            "take both files as the authors publish them"
        )
    rest = [i for fold in folds for i in fold]
    return {
        FOLDS: {
            f"pqal_fold{n}": {"train": [i for other in folds if other is not fold for i in other], "dev": fold}
            for n, fold in enumerate(folds)
        },
        "pqal_cv_500.json": {i: questions[i] for i in rest},
        "pqal_test_ids.json": test,
        "test_set.json": {i: questions[i] for i in test},
    }
