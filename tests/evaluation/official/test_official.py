"""Official files to the layouts of bundled tasks: each format, folders and archives alike, and what is wrong."""

import csv
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from random import Random

import pytest

from modelzoo.cli import main
from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.files import MAX_DATA
from modelzoo.evaluation.forms.load import load_task
from modelzoo.evaluation.official import archive
from modelzoo.evaluation.official.prepare import NAMES, prepare_task
from modelzoo.evaluation.official.pubmedqa_folds import split_pqal
from modelzoo.evaluation.official.read import SUBJECTS
from modelzoo.verbs import VERBS
from tests import choice_files as files


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_medqa(tmp_path):
    docs = files.write_medqa(tmp_path / "in", Random(0))
    prepare_task("medqa", str(tmp_path / "in"), str(tmp_path / "out"))
    for split, part in docs.items():
        endings = lambda d: {x: d[f"ending{i}"] for i, x in enumerate("ABCD")}
        expected = [
            {"id": f"{split}-{i}", "question": d["sent1"], **endings(d), "label": "ABCD"[d["label"]]}
            for i, d in enumerate(part, 1)
        ]
        assert rows(tmp_path / f"out/{split}.jsonl") == expected
        assert len(load_task("medqa", [f"data_dir={tmp_path / 'out'}"]).examples(split)) == len(part)
    about = json.loads((tmp_path / "out/made_from.json").read_text())
    assert about["rows"] == {f"{split}.jsonl": n for split, n in files.COUNTS.items()}
    for name, digest in about["files"].items():
        assert hashlib.sha256((tmp_path / "in" / name).read_bytes()).hexdigest() == digest


def test_medmcqa_counts_options_from_one_and_its_test_has_no_answers(tmp_path):
    docs = files.write_medmcqa(tmp_path / "in", Random(0))
    prepare_task("medmcqa", str(tmp_path / "in"), str(tmp_path / "out"))
    for split, part in docs.items():
        found = rows(tmp_path / f"out/{split}.jsonl")
        assert [r["label"] for r in found] == [None if split == "test" else "ABCD"[d["cop"]] for d in part]
        assert [[r[x] for x in ("id", *"ABCD", "subject")] for r in found] == [
            [d[x] for x in ("id", "opa", "opb", "opc", "opd", "subject_name")] for d in part
        ]
    task = load_task("medmcqa", [f"data_dir={tmp_path / 'out'}"])
    assert len(task.examples("dev")) == 6 and task.group(task.examples("dev")[0]) in ("Dental", "Skin")


def test_mmlu_takes_its_medical_subjects(tmp_path):
    docs = files.write_mmlu(tmp_path / "in", Random(0))
    prepare_task("mmlu", str(tmp_path / "in"), str(tmp_path / "out"))
    found = rows(tmp_path / "out/test.jsonl")
    expected = [(s.replace("_", " "), d) for s in SUBJECTS for d in docs[s]["test"]]
    assert [(r["subject"], r["question"], [r[x] for x in "ABCD"], r["label"]) for r in found] == [
        (s, d["question"].strip(), d["choices"], "ABCD"[d["answer"]]) for s, d in expected
    ]
    task = load_task("mmlu_medical", [f"data_dir={tmp_path / 'out'}"])
    prompt = task.prompts(task.examples("test"), "test")[0]
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.\n\nq")
    assert prompt.count("Answer:") == 6 and prompt.endswith("\nAnswer:")


def test_bioasq_takes_yes_no_questions_and_keeps_the_test_out_of_the_rest(tmp_path):
    answers = files.write_bioasq(tmp_path / "in", Random(0))
    prepare_task("bioasq", str(tmp_path / "in"), str(tmp_path / "out"))
    found = {s: rows(tmp_path / f"out/{s}.jsonl") for s in ("train", "dev", "test")}
    assert {r["id"]: r["label"] for part in found.values() for r in part} == answers
    assert [r["id"] for r in found["test"]] == [str(i) for i in range(60, 66)]
    assert 0 < len(found["dev"]) < len(found["train"]) and sum(map(len, found.values())) == 66
    assert all(r["context"] and r["context"] == " ".join(r["context"].split()) for r in found["test"])


def test_the_folds_are_those_of_the_authors_script():
    """Its test and folds of 552, 338 and 110 answers in this order, as preprocess/split_dataset.py gave them."""
    answers = ["yes"] * 552 + ["no"] * 338 + ["maybe"] * 110
    Random(1).shuffle(answers)
    found = json.dumps(split_pqal({str(i): a for i, a in enumerate(answers)}))
    assert hashlib.sha256(found.encode()).hexdigest().startswith("07d3ebb8c7cbb5f5c495840c4cfebc6d")


@pytest.fixture
def pqal(tmp_path):
    """ori_pqal.json with the published counts, and the truth of its test."""
    answers = {str(i): ["yes", "no", "maybe"][i % 9 % 3] for i in range(200)}
    test, _ = split_pqal(answers)
    questions = {i: {"QUESTION": "q?", "CONTEXTS": ["c"], "LONG_ANSWER": "l", "final_decision": a}
                 for i, a in answers.items()}  # fmt: skip
    files.write(tmp_path / "in/ori_pqal.json", json.dumps(questions))
    files.write(tmp_path / "in/test_ground_truth.json", json.dumps({i: answers[i] for i in test}))
    return tmp_path


