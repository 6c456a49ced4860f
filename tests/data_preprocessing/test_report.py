"""The report's page from a report.json that others may have written: made, or refused in one line."""

import copy
import json
import re

import pytest

from data_preprocessing import cli
from data_preprocessing import job as jobs
from data_preprocessing import report as page
from data_preprocessing.config import Job
from modelzoo.config.errors import UserError

ODD = (None, True, -1, 10**30, 1.5, "x", "<script>alert(1)</script>", [], {}, {"a": 1}, [[1]], "\0", "\u00b2")


@pytest.fixture(scope="module")
def out(tmp_path_factory, corpus, tokenizer):
    out = tmp_path_factory.mktemp("report") / "out"
    settings = {"tokenizer": {"path": str(tokenizer)}, "msl": 64, "val_fraction": 0.2}
    job = Job(source="pubmed", input=(str(corpus),), output=str(out), **settings)
    jobs.run(jobs.make_plan(job), jobs.How())
    return out


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
