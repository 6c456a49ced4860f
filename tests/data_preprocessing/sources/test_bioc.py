"""BioC-JSON in each form that it comes in gives the same documents, in the memory of one."""

import gzip
import io
import json
import tarfile
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import Job, TextPolicy
from data_preprocessing.sources import bioc, json_stream
from data_preprocessing.steps import extract
from modelzoo.config.errors import UserError


def passage(section, kind, text, **infons):
    section = {"section_type": section} if section else {}
    return {
        "offset": 0,
        "infons": {**section, "type": kind, **infons},
        "text": text,
        "sentences": [],
        "annotations": [],
    }


FRONT = {"article-id_pmc": "PMC7", "article-id_pmid": "12", "article-id_doi": "10.1000/x", "year": "2018"}
ARTICLE = {
    "bioctype": "BioCDocument", "id": "PMC7", "infons": {"license": "CC BY-NC"},
    "passages": [
        passage("TITLE", "front", "A  title", **FRONT),
        passage("ABSTRACT", "abstract_title_1", "METHODS:"), passage("ABSTRACT", "abstract", "We measured."),
        passage("INTRO", "title_1", "Introduction"), passage("INTRO", "paragraph", "Body [1] \"quoted\" {here}."),
        passage("FIG", "fig_caption", "Figure 1."), passage("TABLE", "table", "a\tb\tc"),
        passage("TABLE", "table_footnote", "*p"), passage("REF", "ref", "A reference."),
        passage("ACK_FUND", "paragraph", "Thanks."),
        passage("METHODS", "paragraph", "") | {"sentences": [{"text": "One."}, {"text": "Two."}]},
    ],
}  # fmt: skip
PUBTATOR = {
    "_id": "31|None", "id": "31", "infons": {}, "pmid": 31, "pmcid": None, "date": "2019-06-06T00:00:00Z",
    "passages": [passage("", "title", "Short", authors="B M"), passage("", "abstract", "An abstract.")],
}  # fmt: skip


def collection(*documents):
    return {
        "source": "PMC",
        "date": "20260101",
        "key": "pmc.key",
        "infons": {"documents": "[{"},
        "documents": [*documents],
        "more": [{}],
    }


FORMS = {
    "one.json": lambda a, b: json.dumps([collection(a), collection(b)]),
    "bare.json": lambda a, b: json.dumps(collection(a, b), indent=1),
    "array.json": lambda a, b: "\ufeff" + json.dumps([a, b]),
    "pubtator.json": lambda a, b: json.dumps({"PubTator3": [a, b]}, ensure_ascii=False),
    "lines.jsonl": lambda a, b: json.dumps(a) + "\n\n" + json.dumps(collection(b)),
    "lines.json": lambda a, b: json.dumps(a) + "\r\n" + json.dumps(b) + "\n",
    "alone.json": lambda a, b: json.dumps(a) + json.dumps(b),
}


def read(path, policy=None, **more):
    return list(bioc.documents(str(path), policy or TextPolicy(), 1 << 40, name=path.name, **more))


