"""One bad record ends no job: it is counted and shown, and every other record is what it would be without it."""

import json
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import Job, TextPolicy
from data_preprocessing.inputs import listing, streams
from data_preprocessing.sources import jsonl, pmc, pubmed
from data_preprocessing.steps import extract
from data_preprocessing.text import document
from data_preprocessing.text.document import Document, read_year
from modelzoo.config.errors import UserError
from modelzoo.reading import is_number

TEXT = "A document that is long enough to be kept by every filter there is, number {}."


def job(folder, source: str = "jsonl", **more) -> Job:
    return Job(source=source, input=(str(folder),), output=str(folder / "out"), **more)


def read(path, **more) -> list[Document]:
    return list(extract.documents(job(path.parent, **more), str(path), path.name))


def write_lines(path, lines: list[str]):
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    return path


BAD = {
    "nothing": "not JSON",
    "[1]": "a JSON list",
    "{}": "no key 'text'",
    '{"text": 7}': "'text' is a int",
    '{"text": "\\ud800"}': "half a surrogate pair",
    '{"text": "x", "id": "\\udfff"}': "half a surrogate pair",
    '{"text": "x", "language": "\\udfff"}': "half a surrogate pair",
    '{"text": "x", "id": ' + "[" * 100_000 + "]" * 100_000 + "}": "nested too deeply",
    '{"text": "x", "id": ' + "9" * 5000 + "}": "not JSON",
    '{"text": "x", "language": "' + "9" * 20_000 + '"}': "facts of",
    "\x00": "not JSON",
    "\ud800": "not UTF-8",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_counted_with_its_reason_and_the_rest_is_kept(tmp_path, line):
    good = [json.dumps({"text": TEXT.format(k)}) for k in range(2)]
    path = write_lines(tmp_path / "a.jsonl", [good[0], line, good[1]])
    first, bad, last = read(path)
    assert [d.text for d in (first, last)] == [TEXT.format(0), TEXT.format(1)]
    assert bad.kinds == ("unreadable",) and bad.key == "unreadable:a.jsonl:2" and BAD[line] in bad.text
    with pytest.raises(UserError, match=r"a\.jsonl:2: "):
        read(path, unreadable="refuse")
    with pytest.raises(UserError, match=r"a\.jsonl:1: .*none of the 3 records"):
        read(write_lines(tmp_path / "a.jsonl", [line] * 3))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
) | st.sampled_from(["²", "٣", "2020", "12345", "-1", "1e9", "NaN", "\ud800", 10**400, 2**31, 20230514])


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(["id", "pmid", "pmcid", "year", "language", "license"]), anything))
def test_any_metadata_gives_a_record_that_every_later_step_holds(tmp_path_factory, facts):
    folder = tmp_path_factory.mktemp("facts")
    lines = [json.dumps({"text": TEXT.format(0), **facts}), json.dumps({"text": TEXT.format(1)})]
    write_lines(folder / "a.jsonl", lines)
    marker = extract.extract(job(folder), str(folder), 0, [{"path": str(folder / "a.jsonl"), "name": "a.jsonl"}])
    assert marker["records"] == 2 and marker["kept_so_far"] in (1, 2)


@pytest.mark.parametrize(
    ("given", "year"),
    [("2020", 2020), (2020, 2020), (20230514, 2023), ("2020-01-31", 2020), ("20200131", 2020), ("²⁰²⁰", 0)]
    + [("٢٠٢٠", 0), (None, 0), (True, 0), ([2020], 0), ("12345", 0), (10**30, 0), ("", 0), ("n.d.", 0), (-5, 0)],
)
def test_years(given, year):
    assert read_year(given) == year


@settings(max_examples=300)
@given(st.text(st.characters(categories=["Nd", "No", "Nl"]) | st.sampled_from("0123456789 +-_"), max_size=12))
def test_what_is_a_number_is_one_for_int(text):
    assert is_number(text, 9) == (text.isascii() and text.isdigit() and len(text) < 10)
    assert not is_number(text, 9) or int(text) < 10**9


@pytest.mark.parametrize(
    "facts",
    [{"version": 2**31}, {"version": -1}, {"date": 2**31}, {"year": 10_000}, {"key": "k" * 20_000}]
    + [{"text": "\ud800"}, {"source": "\udfff"}, {"prompt": "\ud800"}],
)
def test_no_document_holds_what_later_steps_cannot(facts):
    with pytest.raises(ValueError, match=r"range|characters|surrogate"):
        Document(**{"key": "k", **facts})


