"""MedQA, MedMCQA, MMLU and BioASQ from their official files, as the rows that tasks of `form: choice` read.

A reader gives the rows of each split that the archive holds: id, question, A to D where there are options, label (None:
not published), and what more the task's prompt or groups need.
"""

import csv
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import Field

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.remarks import Remark
from modelzoo.evaluation.official.archive import Archive
from modelzoo.records import Record, check_record

Rows = dict[str, list[dict[str, Any]]]
LETTERS = "ABCD"
SUBJECTS = (
    "anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics", "professional_medicine",
)  # fmt: skip


class _MedQA(Record):
    question: str
    options: dict[str, str]
    answer_idx: str


def read_medqa(archive: Archive, remark: Remark) -> Rows:
    """The four-option questions of US/4_options, or of a folder that holds these files alone."""
    found: Rows = {}
    for split in ("train", "dev", "test"):
        file = f"phrases_no_exclude_{split}.jsonl"
        for name in archive.find(f"questions/US/4_options/{file}", f"US/4_options/{file}", f"4_options/{file}", file)[
            :1
        ]:
            found[split] = [_medqa_row(w, v, f"{split}-{i}") for i, (w, v) in enumerate(archive.read_jsonl(name), 1)]
    return found


def _medqa_row(where: str, value: Any, number: str) -> dict[str, Any]:
    row = check_record(value, _MedQA, where, "is no question of MedQA")
    if sorted(row.options) != list(LETTERS):
        raise UserError(f"{where}: options: are {', '.join(row.options)[:80]}; US/4_options has A, B, C and D")
    return _check(where, {"id": number, "question": row.question, **row.options, "label": row.answer_idx})


class _MedMCQA(Record):
    id: str
    question: str
    opa: str
    opb: str
    opc: str
    opd: str
    cop: int | None = None
    subject_name: str | None = None


def read_medmcqa(archive: Archive, remark: Remark) -> Rows:
    """data.zip's train.json, dev.json and test.json (options from 1), or the Parquet files of the hub (from 0)."""
    found: Rows = {}
    for split, other in (("train", "train"), ("dev", "validation"), ("test", "test")):
        lines = archive.find(f"{split}.json")[:1]
        parts = [n for n in archive.list_kind(".parquet") if n.rpartition("/")[2].startswith(f"{other}-")]
        if lines:
            first, pairs = 1, archive.read_jsonl(lines[0])
        elif parts:
            first, pairs = 0, (pair for name in parts for pair in archive.read_parquet(name))
        else:
            continue
        found[split] = [_medmcqa_row(where, value, first, split == "test") for where, value in pairs]
    return found


def _medmcqa_row(where: str, value: Any, first: int, unknown: bool) -> dict[str, Any]:
    row = check_record(value, _MedMCQA, where, "is no question of MedMCQA")
    options = dict(zip(LETTERS, (row.opa, row.opb, row.opc, row.opd), strict=True))
    label = None
    if not unknown:
        if row.cop is None or not 0 <= row.cop - first < len(LETTERS):
            raise UserError(f"{where}: cop: {row.cop} is no option; they count from {first} to {first + 3} here")
        label = LETTERS[row.cop - first]
    return _check(
        where, {"id": row.id, "question": row.question, **options, "label": label, "subject": row.subject_name}
    )


def read_mmlu(archive: Archive, remark: Remark) -> Rows:
    """The medical subjects of data.tar: dev (five solved examples each), val and test.

    Raises:
        UserError: a subject is missing.
    """
    found: Rows = {}
    for split in ("dev", "val", "test"):
        rows = [row for subject in SUBJECTS for row in _read_subject(archive, subject, split)]
        if rows:
            found[split] = rows
    for split in ("dev", "test"):
        missing = set(SUBJECTS) - {row["subject"].replace(" ", "_") for row in found.get(split, [])}
        if found and missing:
            raise UserError(
                f"{archive.path}: has no {split}/{min(missing)}_{split}.csv, one of MMLU's medical subjects"
            )
    return found


def _read_subject(archive: Archive, subject: str, split: str) -> Iterator[dict[str, Any]]:
    name = f"{split}/{subject}_{split}.csv"
    if names := archive.find(name):
        reader = csv.reader((line + "\n" for line in archive.decode(names[0]).split("\n")), strict=True)
        pairs = _csv_rows(archive.where(names[0]), reader)
    else:
        begin = {"val": "validation"}.get(split, split) + "-"
        parts = [n for n in archive.list_kind(".parquet") if f"/{n}".rpartition("/")[0].endswith(f"/{subject}")]
        parts = [n for n in parts if n.rpartition("/")[2].startswith(begin)]
        pairs = (_mmlu_pair(w, v) for n in parts for w, v in archive.read_parquet(n))
    for number, (where, cells) in enumerate(pairs, 1):
        if len(cells) != 6:
            raise UserError(
                f"{where}: has {len(cells)} columns; a question of MMLU has 6: question, four options, letter"
            )
        question, *options, label = cells
        row = {
            "id": f"{subject}-{split}-{number}",
            "question": question.strip(),
            **dict(zip(LETTERS, options, strict=True)),
        }
        yield _check(where, {**row, "label": label, "subject": subject.replace("_", " ")})


