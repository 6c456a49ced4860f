# ruff: noqa: E501  (lines of XML are kept whole)
"""Citation XML: meaning, agreement with an independent reader, and input that must be refused."""

import gzip
import html

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import TextPolicy
from data_preprocessing.sources import pubmed
from data_preprocessing.sources.citation_set import cut
from modelzoo.config.errors import UserError


def read(path, **policy):
    return list(pubmed.documents(str(path), TextPolicy(**policy), 1 << 40))


def one(tmp_path, data: bytes, **policy):
    (tmp_path / "one.xml").write_bytes(data)
    documents = read(tmp_path / "one.xml", **policy)
    assert len(documents) == 1
    return documents[0]


@pytest.mark.realdata
def test_agrees_with_the_standard_library_on_every_real_record(shared_data, by_standard_library):
    count = 0
    for path in sorted([*(shared_data / "pubmed_real").iterdir(), *(shared_data / "pubmed_wrapped").iterdir()]):
        data = path.read_bytes()
        expected = by_standard_library(gzip.decompress(data) if path.suffix == ".gz" else data)
        documents = [d for d in read(path) if not d.deleted]
        assert {d.pmid for d in documents} == set(expected)
        for d in documents:
            e = expected[d.pmid]
            assert d.text == e["text"], (path.name, d.pmid)
            assert (d.year, d.language, d.version) == (e["year"], e["language"], e["version"]), (path.name, d.pmid)
            assert ("erratum" in d.kinds) >= ("Published Erratum" in e["types"])
            assert ("comment" in d.kinds) >= ("Comment" in e["types"])
            count += 1
    assert count == 15_680


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Cn", "Co"]), min_size=1, max_size=12)
inline = st.recursive(
    words.map(html.escape),
    lambda inner: st.tuples(st.sampled_from(["i", "b", "sup", "sub", "u"]), inner).map(
        lambda pair: f"<{pair[0]}>{pair[1]}</{pair[0]}>"
    ),
    max_leaves=4,
)
passages = st.lists(inline, min_size=1, max_size=6).map(" ".join)


@settings(max_examples=300)
@given(passages, st.lists(st.tuples(st.sampled_from(["", "METHODS", "R&amp;D", "UNLABELLED"]), passages), max_size=3))
def test_agrees_with_the_standard_library_on_made_up_records(
    tmp_path_factory, record, citation_set, by_standard_library, title, parts
):
    abstract = "".join(
        (f'<AbstractText Label="{a}">' if a else "<AbstractText>") + t + "</AbstractText>" for a, t in parts
    )
    data = citation_set(record(77, title, abstract))
    assert one(tmp_path_factory.mktemp("p"), data).text == by_standard_library(data)["77"]["text"]


@settings(max_examples=100)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.integers(1, 97))
def test_records_are_found_however_the_bytes_arrive(record, citation_set, lengths, step):
    data = citation_set(*(record(k, "t" * n, "") for k, n in enumerate(lengths, 1)))
    chunks = [data[i : i + step] for i in range(0, len(data), step)]
    whole = list(cut(iter([data]), "f"))
    assert list(cut(iter(chunks), "f")) == whole and len(whole) == len(lengths)


def test_structured_abstract_keeps_its_labels(tmp_path, record, citation_set):
    parts = (
        '<AbstractText Label="AIM">A.</AbstractText><AbstractText/><AbstractText Label="UNLABELLED">B.</AbstractText>'
    )
    data = citation_set(record(1, "T.", parts))
    assert one(tmp_path, data).text == "T.\nAIM: A.\nB."
    assert one(tmp_path, data, labels="drop").text == "T.\nA.\nB."


@pytest.mark.parametrize(
    ("markup", "readable", "uni", "plain"),
    [
        ("10<sup>6</sup> cells", "10^6 cells", "10⁶ cells", "106 cells"),
        ("10<sup>-3</sup> M", "10^-3 M", "10⁻³ M", "10-3 M"),
        ("Ca<sup>2+</sup>", "Ca2+", "Ca²⁺", "Ca2+"),
        ("CO<sub>2</sub>", "CO2", "CO₂", "CO2"),
        ("<sup>18</sup>F", "18F", "¹⁸F", "18F"),
        ("kg/m<sup>2</sup>", "kg/m2", "kg/m²", "kg/m2"),
        ("<i>E. coli</i> &amp; &lt;5&#37;", "E. coli & <5%", "E. coli & <5%", "E. coli & <5%"),
        ("a\u00a0b\u2009c\n\t d\u00ad\u200be", "a b c de", "a b c de", "a b c de"),
    ],
)
def test_inline_markup(tmp_path, record, citation_set, markup, readable, uni, plain):
    data = citation_set(record(1, markup, ""))
    for style, expected in (("readable", readable), ("unicode", uni), ("plain", plain)):
        assert one(tmp_path, data, scripts=style).text == expected


