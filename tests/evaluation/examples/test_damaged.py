"""Data files of tasks that were damaged, or that others made to do harm: one line with file and place, and soon."""

import json
import os
import time

import numpy as np
import pytest

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples import files as data_files
from modelzoo.evaluation.examples import pubtator
from tests.tasks_at_hand import MULTI, NER, SINGLE, make

ROW = '{"id": "1", "question": "q", "context": "c", "label": "yes"}\n'
QUESTION = {"QUESTION": "q?", "CONTEXTS": ["a b"], "LABELS": ["x"], "final_decision": "yes"}
CHOICE = 'source: "{question} {A} {B}"\nlabels: {A: "{A}", B: "B"}\n'
PUBTATOR = "1|t|Aspirin and fever.\n1|a|More.\n1\t0\t7\tAspirin\tC\tD1\n\n"
HOC = "labels\tsentence\tindex\n" + ",".join(f"{i}_{int(i == 3)}" for i in range(10)) + "\ttext\t1_s1\n"


def task_of(folder, form):
    """A whole task of each form, and the file of its training split."""
    if form.startswith("pubmedqa"):
        template = SINGLE.replace(', "not": "not"', "")
        files = {"pqal_folds.json": json.dumps({"pqal_fold0": {"train": ["1"], "dev": ["1"]}}),
                 "pqal_cv_500.json": json.dumps({"1": QUESTION})}  # fmt: skip
        return make(folder, form, template, files), folder / "pqal_cv_500.json"
    if form == "hoc":
        return make(folder, form, "source: '{text}'\n", {"train.tsv": HOC}, protocol="BLURB"), folder / "train.tsv"
    if form == "multilabel":
        row = '{"id": 1, "text": "t", "label": ["A"]}\n'
        return make(folder, form, MULTI, {"train.jsonl": row}), folder / "train.jsonl"
    if form == "ner":
        return make(folder, form, NER, {"train.txt": PUBTATOR}), folder / "train.txt"
    if form == "choice":
        row = '{"id": "1", "question": "q", "A": "a b", "B": "c", "label": "A", "kind": "x"}\n'
        return make(folder, form, CHOICE, {"train.jsonl": row}, group_field="kind"), folder / "train.jsonl"
    return make(folder, form, SINGLE, {"train.jsonl": ROW}), folder / "train.jsonl"


FORMS = ("pubmedqa", "hoc", "multilabel", "ner", "classification", "choice", "pubmedqa_choice")


def mutants(whole: bytes, rng: np.random.Generator) -> list[bytes]:
    """Cuts, flipped bits, repeated and swapped pieces, and values of other kinds in place of JSON's."""
    found = [whole[:n] for n in range(0, len(whole), 7)]
    for _ in range(60):
        changed = bytearray(whole)
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
        found.append(bytes(changed))
    for old, new in (
        (b'"1"', b"1"), (b'"q"', b"null"), (b'"yes"', b"[]"), (b"[", b"{"), (b'["a b"]', b'"a b"'), (b"1", b"NaN"),
        (b'"a b"', b'"\\ud800"'), (b'{"', b"[" * 3000), (b"1", "\u0661".encode()), (b"1", b"1" * 5000), (b"_1", b"_2"),
        (b"1", "²".encode()), (b"yes", b"perhaps"), (b"\t", b" "), (b"7", b"0"), (b"7", b"-7"), (b'["a b"]', b"[3]"),
        (b'"A"', b'{"a": 1}'), (b"\n", b"\n" + whole), (b"C\tD1", b"\tD1"), (b'"q', b'"q\xe2\x80\xa8'),
        (b"\n", b"\r"), (b"c", b"\x00"),
    ):  # fmt: skip
        found.append(whole.replace(old, new, 1))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, form):
    task, path = task_of(tmp_path / form, form)
    whole, refused = path.read_bytes(), 0
    assert task.examples("train")
    for mutant in mutants(whole, np.random.default_rng(0)):
        path.write_bytes(mutant)
        try:
            for e in task.examples("train"):
                assert isinstance(e.id, str) and all(isinstance(v, str) for v in e.fields.values())
                assert task.source(e).text and (e.gold is None or task.pieces(e))
        except UserError as e:
            refused += 1
            assert "\n" not in str(e) and len(str(e)) < 600
            assert path.name in str(e) or "holds no example" in str(e) or "there is no field" in str(e)
    assert refused > 10


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_file_is_refused(tmp_path, form, monkeypatch):
    task, path = task_of(tmp_path / form, form)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=rf"{path.name}: cannot be read \(is not a regular file"):
        task.examples("train")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
        task.examples("train")
    path.rmdir()
    monkeypatch.setattr(data_files, "MAX_DATA", 100)
    path.write_bytes(b"x" * 101)
    with pytest.raises(UserError, match="has 101 bytes; at most 100"):
        task.examples("train")