def test_pubmedqa_is_read_by_its_tasks_and_held_to_the_published_test(pqal, capsys):
    assert main(["prepare-task", "pubmedqa", str(pqal / "in"), str(pqal / "out")]) == 0
    truth = json.loads((pqal / "in/test_ground_truth.json").read_text())
    ids = []
    for name in ("pubmedqa", "pubmedqa_choice", "pubmedqa_long"):
        task = load_task(name, [f"data_dir={pqal / 'out'}"])
        assert {e.id: e.gold for e in task.examples("test")} == truth
        for fold in range(10):
            train, dev = ({e.id for e in task.examples(s, fold)} for s in ("train", "dev"))
            assert not train & dev and not (train | dev) & set(truth) and len(train | dev) == 200 - len(truth)
            ids += sorted(dev)
    assert len(set(ids)) == len(ids) / 3 == 200 - len(truth)
    first = next(iter(truth))
    files.write(
        pqal / "in/test_ground_truth.json", json.dumps({**truth, first: "no" if truth[first] == "yes" else "yes"})
    )
    assert main(["prepare-task", "pubmedqa", str(pqal / "in"), str(pqal / "other")]) == 2
    assert "gives another test set than test_ground_truth.json" in capsys.readouterr().err
    assert not (pqal / "other").exists()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_give_what_folders_give(tmp_path, kind):
    files.write_medqa(tmp_path / "in", Random(0))
    prepare_task("medqa", str(tmp_path / "in"), str(tmp_path / "a"))
    path = tmp_path / f"data_clean.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for f in (tmp_path / "in").rglob("*.jsonl"):
                file.write(f, f.relative_to(tmp_path / "in"))
            file.writestr("__MACOSX/data_clean/._x.jsonl", b"\0")
    else:
        with tarfile.open(path, f"w:{kind[4:]}") as file:
            file.add(tmp_path / "in", "./")
    prepare_task("medqa", str(path), str(tmp_path / "b"))
    for split in files.COUNTS:
        assert (tmp_path / f"a/{split}.jsonl").read_bytes() == (tmp_path / f"b/{split}.jsonl").read_bytes()


def test_parquet_files_of_the_hub_give_what_the_official_files_give(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    names = {"dev": "validation", "val": "validation"}
    mcqa, mmlu = files.write_medmcqa(tmp_path / "mcqa", Random(0)), files.write_mmlu(tmp_path / "mmlu", Random(0))
    for split, docs in mcqa.items():
        docs = [{**d, "cop": -1} for d in docs] if split == "test" else docs
        files.write(tmp_path / f"hub_mcqa/data/{names.get(split, split)}-00000-of-00001.parquet", "")
        table = pyarrow.Table.from_pylist(docs)
        parquet.write_table(table, tmp_path / f"hub_mcqa/data/{names.get(split, split)}-00000-of-00001.parquet")
    for subject, parts in mmlu.items():
        for split, docs in parts.items():
            path = tmp_path / f"hub_mmlu/{subject}/{'dev' if split == 'dev' else names.get(split, split)}-0.parquet"
            files.write(path, "")
            parquet.write_table(pyarrow.Table.from_pylist(docs), path)
    for name, folder in (("medmcqa", "mcqa"), ("mmlu", "mmlu")):
        for kind in ("", "hub_"):
            prepare_task(name, str(tmp_path / f"{kind}{folder}"), str(tmp_path / f"out_{kind}{folder}"))
        for path in (tmp_path / f"out_{folder}").glob("*.jsonl"):
            assert path.read_bytes() == (tmp_path / f"out_hub_{folder}" / path.name).read_bytes()


def spoil(folder: Path, name: str, kind: str) -> None:
    """One of the official files, its second row or question not as it should be."""
    if name == "medqa":
        path = folder / "data_clean/questions/US/4_options/phrases_no_exclude_dev.jsonl"
        found = rows(path)
        changes = {"missing": {"question": ...}, "answer": {"answer_idx": "E"},
                   "empty": {"options": {**found[1]["options"], "B": " "}}}  # fmt: skip
        found[1] = {k: v for k, v in {**found[1], **changes[kind]}.items() if v is not ...}
        files.write(path, files.lines(found))
    if name == "medmcqa":
        found = rows(folder / "dev.json")
        changes = {"missing": {"opa": ...}, "answer": {"cop": 0}, "empty": {"opd": ""}}
        found[1] = {k: v for k, v in {**found[1], **changes[kind]}.items() if v is not ...}
        files.write(folder / "dev.json", files.lines(found))
    if name == "mmlu":
        path = folder / "data/test/anatomy_test.csv"
        cells = {"missing": ["q", "a", "b", "c", "A"], "answer": ["q", *"abcd", "E"], "empty": ["q", "", *"bcd", "A"]}
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["q", *"abcd", "A"], cells[kind]])
        files.write(path, text.getvalue())
    if name == "bioasq":
        path = folder / "13B1_golden.json"
        found = json.loads(path.read_text())
        changes = {"missing": {"body": ...}, "answer": {"exact_answer": "perhaps"}, "empty": {"body": " "}}
        found["questions"][1] = {k: v for k, v in {**found["questions"][1], **changes[kind]}.items() if v is not ...}
        files.write(path, json.dumps(found))