def test_text_is_bounded_in_every_source(tmp_path, monkeypatch, record, citation_set):
    monkeypatch.setattr(document, "MAX_TEXT", 1000)
    long = "word " * 250
    lines = [json.dumps({"text": text}) for text in ("short", long, "last")]
    found = read(write_lines(tmp_path / "a.jsonl", lines))
    assert [d.kinds for d in found] == [(), ("unreadable",), ()] and "at most 1,000" in found[1].text
    para = f"<AbstractText>{long}</AbstractText>"
    (tmp_path / "p.xml").write_bytes(citation_set(record(1, "a", ""), record(2, "b", para), record(3, "c", "")))
    found = read(tmp_path / "p.xml", source="pubmed")
    assert [d.key for d in found] == ["pmid:1", "unreadable:p.xml:2", "pmid:3"] and "at most 1,000" in found[1].text
    article = f"<article><front><article-meta/></front><body><p>{long}</p></body></article>"
    (tmp_path / "a.nxml").write_text(article)
    (found,) = read(tmp_path / "a.nxml", source="pmc")
    assert found.kinds == ("unreadable",) and "at most 1,000" in found.text


def test_a_line_that_is_too_long_is_never_held(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE", 5000)
    monkeypatch.setattr(streams, "CHUNK", 64)
    lines = [json.dumps({"text": f"{k}"}) for k in range(3)]
    path = write_lines(tmp_path / "a.jsonl", [lines[0], "x" * 50_000, lines[1], "", lines[2], "y" * 5001])
    found = read(path)
    assert [d.source for d in found] == ["1", "2", "3", "5", "6"]
    assert [d.kinds for d in found] == [(), ("unreadable",), (), (), ("unreadable",)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=12), st.integers(1, 9))
def test_lines_are_those_of_split(lines, step):
    data = b"\n".join(lines)
    found = list(jsonl.list_lines(data[i : i + step] for i in range(0, len(data), step)))
    whole = data.split(b"\n")
    assert found == list(enumerate(whole[:-1] if not whole[-1] else whole, 1))


def test_byte_order_marks_and_null_texts(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", ["\ufeff" + json.dumps({"text": "a"}), '{"text": null}'])
    assert [(d.text, d.kinds) for d in read(path)] == [("a", ()), ("", ())]


def test_plain_text_that_is_not_utf8_is_one_unreadable_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"first\n\n\n\xe9\xe8 second\n\n\nthird")
    assert [(d.text, d.key) for d in read(tmp_path / "a.txt") if not d.kinds] == [
        ("first", "a.txt:1"),
        ("third", "a.txt:7"),
    ]
    assert [d.source for d in read(tmp_path / "a.txt") if d.kinds] == ["4"]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.replace(">2</PMID>", ">2x</PMID>"),
        lambda r: r.replace(">2</PMID>", ">" + "2" * 500 + "</PMID>"),
        lambda r: r.replace('Version="1">2<', 'Version="99999999999">2<'),
        lambda r: r.replace('Version="1">2<', 'Version="²">2<'),
        lambda r: r.replace("<ArticleTitle>", "<ArticleTitle><b>"),
        lambda r: r.replace("T2", "<i>" * 300 + "T2" + "</i>" * 300),
        lambda r: r.replace("T2", "&nosuch;<i/>"),
    ],
)
def test_a_bad_citation_is_counted_and_takes_no_other_identity(tmp_path, record, citation_set, change):
    link = (
        '<CommentsCorrectionsList><CommentsCorrections RefType="Cites"><PMID Version="1">3</PMID>'
        "</CommentsCorrections></CommentsCorrectionsList>"
    )
    bad = change(record(2, "T2", "", extra=link))
    (tmp_path / "p.xml").write_bytes(citation_set(record(1, "T1", ""), bad, record(3, "T3", "")))
    found = read(tmp_path / "p.xml", source="pubmed")
    assert [d.key for d in found] == ["pmid:1", "unreadable:p.xml:2", "pmid:3"]
    assert "broken record after pmid:1" in found[1].text
    with pytest.raises(UserError, match=r"p\.xml: broken record after pmid:1"):
        read(tmp_path / "p.xml", source="pubmed", unreadable="refuse")


def test_a_deletion_that_cannot_be_read_is_counted(tmp_path, record, citation_set):
    order = "<DeleteCitation><PMID>1</PMID><PMID>2x</PMID></DeleteCitation>"
    (tmp_path / "p.xml").write_bytes(citation_set(record(1, "T1", ""), order))
    assert [d.kinds for d in read(tmp_path / "p.xml", source="pubmed")] == [(), ("unreadable",)]


