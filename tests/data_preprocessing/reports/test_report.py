"""The report's page from a report.json that others may have written: made, or refused in one line."""

import copy
import gzip
import itertools
import json
import math
import re

import numpy as np
import pytest

from data_preprocessing import cli
from data_preprocessing.config import Job
from data_preprocessing.jobs.plan import make_plan
from data_preprocessing.jobs.progress import describe
from data_preprocessing.jobs.run import How, run_job
from data_preprocessing.reports import page as page_style
from data_preprocessing.reports import report as page
from data_preprocessing.steps import encode
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


def test_languages_licences_years_and_lengths_are_of_what_was_written(tmp_path, tokenizer):
    """Counted anew from the lines and the tables: what a filter drops is in no distribution."""
    kept = [
        {"text": f"Text {k} of some words that are long enough to be kept as a document.", "language": "eng"}
        for k in range(5)
    ]
    kept += [{"text": f"{k} words " * 40 + "of a text.", "language": "ger", "licence": "cc by"} for k in range(3)]
    short = [{"text": f"Short {k}.", "language": "ita", "licence": "CC0", "year": 1999} for k in range(7)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*kept, *short]), encoding="utf-8")
    out, settings = tmp_path / "out", {"tokenizer": {"path": str(tokenizer)}, "msl": 64}
    run_job(make_plan(Job(source="jsonl", input=(str(tmp_path / "a.jsonl"),), output=str(out), **settings)), How())
    facts = page.read_facts(str(out / "report.json"))
    assert facts["languages"] == {"eng": 5, "ger": 3} and facts["licences"] == {"CC-BY": 3, "not told": 5}
    assert facts["years"] == {"0": 8}
    lines = gzip.decompress((out / "documents" / "00000.tsv.gz").read_bytes()).decode().splitlines()[1:]
    lengths = [int(line.split("\t")[-1]) for line in lines if line.split("\t")[-3] == "written"]
    edges = sorted(map(int, facts["token_lengths"]))
    for least, after in zip(edges, [*edges[1:], 2**62], strict=True):  # "at least", as the page says
        assert facts["token_lengths"][str(least)] == sum(least <= n < after for n in lengths)


def test_model_zoos_side_file_counts_the_inputs_that_were_read(out):
    inputs = json.loads((out / "manifest.json").read_text())["inputs"]
    for split in ("train", "val"):
        params = json.loads((out / split / "data_params.json").read_text())["post-process"]
        assert params["successful_files"] == len(inputs) > 1
    assert describe("extract", 1, 2, 1, 30, 0, 2.0).split("  ")[-2:] == ["15 records/s", "0:02 left"]
    assert describe("encode", 1, 2, 1, 30, 90, 2.0).split("  ")[-3:] == ["15 documents/s", "45 tokens/s", "0:02 left"]


def test_half_octaves_begin_where_the_page_says():
    lengths = np.arange(1, 5000)
    bins = encode._bins(lengths)
    for least, after in itertools.pairwise(sorted(set(bins.tolist()))):
        assert least**2 >= 2 ** round(2 * math.log2(least) - 0.5) and bins[int(least) - 1] == least
        assert (bins[(lengths >= least) & (lengths < after)] == least).all()


def test_pictures_show_the_years_and_lengths_that_no_document_has():
    assert page._years({"0": 4, "1998": 2, "2001": 1}) == (
        {"1998": 2, "1999": 0, "2000": 0, "2001": 1},
        "year of publication",
    )
    bins, title = page._years({"1899": 1, "1998": 2, "1999": 3})
    assert bins == {str(y): {1890: 1, 1990: 5}.get(y, 0) for y in range(1890, 2000, 10)} and "10 years" in title
    assert page._lengths({"6": 1, "2": 3}) == {"2": 3, "3": 0, "4": 0, "6": 1}
    assert page._lengths({"5": 1, "22": 3}) == {"5": 1, "22": 3}  # of an earlier version, whose edges were lower