WRITERS = {"medqa": files.write_medqa, "medmcqa": files.write_medmcqa, "mmlu": files.write_mmlu,
           "bioasq": files.write_bioasq}  # fmt: skip
PLACES = {"medqa": "phrases_no_exclude_dev.jsonl:2", "medmcqa": "dev.json:2", "mmlu": "anatomy_test.csv:2",
          "bioasq": "13B1_golden.json: question 2"}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_bad_rows_name_file_and_line(tmp_path, name, capsys):
    for kind in ("missing", "answer", "empty"):
        folder = tmp_path / kind
        WRITERS[name](folder, Random(0))
        spoil(folder, name, kind)
        assert main(["prepare-task", name, str(folder), str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert PLACES[name] in line and line.startswith("error: ")
        assert {"missing": "is missing", "answer": "", "empty": "is empty"}[kind] in line or "has 5 columns" in line
        assert not (tmp_path / "out").exists()


def test_other_layouts_and_places_are_one_line(tmp_path, capsys, monkeypatch):
    files.write_mmlu(tmp_path / "mmlu", Random(0))
    (tmp_path / "mmlu/data/dev/anatomy_dev.csv").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.zip").write_bytes(b"PK\3\4 torn")
    files.write_medqa(tmp_path / "whole", Random(0))
    files.write(tmp_path / "made/pqal_folds.json", "{}")
    with zipfile.ZipFile(tmp_path / "torn.zip", "w") as file:
        file.writestr("US/4_options/phrases_no_exclude_dev.jsonl", b"{}\n" * 99)
    data = bytearray((tmp_path / "torn.zip").read_bytes())
    data[90] ^= 255
    (tmp_path / "torn.zip").write_bytes(data)
    for name, source, out, said in (
        ("medqa", "empty", "o", "holds none of medqa's files; it needs questions/US/4_options/phrases"),
        ("bioasq", "empty", "o", "it needs trainingNNb.json"),
        ("pubmedqa", "empty", "o", "has no ori_pqal.json"),
        ("pubmedqa", "made", "o", "it has pqal_folds.json, so it is made already: give it by --data_dir"),
        ("mmlu", "mmlu", "o", "has no dev/anatomy_dev.csv"),
        ("medqa", "gone", "o", "gone: no such file or folder"),
        ("medqa", "x.zip", "o", "x.zip: is neither a folder nor a .zip or tar file"),
        ("medqa", "torn.zip", "o", "phrases_no_exclude_dev.jsonl: cannot be read (Bad CRC-32"),
        ("medqa", "whole", "empty", "empty: is there already"),
    ):
        assert main(["prepare-task", name, str(tmp_path / source), str(tmp_path / out)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line
    monkeypatch.setattr(archive, "MAX_DATA", 100)
    assert main(["prepare-task", "medqa", str(tmp_path / "whole"), str(tmp_path / "o")]) == 2
    assert "bytes; at most 100 are read" in capsys.readouterr().err
    assert MAX_DATA > 100 and not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "csv"])
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, kind):
    (files.write_mmlu if kind == "csv" else files.write_medqa)(tmp_path / "in", Random(0))
    path = tmp_path / "in/data/test/anatomy_test.csv"
    if kind == "zip":
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("US/4_options/phrases_no_exclude_dev.jsonl", _dev(tmp_path))
    if kind == "tar.gz":
        path = tmp_path / "x.tar.gz"
        with tarfile.open(path, "w:gz") as file:
            file.add(tmp_path / "in", "x")
    whole, draw, refused = path.read_bytes(), Random(1), 0
    for n in range(120):
        changed = bytearray(whole)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed[: draw.randrange(len(whole))] if n % 3 == 0 else changed)
        try:
            prepare_task(
                *(("mmlu", str(tmp_path / "in")) if kind == "csv" else ("medqa", str(path))), str(tmp_path / f"o{n}")
            )
        except UserError as e:
            refused += 1
            assert "\n" not in str(e) and len(str(e)) < 600 and not (tmp_path / f"o{n}").exists()
    assert refused > 20


def _dev(folder: Path) -> str:
    return (folder / "in/data_clean/questions/US/4_options/phrases_no_exclude_dev.jsonl").read_text(encoding="utf-8")


def test_the_verb_names_every_reader():
    assert all(f" {name}" in f" {' '.join(_choices())}" for name in NAMES) and len(_choices()) == len(NAMES)


def _choices() -> list[str]:
    import argparse

    parser = argparse.ArgumentParser()
    VERBS["prepare-task"].arguments(parser)
    return list(parser._actions[1].choices or ())