def test_one_bad_article_of_a_set_costs_no_other(tmp_path):
    article = "<article><front><article-meta/></front><body><p>{}</p></body></article>"
    deep = "<list><list-item>" * 120 + "<p>x</p>" + "</list-item></list>" * 120
    body = article.format("one") + "<article/>" + article.format(deep) + article.format("two")
    (tmp_path / "s.xml").write_text(f"<set>{body}</set>")
    found = read(tmp_path / "s.xml", source="pmc")
    assert [d.key for d in found][::3] == ["file:s.xml#1", "file:s.xml#4"]
    assert found[1].kinds == ("unreadable",) and "article-meta" in found[1].text


@pytest.mark.parametrize(
    "name", ["zip", "zlib", "hex", "rot13", "idna", "punycode", "unicode_escape", "utf-7", "utf_8_sig"]
)
@pytest.mark.parametrize("source", ["pubmed", "pmc"])
def test_no_codec_but_an_encoding_of_xml_is_taken(tmp_path, name, source):
    path = tmp_path / "x.xml"
    path.write_bytes(f'<?xml version="1.0" encoding="{name}"?><article/>'.encode())
    read_source = {"pubmed": pubmed.documents, "pmc": pmc.documents}[source]
    with pytest.raises(UserError, match=rf"x\.xml: declares the unknown encoding '{name}'"):
        list(read_source(str(path), TextPolicy(), 1 << 30))


@pytest.mark.parametrize("source", [pubmed, pmc])
@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        (f'<?xml version="1.0" encoding="{"x" * 300}"?>', "declares the unknown encoding 'x{40}'"),
        ('<?xml version="1.0" encoding="latin1 "?>', "declares the unknown encoding 'latin1 '"),
        ('<?xml version="1.0" encoding="é"?>', "declares the unknown encoding"),
        ('<?xml version="1.0" encoding=""?>', "declares the unknown encoding ''"),
        ("<?xml version='1.0' encoding=utf-16?>", r"declares the unknown encoding 'utf-16\?'"),
        (f'<?xml version="1.0" {"a" * 1200} encoding="latin1"?>', "declaration does not end within 1,000 bytes"),
        (f'<?xml version="1.0" {"a" * 5000}', "declaration does not end within 1,000 bytes"),
    ],
)
def test_no_declared_encoding_is_passed_over(tmp_path, source, declaration, message):
    path = tmp_path / "x.xml"
    path.write_text(f"{declaration}<PubmedArticleSet/>", encoding="utf-8")
    with pytest.raises(UserError, match=rf"x\.xml: (its XML )?{message}"):
        list(source.documents(str(path), TextPolicy(), 1 << 30))


@pytest.fixture
def odd_files(tmp_path):
    os.mkfifo(tmp_path / "fifo.xml")
    os.symlink(tmp_path / "nowhere", tmp_path / "broken.xml")
    os.symlink("/dev/zero", tmp_path / "zero.xml")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(tmp_path / "socket.xml"))
        yield tmp_path


@pytest.mark.parametrize("name", ["fifo.xml", "zero.xml", "socket.xml", "broken.xml", "missing.xml"])
def test_what_is_no_regular_file_is_refused_at_once(odd_files, name):
    path = str(odd_files / name)
    for use in (
        lambda: listing.find((path,), "pubmed"),
        lambda: next(streams.unpacked(path, 1 << 30)),
        lambda: streams.sha256_file(path),
    ):
        with pytest.raises(UserError, match=rf"{name}: (is not a regular file|cannot be read|no such file)"):
            use()


def test_a_folder_with_a_pipe_in_it_is_refused_by_name(odd_files):
    with pytest.raises(UserError, match=r"\w+\.xml: (is not a regular|cannot be read)"):
        listing.find((str(odd_files),), "pubmed")


def test_names_that_are_no_text_or_hold_odd_digits(tmp_path):
    for name in (b"caf\xe9.xml", "x²3.xml".encode(), "x٣.xml".encode()):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as f:
            f.write(b"<PubmedArticleSet/>")
    found = listing.find((str(tmp_path),), "pubmed")
    assert sorted(f["name"] for f in found) == ["caf\\xe9.xml", "x²3.xml", "x٣.xml"]
    assert json.dumps(found).encode() and all(list(streams.unpacked(f["path"], 99)) for f in found)


def test_a_folder_that_cannot_be_listed_loses_no_input(tmp_path, monkeypatch):
    """`os.walk` alone passes it over."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.xml").touch()
    real = os.scandir

    def scan(path="."):
        if os.fspath(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(UserError, match=r"/b: cannot be read: Permission denied"):
        listing.find((str(tmp_path),), "pubmed")