def test_mathml(tmp_path, record, citation_set):
    m = (
        "<mml:math><mml:mfrac><mml:mrow><mml:mi>a</mml:mi><mml:mo>+</mml:mo><mml:mn>1</mml:mn></mml:mrow><mml:mi>b</mml:mi>"
        "</mml:mfrac><mml:mo>=</mml:mo><mml:msup><mml:mi>x</mml:mi><mml:mn>2</mml:mn></mml:msup></mml:math>"
    )
    data = citation_set(record(1, f"Ratio {m} holds", "")).replace(
        b"<PubmedArticleSet>", b'<PubmedArticleSet xmlns:mml="http://www.w3.org/1998/Math/MathML">'
    )
    (tmp_path / "m.xml").write_bytes(data.replace(b' xmlns:mml="http://www.w3.org/1998/Math/MathML"', b""))
    assert read(tmp_path / "m.xml")[0].text == "Ratio (a+1)/b = x^2 holds"


def test_titles_of_translated_articles(tmp_path, record, citation_set):
    data = citation_set(
        record(1, "[On fever].", "<AbstractText>X</AbstractText>", language="ita").replace(
            "</PublicationTypeList>", "</PublicationTypeList><VernacularTitle>Sulla febbre.</VernacularTitle>"
        )
    )
    assert one(tmp_path, data).text == "On fever.\nX" and one(tmp_path, data).language == "ita"
    assert one(tmp_path, data, brackets="keep", vernacular_title="append").text == "[On fever].\nSulla febbre.\nX"
    assert one(tmp_path, citation_set(record(1, "[Not Available].", "<AbstractText>X</AbstractText>"))).text == "X"
    assert one(tmp_path, citation_set(record(1, "[A] and [B]", ""))).text == "[A] and [B]"


def test_other_abstracts_are_policy(tmp_path, record, citation_set):
    other = '<OtherAbstract Type="Publisher" Language="spa"><AbstractText>Otro.</AbstractText></OtherAbstract>'
    data = citation_set(record(1, "T", "<AbstractText>Main.</AbstractText>", extra=other))
    assert one(tmp_path, data).text == "T\nMain."
    assert one(tmp_path, data, other_abstract="append").text == "T\nMain.\nOtro."
    assert one(tmp_path, data, other_abstract="if_missing").text == "T\nMain."
    only = one(tmp_path, citation_set(record(1, "T", "", extra=other)), other_abstract="if_missing")
    assert only.text == "T\nOtro." and only.has_abstract


@pytest.mark.parametrize(
    ("types", "extra", "kinds"),
    [
        ("<PublicationType>Retracted Publication</PublicationType>", "", ("retracted",)),
        ("<PublicationType>Published Erratum</PublicationType>", "", ("erratum",)),
        (
            "",
            '<CommentsCorrectionsList><CommentsCorrections RefType="RetractionIn"><PMID Version="1">9</PMID>'
            "</CommentsCorrections></CommentsCorrectionsList>",
            ("retracted",),
        ),
        ("<PublicationType>Comment</PublicationType><PublicationType>Letter</PublicationType>", "", ("comment",)),
        (
            "",
            '<CommentsCorrectionsList><CommentsCorrections RefType="ErratumIn"/></CommentsCorrectionsList>',
            ("corrected",),
        ),
        ("", '<CommentsCorrectionsList><CommentsCorrections RefType="Cites"/></CommentsCorrectionsList>', ()),
    ],
)
def test_kinds(tmp_path, record, citation_set, types, extra, kinds):
    assert one(tmp_path, citation_set(record(1, "T", "", types=types, extra=extra))).kinds == kinds


def test_old_root_deletions_and_pmc_ids(tmp_path):
    (tmp_path / "m.xml").write_bytes(
        b'<!DOCTYPE MedlineCitationSet PUBLIC "-//NLM//DTD" "x.dtd"><MedlineCitationSet><MedlineCitation Owner="NLM" Status="A">'
        b'<PMID Version="1">0017</PMID><Article PubModel="Print"><Journal><JournalIssue><PubDate><MedlineDate>1998 Dec-1999 Jan'
        b"</MedlineDate></PubDate></JournalIssue></Journal><ArticleTitle>Old</ArticleTitle></Article>"
        b'<OtherID Source="NLM">PMC123 [Available on 1/1/00]</OtherID></MedlineCitation>'
        b'<DeleteCitation><PMID Version="1">3</PMID>\n<PMID Version="1">4</PMID></DeleteCitation></MedlineCitationSet>'
    )
    first, *deleted = read(tmp_path / "m.xml")
    assert (first.key, first.year, first.pmcid, first.text) == ("pmid:17", 1998, "PMC123", "Old")
    assert [(d.key, d.deleted) for d in deleted] == [("pmid:3", True), ("pmid:4", True)]