def test_a_line_ends_where_its_file_says(tmp_path):
    odd = "a\u2028b\x0cc\x85d"
    row = {"id": "1", "question": odd, "context": "c", "label": "yes"}
    rows = json.dumps(row, ensure_ascii=False) + "\r\n" + json.dumps({**row, "id": "2"}) + "\n"
    files = {"train.jsonl": rows, "dev.tsv": f"id\tquestion\tcontext\tlabel\n1\t{odd}\tc\tyes\n",
             "test.csv": f'id,question,context,label\n1,"{odd}\n""x""",c,yes\n'}  # fmt: skip
    task = make(tmp_path / "t", "classification", SINGLE, files)
    assert [e.fields["question"] for e in task.examples("train")] == [odd] * 2
    assert task.examples("dev")[0].fields["question"] == odd
    assert task.examples("test")[0].fields["question"] == f'{odd}\n"x"'


def test_a_quote_that_does_not_end_swallows_no_rows(tmp_path):
    text = 'id,question,context,label\n1,q,c,yes\n2,q,c,"yes\n3,q,c,no\n'
    task = make(tmp_path / "t", "classification", SINGLE, {"train.csv": text})
    with pytest.raises(UserError, match=r"train.csv:\d+: is not a row of CSV"):
        task.examples("train")


@pytest.mark.parametrize("value", ["nan", "inf", "1_0", "\u0661", "", "0x1", "1" * 400])
def test_a_score_is_a_plain_number_on_its_scale(tmp_path, value):
    template = 'source: "{a}"\nlabels: {"0": "no", "4": "yes"}\n'
    files = {"train.tsv": f"id\ta\tlabel\n1\tx\t{value}\n"}
    task = make(tmp_path / "t", "similarity", template, files, scale='{"0": 0.0, "4": 4.0}')
    with pytest.raises(UserError, match=r"train.tsv:2: "):
        task.examples("train")


def slow_tags(words, entities):
    """The tags by their definition: a word belongs to the first entity that covers any character of it."""
    tags, last = [], None
    for _, begin, end in words:
        entity = next((e for e in entities if begin < e.end and e.begin < end), None)
        tags.append("O" if entity is None else ("I-" if entity is last else "B-") + entity.kind)
        last = entity
    return tags


def test_entities_are_chosen_and_tagged_as_defined():
    rng = np.random.default_rng(1)
    for _ in range(300):
        begins = rng.integers(0, 60, rng.integers(0, 12))
        found = [pubtator.Entity(int(b), int(b + rng.integers(1, 12)), f"K{i}", "") for i, b in enumerate(begins)]
        chosen = []
        for e in sorted(found, key=lambda e: (e.begin - e.end, e.begin)):
            if all(e.end <= c.begin or c.end <= e.begin for c in chosen):
                chosen.append(e)
        mine = pubtator._choose(found)
        assert set(mine) == set(chosen) and mine == sorted(chosen)
        words = [("w", b, b + 3) for b in range(0, 70, 4)]
        assert pubtator._tags(words, mine, [e.end for e in mine]) == slow_tags(words, mine)


def test_a_document_with_many_entities_takes_no_time(tmp_path):
    n = 20_000
    lines = [f"1|t|{'ab ' * n}", "1|a|x", *(f"1\t{3 * i}\t{3 * i + 2}\tab\tD\tD1" for i in range(n)), ""]
    begin = time.process_time()
    ((_, _, words, tags),) = pubtator.read_pubtator("p", "\n".join(lines), sentences=False)
    assert len(words) == n + 1 and tags.count("B-D") == n
    assert time.process_time() - begin < 20  # seconds; the square of n took minutes
