"""Articles and files made to take for ever: each is small, and a test that does not end is one that fails."""

import gzip
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import TextPolicy
from data_preprocessing.inputs import streams
from data_preprocessing.sources import citation_set, pmc
from data_preprocessing.text import citations
from modelzoo.config.errors import UserError

NUMERIC = re.compile(r"[\s\[\](){}.,;*†‡§–—−-]*(?:\d+[a-z]?|[SR]\d+)?(?:[\s\[\](){}.,;*–—−-]|\d+[a-z]?)*$")


@settings(max_examples=500, deadline=None)
@given(st.text("0123456789aSR[](){}.,;*†– -x", max_size=12))
def test_numeric_marks_are_those_of_the_pattern_that_backtracks(text):
    assert bool(citations.NUMERIC.match(text)) == bool(NUMERIC.match(text))


def article(body: str, meta: str = "") -> bytes:
    return f"<article><front><article-meta>{meta}</article-meta></front><body>{body}</body></article>".encode()


REF = '<xref ref-type="bibr" rid="a">{}</xref>'


@pytest.mark.parametrize(
    "body",
    [
        "<p>" + REF.format("1" * 200 + "!") + "</p>",
        "<p>" + REF.format("." * 60_000 + "!") + "</p>",
        "<p>(" + REF.format("and ") * 3000 + "!</p>",
        "<p>" + "(" * 30_000 + REF.format(1) + "</p>",
        "<p>" + "[[" * 30_000 + REF.format(1) + "</p>",
        "<p>" + REF.format("A (") * 5000 + "!</p>",
        "<p>" + ("see [" + REF.format(1) + "] ") * 3000 + "</p>",
        "<p>" + ("and, " * 60 + REF.format(1)) * 300 + "</p>",
        "<p>" + "1, " * 20_000 + REF.format(1) + "</p>",
        "<p>(" + "1, " * 20_000 + REF.format(1) + "!</p>",
        "<p>" + "(p. 1 " * 10_000 + REF.format(1) + "</p>",
        "<p>" + "<inline-formula><tex-math>x</tex-math></inline-formula>" * 5000 + "</p>",
        "<p>" + REF.format(1) + "-, " * 20_000 + "</p>",
        "<p>" + "&#160;" * 60_000 + "x" + REF.format(1) + "</p>",
        "<p><tex-math>" + "\\begin{document}" * 20_000 + "</tex-math></p>",
        "<sec>" * 200 + "<p>x</p>" + "</sec>" * 200,
    ],
)
def test_bodies_that_backtracking_would_never_end_on(body):
    assert len(list(pmc.articles(article(body), "f", "m", TextPolicy(), "drop"))) == 1


@pytest.mark.parametrize(
    "meta",
    [
        "<permissions><license><license-p>"
        + "creative commons attribution " * 3000
        + "!</license-p></license></permissions>",
        "<permissions><license><license-p>creativecommons.org/licenses/"
        + "a" * 60_000
        + "</license-p></license></permissions>",
        "<abstract/>" * 20_000 + "<trans-abstract/>" * 20_000,
        "<pub-date><year>" + "9" * 5000 + "</year></pub-date><pub-date><year>²</year></pub-date>",
        '<article-id pub-id-type="pmcid">PMC1.²</article-id><article-id pub-id-type="pmid">²</article-id>',
    ],
)
def test_front_matter_that_takes_long_or_is_no_number(meta):
    (found,) = pmc.articles(article("<p>x</p>", meta), "f", "m", TextPolicy(), "drop")
    assert (found.year, found.pmid, found.version) == (0, "", 1) and found.text == "x"


@pytest.mark.parametrize(
    "head",
    [
        "<!DOCTYPE article SYSTEM 'a>b' [<!ENTITY x 'y'>]>",
        '<?xml version="1.0"?><!-- <!DOCTYPE x> --> <!DOCTYPE article [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        "<!--" + "x" * 100_000 + "--><!DOCTYPE article [<!ENTITY x 'y'>]>",
    ],
)
def test_entities_are_refused_wherever_they_are_declared(head):
    with pytest.raises(UserError, match="f: its DOCTYPE declares entities"):
        list(pmc.articles(head.encode() + article("<p>&x;</p>"), "f", "m", TextPolicy()))


def test_a_doctype_without_entities_is_none():
    head = b'<?xml version="1.0"?><?p q?><!DOCTYPE article PUBLIC "-//NLM//DTD JATS//EN" "http://127.0.0.1:9/j[x].dtd">'
    (found,) = pmc.articles(head + article("<p>[x]</p>"), "f", "m", TextPolicy())
    assert found.text == "[x]"


@pytest.mark.parametrize("pump", [b"<!DOCTYPE", b"<!--", b"<?x", b"<!DOCTYPE '", b"\n "])
def test_a_head_that_never_ends_is_refused(pump):
    with pytest.raises(UserError, match="broken XML"):
        list(pmc.articles(pump * 20_000, "f", "m", TextPolicy()))


def test_a_million_bytes_of_gzip_members(tmp_path):
    members = [gzip.compress(bytes([65 + k % 26]) * (k % 3), mtime=0) for k in range(50_000)]
    (tmp_path / "a.gz").write_bytes(b"".join(members))
    found = list(streams.unpacked(str(tmp_path / "a.gz"), 1 << 30))
    assert b"".join(found) == b"".join(bytes([65 + k % 26]) * (k % 3) for k in range(50_000)) and len(found) == 1


@pytest.mark.parametrize(
    "pump",
    [b"<PMID ", b"<OtherID ", b"<Year> ", b'<ArticleId IdType="pmc', b"<Abstract><AbstractText"]
    + [b"<![CDATA[]]>", b"<!---->", b"<Date", b'<OtherID a="b">', b"&lt;i&gt;", b"&amp", b'x="y" '],
)
def test_a_citation_that_repeats_an_open_tag(record, citation_set, pump):
    data = citation_set(record(1, "T", "")).replace(b"<Article ", pump * 20_000 + b"<Article ", 1)
    records = list(citation_set_records(data))
    assert len(records) == 1


def citation_set_records(data: bytes):
    from data_preprocessing.sources import pubmed

    for _, found in citation_set.cut(iter([data]), "f"):
        try:
            yield pubmed.citation(found, TextPolicy(other_abstract="append"))
        except ValueError as e:
            yield e
