"""The report's page from a report.json that others may have written: made, or refused in one line."""

import copy
import gzip
import json
import re

import pytest

from data_preprocessing import cli
from data_preprocessing.config import Job
from data_preprocessing.jobs.plan import make_plan
from data_preprocessing.jobs.run import How, run_job
from data_preprocessing.reports import page as page_style
from data_preprocessing.reports import report as page
from data_preprocessing.steps.filters import REASONS
from modelzoo.config.errors import UserError

ODD = (None, True, -1, 10**30, 1.5, "x", "<script>alert(1)</script>", [], {}, {"a": 1}, [[1]], "\0", "\u00b2")


@pytest.fixture(scope="module")
def out(tmp_path_factory, corpus, tokenizer):
    out = tmp_path_factory.mktemp("report") / "out"
    settings = {"tokenizer": {"path": str(tokenizer)}, "msl": 64, "val_fraction": 0.2}
    job = Job(source="pubmed", input=(str(corpus),), output=str(out), **settings)
    run_job(make_plan(job), How())
    return out


def test_every_outcome_is_explained():
    assert [r for r in REASONS if page.explain_reason(r) == page.explain_reason("no such outcome")] == []


def places(value, path=()):
    """The paths of all values in nested mappings and lists, of a list the first item alone."""
    yield path
    items = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, item in list(items)[:4]:
        yield from places(item, (*path, key))


def put(tree, path, value):
    if not path:
        return value
    tree = copy.deepcopy(tree)
    at = tree
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return tree


def report(out, capsys):
    code = cli.main(["report", str(out)])
    return code, capsys.readouterr().err


def test_the_page_is_made_anew_to_the_byte(out, capsys):
    before = (out / "report.html").read_bytes()
    (out / "report.html").write_bytes(b"")
    assert report(out, capsys) == (0, "") and (out / "report.html").read_bytes() == before


def test_any_value_in_any_place_is_taken_or_refused_in_one_line(out, tmp_path, capsys):
    facts, path = json.loads((out / "report.json").read_text(encoding="utf-8")), tmp_path / "report.json"
    taken, refused = 0, []
    for place in places(facts):
        for value in ODD:
            path.write_text(json.dumps(put(facts, place, value)), encoding="utf-8")
            try:
                found = page.read_facts(str(path))
            except UserError as e:
                refused.append(str(e))
            else:
                assert "<script" not in page.html(found) and page.text(found)
                taken += 1
    assert taken > 100 and len(refused) > 300
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in refused)
    path.write_text(json.dumps(put(facts, ("manifest", "records"), "7")), encoding="utf-8")
    code, said = report(tmp_path, capsys)
    assert code == 2 and said.startswith(f"error: {path}: manifest.records: ") and said.count("\n") == 1


def test_a_reason_of_another_version_is_shown(out, capsys):
    path = out / "report.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(json.dumps(put(json.loads(text), ("manifest", "reasons", "brand_new"), 7)), encoding="utf-8")
    try:
        assert cli.main(["report", str(out)]) == 0
        assert re.search(r"7  brand_new", capsys.readouterr().out)
        assert "brand_new" in (out / "report.html").read_text(encoding="utf-8")
    finally:
        path.write_text(text, encoding="utf-8")


def test_the_fate_of_a_record_is_what_the_tables_say(out, capsys):
    rows = []
    for path in sorted((out / "documents").glob("*.tsv.gz")):
        head, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        rows += [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
    fates = {row["reason"]: row for row in rows}
    assert "written" in fates and len(fates) > 1
    for reason, row in fates.items():
        for name in filter(None, (row["key"], row["pmid"])):
            assert cli.main(["inspect", str(out), "--document", name]) == 0
            shown = capsys.readouterr().out
            assert f"{row['key']} in documents/" in shown and re.search(rf"^  reason +{reason} \([A-Za-z]", shown, re.M)
            assert not row["split"] or re.search(rf"^  split +{row['split']}$", shown, re.M)
    for name, folder in (("nobody", out), (rows[0]["key"], out / "train")):
        assert cli.main(["inspect", str(folder), "--document", name]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_inspect_names_what_else_is_there(out, capsys):
    assert cli.main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"{out / 'val'}: " in shown and "--document ID" in shown and "example 0" in shown


def test_a_page_made_anew_by_another_version_is_as_it_should_be(out, monkeypatch, capsys):
    assert report(out, capsys)[0] == 0
    before = (out / "report.html").read_bytes()
    monkeypatch.setattr(page_style, "STYLE", "body{}")
    assert report(out, capsys)[0] == 0 and (out / "report.html").read_bytes() != before
    assert cli.main(["verify", str(out)]) == 0
    (out / "report.html").write_bytes(before + b"changed")
    assert cli.main(["verify", str(out)]) == 2 and "report.html: differs" in capsys.readouterr().err
    (out / "report.html").write_bytes(before)
    monkeypatch.undo()
    assert cli.main(["verify", str(out)]) == 0
