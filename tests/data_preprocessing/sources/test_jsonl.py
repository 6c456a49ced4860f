"""JSONL as people write it: marks, nulls, dates, lists and licences in any spelling, and keys inside of objects."""

import json

import pytest

from data_preprocessing.config import Job
from data_preprocessing.jobs.plan import make_plan
from data_preprocessing.sources import jsonl
from data_preprocessing.steps import extract
from data_preprocessing.text.document import read_year
from data_preprocessing.text.spellings import normalise_language, normalise_licence
from data_preprocessing.tokens import shards
from modelzoo.config.errors import UserError

TEXT = "This document is about a study of a drug, and long enough to be kept by any filter."


def write(path, *records, before=b""):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_bytes(before + "\n".join(lines).encode())
    return path


def read(path, **settings):
    job = Job(source="jsonl", input=(str(path),), output="-", **settings)
    return list(jsonl.documents(str(path), path.name, job, 1 << 30))


def test_marks_nulls_and_bad_lines_are_one_record_each(tmp_path):
    deep = '{"text": ' + "[" * 5000 + "]" * 5000 + "}"
    lines = [{"text": TEXT}, {"text": None, "id": 2}, deep, '{"text": "half \\ud800"}', "{", {"text": TEXT + "!"}]
    path = write(tmp_path / "a.jsonl", *lines, before=b"\xef\xbb\xbf")
    job = Job(source="jsonl", input=(str(path),), output="-")
    marker = extract.extract(job, str(tmp_path), 0, [{"path": str(path), "name": path.name}])
    assert (marker["records"], marker["kept_so_far"]) == (6, 2)
    assert [s["text"] for s in marker["samples"]["no_text"]] == [""] and len(marker["samples"]["unreadable"]) == 2
    with pytest.raises(UserError, match=r"a\.jsonl:3: not JSON \(is nested too deeply\)"):
        read(path, unreadable="refuse")


def test_a_key_that_occurs_twice_is_named_with_its_line(tmp_path):
    """The second value would win in silence, in the record itself and in objects inside of it."""
    lines = [{"text": TEXT}, f'{{"text": "{TEXT}", "text": "other"}}', f'{{"text": "{TEXT}", "m": {{"k": 1, "k": 2}}}}']
    path = write(tmp_path / "a.jsonl", *lines)
    assert [d.text for d in read(path) if d.kinds] == [f"not JSON (gives the key '{k}' twice)" for k in ("text", "k")]
    with pytest.raises(UserError, match=r"a\.jsonl:2: not JSON \(gives the key 'text' twice\)"):
        read(path, unreadable="refuse")


def test_a_line_that_would_fill_the_memory_is_unreadable(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_PARTS", 1000)
    path = write(tmp_path / "a.jsonl", {"text": TEXT, "x": [{}] * 995}, {"text": TEXT, "x": [{}] * 996})
    assert [d.kinds for d in read(path)] == [(), ("unreadable",)]


def test_facts_in_any_form(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"text": TEXT, "id": "", "language": ["en", "fra"], "license": "CC BY", "pmid": 12.0, "year": "May 14, 2023"},
        {"text": TEXT, "id": "", "language": "en,DE-at", "licence": "cc-by-nc-4.0", "pmid": "PMID: 013", "pmcid": [7]},
        {"text": TEXT, "id": 5, "language": {"a": 1}, "license": ["CC0"], "pmid": "n/a", "pmcid": True, "year": []},
    )
    found = [(d.key, d.language, d.licence, d.pmid, d.pmcid, d.year) for d in read(path)]
    assert found == [
        ("a.jsonl:1", "eng,fre", "CC-BY", "12", "", 2023),
        ("a.jsonl:2", "eng,ger", "CC-BY-NC-4.0", "13", "PMC7", 0),
        ("id:5", "", "CC0", "", "", 0),
    ]