@pytest.mark.parametrize("whole", [0, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_documents(tmp_path, monkeypatch, form, whole):
    monkeypatch.setattr(bioc, "WHOLE", whole)
    (tmp_path / form).write_text(FORMS[form](ARTICLE, PUBTATOR), encoding="utf-8")
    article, abstract = read(tmp_path / form)
    assert article.text == 'A title\nMETHODS: We measured.\nIntroduction\nBody [1] "quoted" {here}.\nOne. Two.'
    facts = article.key, article.pmcid, article.pmid, article.year, article.licence, article.has_abstract
    assert facts == ("PMC7", "PMC7", "12", 2018, "CC-BY-NC", True)
    assert (abstract.key, abstract.text, abstract.year) == ("pmid:31", "Short\nAn abstract.", 2019)


def test_the_policy_is_that_of_jats(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ARTICLE))
    (d,) = read(tmp_path / "a.json", TextPolicy(captions="keep", tables="text", labels="drop"))
    body = ["Introduction", 'Body [1] "quoted" {here}.', "Figure 1.", "a | b | c", "One. Two."]
    assert d.text.split("\n")[1:] == ["We measured.", *body]
    (d,) = read(tmp_path / "a.json", TextPolicy(body=False))
    assert d.text == "A title\nMETHODS: We measured."


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_one_bad_document_is_counted_or_refused_by_its_number(tmp_path, name):
    lines = [json.dumps(ARTICLE), '{"id": "1"}', '{"passages": [], "x": 01}', json.dumps(PUBTATOR)]
    lines += ['{"passages": ['] if name == "a.jsonl" else []
    (tmp_path / name).write_text("\n".join(lines))
    found = read(tmp_path / name, unreadable="drop")
    assert [d.key for d in found if not d.kinds] == ["PMC7", "pmid:31"]
    assert [d.text[:7] for d in found if d.kinds] == ["no BioC", "not JSO", "not JSO"][: len(lines) - 2]
    with pytest.raises(UserError, match=rf"{name}#2: no BioC document"):
        read(tmp_path / name)


@pytest.mark.parametrize("form", ["bare.json", "array.json", "lines.jsonl", "alone.json"])
def test_a_document_with_a_key_twice_is_counted_and_the_others_are_read(tmp_path, form):
    text = FORMS[form](ARTICLE, PUBTATOR).replace('"pmid": 31', '"pmid": 31, "pmid": 32')
    assert text.count('"pmid": 3') == 2
    (tmp_path / form).write_text(text, encoding="utf-8")
    article, other = read(tmp_path / form, unreadable="drop")
    assert (article.key, other.kinds) == ("PMC7", ("unreadable",)) and "gives the key 'pmid' twice" in other.text


@pytest.mark.parametrize(
    "text", ["[1]", '["a"]', "{", '[{"a": "', "]", "words", '{"documents": [{}', "{}}", '[{"a": 1}']
)
@pytest.mark.parametrize("whole", [-1, 1 << 20])
def test_what_is_no_json_of_documents_is_one_line(tmp_path, monkeypatch, text, whole):
    monkeypatch.setattr(bioc, "WHOLE", whole)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json") as e:
        read(tmp_path / "a.json")
    assert "\n" not in str(e.value)
    if whole > 0:
        assert {k for d in read(tmp_path / "a.json", unreadable="drop") for k in d.kinds} == {"unreadable"}


values = st.recursive(
    st.sampled_from(['"', "\\", "[{", "é", "documents", "\u2028"]) | st.integers() | st.none(),
    lambda v: (
        st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(["passages", "x", 'a"', "docs"]), v, max_size=3)
    ),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), values, max_size=3), max_size=4), st.integers(1, 30))
def test_cut_documents_are_those_that_a_parser_finds(documents, size):
    data = json.dumps([{"a": {"documents": []}, "documents": documents, "b": [{}]}], indent=2).encode()
    found = json_stream.cut((data[at : at + size] for at in range(0, len(data), size)), "f", frozenset((b"documents",)))
    assert [json.loads(piece or b"") for piece in found] == documents


def test_packages_and_a_whole_job(tmp_path):
    data = {"PMC7.xml": json.dumps(collection(ARTICLE)), "._PMC7.xml": "x", "r.xml": "<a/>", "c.txt": ""}
    data["b.json"] = json.dumps(PUBTATOR)
    with tarfile.open(tmp_path / "PMC000_json.tar.gz", "w:gz") as package:
        for name, text in data.items():
            member = tarfile.TarInfo(f"out/{name}")
            member.size = len(text)
            package.addfile(member, io.BytesIO(text.encode()))
    path, passed = tmp_path / "PMC000_json.tar.gz", Counter()
    assert [d.key for d in read(path, passed=passed)] == ["PMC7", "pmid:31"]
    assert passed == {"hidden": 1, "no article": 1, "other names": 1}
    job = Job(source="bioc", input=(str(tmp_path),), output="-", filters={"min_chars": 5})
    marker = extract.extract(job, str(tmp_path), 0, [{"path": str(path), "name": path.name}])
    assert marker["kept_so_far"] == 2 and marker["passed_over"] == dict(passed)


def test_a_large_collection_is_read_in_the_memory_of_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_DOCUMENT", 1 << 20)
    path = tmp_path / "big.json.gz"
    with gzip.open(path, "wb", 1) as f:
        f.write(b'{"source": "PMC", "documents": [')
        for k in range(300):
            body = passage("INTRO", "paragraph", "wordsandwords" * (14_000 if k != 7 else 90_000))
            f.write(b"," * bool(k) + json.dumps({"id": f"PMC{k + 1}", "passages": [body]}).encode())
        f.write(b"]}")
    tracemalloc.start()
    found = [(d.key, d.kinds) for d in bioc.documents(str(path), TextPolicy(), 1 << 40, "drop", "big.json.gz")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 300 and [k for k, (_, kinds) in enumerate(found) if kinds] == [7]
    assert peak < 40 << 20  # of 59 MB
