"""Which files a job reads: every file that was asked for, once, and whatever is passed over is counted."""

import gzip
import json
import os
from collections import Counter

import pytest

from data_preprocessing import cli
from data_preprocessing.inputs import listing
from modelzoo.config.errors import UserError


def make(folder, *names):
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(os.fsencode(name))


def find(*paths, source="jsonl"):
    passed = Counter()
    return [f["name"] for f in listing.find(tuple(map(str, paths)), source, passed)], dict(passed)


def test_files_of_one_name_in_two_inputs_are_two(tmp_path):
    make(tmp_path, "a/x.jsonl", "b/x.jsonl", "b/c/y.jsonl")
    assert find(tmp_path / "a", tmp_path / "b")[0] == ["a/x.jsonl", "b/c/y.jsonl", "b/x.jsonl"]
    assert find(tmp_path / "a/x.jsonl", tmp_path / "b/x.jsonl")[0] == ["a/x.jsonl", "b/x.jsonl"]
    assert find(tmp_path / "a", tmp_path / "b/c")[0] == ["x.jsonl", "y.jsonl"]  # as job.json of earlier runs has them


def test_hidden_and_other_files_are_counted(tmp_path):
    make(tmp_path, "x.jsonl", "._x.jsonl", ".x.jsonl.tmp", ".git/y.jsonl", "README.md", "z.json")
    assert find(tmp_path) == (["x.jsonl"], {"hidden": 3, "other names": 2})
    assert find(tmp_path / "._x.jsonl")[0] == ["._x.jsonl"]  # it was asked for by name
    make(tmp_path, "none/._x.jsonl")
    with pytest.raises(UserError, match=r"none: holds no jsonl input .*hidden: 1"):
        find(tmp_path / "none")


def test_a_file_that_is_reached_twice_is_read_once(tmp_path):
    make(tmp_path, "2024/x.jsonl", "2024/deep/y.jsonl")
    os.symlink("2024", tmp_path / "1-latest")
    os.symlink("2024/x.jsonl", tmp_path / "again.jsonl")
    names = ["2024/deep/y.jsonl", "2024/x.jsonl"]
    assert find(tmp_path) == (names, {"found twice": 2})
    assert find(tmp_path, tmp_path / "2024")[0] == find(tmp_path / "2024", tmp_path)[0] == names


def test_linked_folders_are_followed_and_loops_refused_by_name(tmp_path):
    make(tmp_path, "far/x.jsonl", "in/y.jsonl")
    os.symlink(tmp_path / "far", tmp_path / "in/far")
    assert find(tmp_path / "in")[0] == ["far/x.jsonl", "y.jsonl"]
    os.symlink(tmp_path / "in", tmp_path / "far/back")
    with pytest.raises(UserError, match=r"in/far/back: is a link back to"):
        find(tmp_path / "in")
    os.remove(tmp_path / "far/back")
    os.symlink("..", tmp_path / "in/up")
    with pytest.raises(UserError, match=r"in/up: is a link back to"):
        find(tmp_path / "in")


def test_links_that_multiply_end_in_time(tmp_path):
    for k in range(40):
        make(tmp_path, f"{k}/x{k}.jsonl")
        for link in "ab" if k else "":
            os.symlink(tmp_path / str(k), tmp_path / str(k - 1) / link)
    assert len(find(tmp_path / "0")[0]) == 40


def test_an_unreadable_file_is_refused_before_the_job(tmp_path, monkeypatch):
    make(tmp_path, "x.jsonl", "y.jsonl")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("y.jsonl") and real(path, mode))
    with pytest.raises(UserError, match=r"y\.jsonl: cannot be read: Permission denied"):
        find(tmp_path)


def test_a_flag_of_many_takes_all_and_one_of_one_refuses_the_second():
    for verb in ("pubmed", "pmc", "jsonl", "tokenizer", "pack"):
        words = [
            verb,
            "--input",
            "a",
            "b",
            "--output",
            "o",
            "--input",
            "c",
            *(["--msl", "8"] if verb == "pack" else []),
        ]
        assert cli.parser().parse_args(words).input == ["a", "b", "c"]
        assert cli.parser().parse_args([*words, "--output", "o"]).output == "o"  # the same value is no other
        with pytest.raises(UserError, match=r"--output: given twice, as o and as p"):
            cli.parser().parse_args([*words, "--output", "p"])
    job = ["jsonl", "--input", "a", "--set", "msl=8", "--set", "seed=1"]
    with pytest.raises(UserError, match=r"--set: msl is given twice"):
        cli.parser().parse_args([*job, "--set", "msl=9"])


def test_both_inputs_are_read_and_what_is_passed_over_is_reported(tmp_path, cli):
    """Names below what was given need not be UTF-8, and are shown."""
    for top in ("one", "two"):
        folder = os.path.join(os.fsencode(tmp_path), top.encode(), b"in\xff")
        os.makedirs(folder)
        for k in range(3):
            with open(os.path.join(folder, b"p\xfe%d.jsonl.gz" % k), "wb") as f:
                text = f"Document {k} of {top} is about a study of a drug, long enough to be kept."
                f.write(gzip.compress(json.dumps({"text": text}).encode()))
    make(tmp_path / "two", "._p.jsonl", "notes.doc")
    out = tmp_path / "out"
    words = ["--tokenizer", "train", "--vocab_size", 300, "--msl", 16, "--val_fraction", 0, "--workers", 1]
    done = cli("jsonl", "--input", tmp_path / "one", "--input", tmp_path / "two", "--output", out, *words)
    assert "6 records = 6 written" in done.stdout and "passed over: hidden 1, other names 1" in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["passed_over"] == {"hidden": 1, "other names": 1}
    assert sorted(report["inputs"])[0] == "one/in\\xff/p\\xfe0.jsonl.gz" and len(report["inputs"]) == 6
    assert "passed over: hidden 1" in (out / "report.html").read_text()
    assert "p\\xfe" in gzip.decompress((out / "documents/00000.tsv.gz").read_bytes()).decode()


@pytest.mark.parametrize("where", ["in", "in/o/p", "link/o"])
@pytest.mark.parametrize("verb", ["pack", "bioc", "tokenizer"])
def test_no_output_goes_into_its_input(tmp_path, capsys, monkeypatch, verb, where):
    """`bioc` would read its own job.json as an input when it goes on."""
    monkeypatch.chdir(tmp_path)
    record = {"input_ids": [1, 2, 3] * 9, "text": "A text of some words, long enough to be kept as a document."}
    (tmp_path / "in" / "o").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    (tmp_path / "link").symlink_to("in")
    more = {"pack": ["--msl", "8", "--eos_id", "0"], "tokenizer": ["--source", "bioc"]}.get(verb, [])
    output = f"{where}/t.json" if verb == "tokenizer" else where
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([verb, "--input", "in", "--output", output, *more]) == 2
    assert capsys.readouterr().err == f"error: {output}: is the input in, or in it; give an --output outside of it\n"
    assert sorted(tmp_path.rglob("*")) == before