def test_keys_inside_of_objects(tmp_path):
    inner = {"text": TEXT, "n": {"y": "1999-01-01T00:00:00Z"}}
    path = write(tmp_path / "a.jsonl", {"a.b": TEXT, "content": inner, "ids": {"pubmed": 7}, "c": None})
    keys = {"year_key": "content.n.y", "pmid_key": "ids.pubmed", "id_key": "c.x", "licence_key": "content.text.x"}
    (d,) = read(path, text_key="content.text", **keys)
    assert (d.text, d.year, d.pmid, d.key, d.licence) == (TEXT, 1999, "7", "a.jsonl:1", "")
    assert read(tmp_path / "a.jsonl", text_key="a.b")[0].text == TEXT
    assert "no key 'content.body'" in read(tmp_path / "a.jsonl", text_key="content.body")[0].text


@pytest.mark.parametrize(("given", "year"), [
    (2020.0, 2020), (20230514, 2023), ("May 14, 2023", 2023), ("14.05.2023", 2023), ("05/14/2023", 2023),
    (" 2020 ", 2020), ("2000 Dec-2001 Jan", 2000), ("from 1998 to 2001", 0), (1684022400, 0),
    (float("nan"), 0), ({"$date": 1}, 0),
])  # fmt: skip
def test_odd_years(given, year):
    assert read_year(given) == year


@pytest.mark.parametrize(("given", "name"), [
    ("CC BY", "CC-BY"), ("cc-by-4.0", "CC-BY-4.0"), ("CC BY-NC-SA 4.0", "CC-BY-NC-SA-4.0"),
    ("CCBYNCND", "CC-BY-NC-ND"), ("CC-BY-SA-NC", "CC-BY-NC-SA"), ("cc0-1.0", "CC0"),
    ("http://creativecommons.org/licenses/by-nc/4.0/", "CC-BY-NC-4.0"),
    ("CC0 1.0 Universal", "CC0"), ("CC BY 3.0 IGO", "CC-BY-3.0"),
    ("Creative Commons Attribution 4.0", "CC-BY"),
    ("see CC BY-NC 4.0, open", "CC-BY-NC-4.0"), ("public domain", "CC0"), ("by the authors", "by the authors"),
    (" MIT ", "MIT"), ("NO-CC CODE", "NO-CC CODE"), ("", ""),
])  # fmt: skip
def test_licences_have_one_spelling(given, name):
    assert normalise_licence(given) == name == normalise_licence(name)


def test_languages_have_the_codes_of_medline():
    given = ["en", "EN-us", "eng", "deu", "zho", "pt_BR", "fr", "sv", "xyz", ""]
    assert [*map(normalise_language, given)] == ["eng", "eng", "eng", "ger", "chi", "por", "fre", "swe", "xyz", ""]


def test_filters_take_the_spellings_of_records(tmp_path):
    lines = [
        {"text": TEXT + str(k), "language": "en", "license": name} for k, name in enumerate(("CC BY 4.0", "CC BY-NC"))
    ]
    path = write(tmp_path / "a.jsonl", *lines)
    kept = {"licences": ("cc by",), "languages": ("en-GB",)}
    job = Job(source="jsonl", input=(str(path),), output="-", filters=kept)
    assert extract.extract(job, str(tmp_path), 0, [{"path": str(path), "name": path.name}])["kept_so_far"] == 1


def test_a_job_begun_before_a_setting_was_there_goes_on_with_its_default(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": TEXT})
    plan = make_plan(Job(source="jsonl", input=(str(path),), output=str(tmp_path / "out")))
    (tmp_path / "out/work/extract").mkdir(parents=True)
    (tmp_path / "out/work/extract/00000.json").write_text("{}")  # something was done
    record = json.loads((tmp_path / "out/job.json").read_text())
    del record["config"]["year_key"], record["config"]["licence_key"]
    shards.write_json(str(tmp_path / "out/job.json"), record)
    assert make_plan(plan.job) == plan
    with pytest.raises(UserError, match="begun with year_key = 'year', now 'created'"):
        make_plan(plan.job.model_copy(update={"year_key": "created"}))