def test_references_do_not_lend_their_ids(tmp_path, record, citation_set):
    data = citation_set(record(1, "T", "")).replace(
        b"</ArticleIdList></PubmedData>",
        b"</ArticleIdList><ReferenceList><Reference>"
        b'<ArticleIdList><ArticleId IdType="pmc">PMC999</ArticleId></ArticleIdList></Reference></ReferenceList>'
        b"</PubmedData>",
    )
    assert one(tmp_path, data).pmcid == ""


def test_book_articles(tmp_path):
    (tmp_path / "b.xml").write_bytes(
        b'<PubmedArticleSet><PubmedBookArticle><BookDocument><PMID Version="1">20301295</PMID><Book><BookTitle>Genes</BookTitle>'
        b"<PubDate><Year>1993</Year></PubDate></Book><ArticleTitle>A <i>gene</i></ArticleTitle><Language>eng</Language><Abstract>"
        b'<AbstractText Label="CLINICAL">Long.</AbstractText></Abstract></BookDocument><PubmedBookData/></PubmedBookArticle>'
        b"</PubmedArticleSet>"
    )
    (d,) = read(tmp_path / "b.xml")
    assert (d.key, d.text, d.year, d.language, d.has_abstract) == (
        "pmid:20301295",
        "A gene\nCLINICAL: Long.",
        1993,
        "eng",
        True,
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.replace("T1", "<![CDATA[T1]]>"),
        lambda r: r.replace("T1", "<!-- x -->T1"),
        lambda r: r.replace("T1", "T<?p q?>1"),
        lambda r: r.replace('Version="1"', "Version='1'"),
        lambda r: r.replace("<ArticleTitle>", "<ArticleTitle >"),
        lambda r: r.replace('Version="1"', 'Version = "1"'),
    ],
)
def test_unusual_writing_means_the_same(tmp_path, record, citation_set, change):
    plain = record(1, "T1", '<AbstractText Label="AIM">A</AbstractText>')
    assert change(plain) != plain
    assert one(tmp_path, citation_set(change(plain))) == one(tmp_path, citation_set(plain))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no PubMed citation XML"),
        (b"hello", "text outside"),
        (b"<html><body/></html>", "unexpected <html>"),
        (b"<PubmedArticleSet>", "truncated"),
        (b"<PubmedArticleSet><PubmedArticle><Medl", "cut off"),
        (b"<eFetchResult><ERROR>x</ERROR></eFetchResult>", "efetch error"),
        (b'<!DOCTYPE x [<!ENTITY a "b">]><PubmedArticleSet/>', "entities"),
        (b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><PubmedArticleSet/>', "entities"),
        (
            b"<PubmedArticleSet><PubmedArticle><MedlineCitation></MedlineCitation></PubmedArticle></PubmedArticleSet>",
            "without a PMID",
        ),
        (b"<PubmedArticleSet><PubmedArticle></PubmedArticle>junk</PubmedArticleSet>", "text outside|without a PMID"),
        (b"<PubmedArticleSet><PubmedArticle><a/><PubmedArticle></PubmedArticle></PubmedArticleSet>", "not closed"),
        (b"<PubmedArticleSet><Unknown/></PubmedArticleSet>", "unexpected <Unknown>"),
        (b"<PubmedArticle><MedlineCitation/></PubmedArticle>", "outside the root"),
    ],
)
def test_refused_with_the_file_name(tmp_path, data, message):
    (tmp_path / "bad_input.xml").write_bytes(data)
    with pytest.raises(UserError, match=f"(?s)bad_input.xml.*({message})"):
        read(tmp_path / "bad_input.xml")


@pytest.mark.parametrize(
    "body", ["&undefined;", "<i>open", "a</i>", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")]
)
def test_broken_record_names_the_one_before(tmp_path, record, citation_set, body):
    data = citation_set(record(41, "Fine", ""), record(42, f"<b>x</b>{body}", ""))
    if not body.isascii():
        data = data.replace(body.encode(), b"\xed\xa0\x80")
    (tmp_path / "b.xml").write_bytes(data)
    with pytest.raises(UserError, match=r"b.xml: broken record after pmid:41"):
        read(tmp_path / "b.xml")


def test_empty_set_is_no_error(tmp_path):
    (tmp_path / "e.xml").write_bytes(b"<?xml version='1.0'?><PubmedArticleSet/>")
    assert read(tmp_path / "e.xml") == []