def _csv_rows(where: str, reader: Any) -> Iterator[tuple[str, list[str]]]:
    try:
        for cells in reader:
            if any(c.strip() for c in cells):
                yield f"{where}:{reader.line_num}", cells
    except csv.Error as e:
        raise UserError(f"{where}:{reader.line_num}: is not a row of CSV ({e})") from None


class _MMLU(Record):
    question: str
    choices: list[str]
    answer: int


def _mmlu_pair(where: str, value: Any) -> tuple[str, list[str]]:
    row = check_record(value, _MMLU, where, "is no question of MMLU")
    if not 0 <= row.answer < len(LETTERS):
        raise UserError(f"{where}: answer: {row.answer} is no option; they count from 0 to 3 here")
    return where, [row.question, *row.choices, LETTERS[row.answer]]


class _Snippet(Record):
    text: str


class _BioASQ(Record):
    id: str
    body: str
    type: str
    exact_answer: Any = None
    snippets: list[_Snippet] = Field(default=[])


class _BioASQFile(Record):
    questions: list[dict[str, Any]]


def read_bioasq(archive: Archive, remark: Remark) -> Rows:
    """The yes/no questions: *golden*.json are the test, other .json files are train, less a tenth of it, dev.

    A question is of dev where the SHA-256 of its id is a multiple of ten. One that occurs again, as in the training
    file of a later year, counts once, in the test where it is there. Its snippets are its context.
    """
    test, rest = {}, {}
    for name in archive.list_kind(".json"):
        is_test = "golden" in name.rpartition("/")[2].lower()
        file = check_record(archive.read_json(name), _BioASQFile, archive.where(name), "is no file of BioASQ's task b")
        for number, value in enumerate(file.questions, 1):
            where = f"{archive.where(name)}: question {number}"
            q = check_record(value, _BioASQ, where, "is no question of BioASQ's task b")
            if q.type != "yesno":
                remark(f"questions of the type {q.type[:20]}: left out", where)
                continue
            into = test if is_test else rest
            if q.id in into:
                remark("questions that are there already, in an earlier file: the later one is taken", where)
            into[q.id] = _bioasq_row(where, q)
    found: Rows = {"train": [], "dev": [], "test": list(test.values())}
    for i, row in rest.items():
        if i in test:
            remark("training questions that are in the test, too: left out of train and dev", i)
        else:
            found["dev" if int(hashlib.sha256(i.encode()).hexdigest(), 16) % 10 == 0 else "train"].append(row)
    return {split: rows for split, rows in found.items() if rows}


def _bioasq_row(where: str, q: _BioASQ) -> dict[str, Any]:
    answer = q.exact_answer[0] if isinstance(q.exact_answer, list) and len(q.exact_answer) == 1 else q.exact_answer
    label = re.sub(r"[^a-z]", "", answer.lower()) if isinstance(answer, str) else answer
    if label not in ("yes", "no"):
        raise UserError(f"{where}: exact_answer: {str(answer)[:40]!r} is neither yes nor no")
    context = " ".join(" ".join(s.text.split()) for s in q.snippets)
    return _check(where, {"id": q.id, "question": " ".join(q.body.split()), "context": context, "label": label})


def _check(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row.

    Raises:
        UserError: a text of it is missing or empty, or its answer is none of its options.
    """
    letters = [k for k in LETTERS if k in row]
    for key in ("question", *letters):
        if not isinstance(row[key], str) or not row[key].strip():
            raise UserError(f"{where}: {'option ' if key in letters else ''}{key}: is empty")
    if letters and row["label"] is not None and row["label"] not in letters:
        raise UserError(f"{where}: the answer {row['label'][:40]!r} is none of {', '.join(letters)}")
    return row


READERS: dict[str, Callable[[Archive, Remark], Rows]] = {
    "medqa": read_medqa,
    "medmcqa": read_medmcqa,
    "mmlu": read_mmlu,
    "bioasq": read_bioasq,
}
LAYOUTS = {  # what each looks for, for who gave something else
    "medqa": "questions/US/4_options/phrases_no_exclude_{train,dev,test}.jsonl, as data_clean.zip has them",
    "medmcqa": "train.json, dev.json and test.json of data.zip, or the hub's Parquet files",
    "mmlu": "{dev,val,test}/SUBJECT_{dev,val,test}.csv, as data.tar has them, or the hub's Parquet files",
    "bioasq": "trainingNNb.json and *_golden.json",
    "pubmedqa": "ori_pqal.json and test_ground_truth.json",
}
