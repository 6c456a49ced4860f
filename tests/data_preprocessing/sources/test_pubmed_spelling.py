# ruff: noqa: E501  (lines of XML are kept whole)
"""Citation XML in every legal spelling: what is read is what a parser reads, and what no parser reads is counted."""

import re
import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import TextPolicy
from data_preprocessing.sources import citation_tree, pubmed
from modelzoo.config.errors import UserError

LINKS = '<CommentsCorrectionsList><CommentsCorrections RefType="{}"><PMID Version="1">9</PMID></CommentsCorrections></CommentsCorrectionsList>'
OTHER = '<OtherAbstract Type="Publisher" Language="spa"><AbstractText>Otro.</AbstractText></OtherAbstract>'


def read(path, unreadable="refuse", **policy):
    return list(pubmed.documents(str(path), TextPolicy(**policy), 1 << 40, unreadable, path.name))


def spell_text(text: str, random) -> str:
    """The same characters raw, as references and as CDATA, with comments and instructions between them."""
    out = []
    for k, c in enumerate(text):
        ways = [escape(c)] * 6 + [f"&#{ord(c)};", f"&#x{ord(c):x};", f"<![CDATA[{c}]]>"]
        ways += {">": [">"] * (text[:k][-1:] != "]"), '"': ["&quot;"], "\n": ["\r\n"]}.get(c, [])
        out.append(random.choice(ways))
        if random.random() < 0.03:
            out.append(random.choice(["<!-- </PubmedArticle> <Abstract> -->", "<?p <PubmedArticle> ?>", "<!---->"]))
    return "".join(out)


def spell_value(text: str, random) -> str:
    quote = random.choice("\"'")
    names = {"&": "&amp;", "<": "&lt;", '"': "&quot;", "'": "&apos;"}
    kept = (c if c not in "&<" + quote and random.random() < 0.9 else names.get(c, f"&#{ord(c)};") for c in text)
    return quote + "".join(kept) + quote


def spell(element, random) -> str:
    """An element's XML as somebody else's writer might have it."""

    def blank(least: int = 0) -> str:
        return random.choice([" ", "\n", "\t", " \r\n "]) if least or random.random() < 0.1 else ""

    attributes = list(element.attrib.items())
    random.shuffle(attributes)
    tag = element.tag + "".join(
        f"{blank(1)}{name}{blank()}={blank()}{spell_value(value, random)}" for name, value in attributes
    )
    if not len(element) and not element.text and random.random() < 0.5:
        return f"<{tag}{blank()}/>"
    inner = spell_text(element.text or "", random)
    for child in element:
        inner += spell(child, random) + spell_text(child.tail or "", random)
    return f"<{tag}{blank()}>{inner}</{element.tag}{blank()}>"


letters = st.text(st.sampled_from("abc é–β<>&'\"]. "), max_size=12)
parts = st.lists(st.tuples(letters, letters, st.sampled_from(["i", "sup", "b"]), letters), max_size=3)


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False), letters, parts, st.sampled_from(["", "RetractionIn", "Cites"]), st.booleans())
def test_any_spelling_is_read_as_a_parser_reads_it(
    tmp_path_factory, record, citation_set, by_standard_library, random, title, parts, link, other
):
    abstract = "".join(
        f"<AbstractText Label={quoteattr(label)}>{escape(before)}<{tag}>{escape(inner)}</{tag}></AbstractText>"
        for label, before, tag, inner in parts
    )
    extra = OTHER * other + (LINKS.format(link) if link else "")
    ids = '<ArticleId IdType="pmc">PMC7</ArticleId></ArticleIdList>'
    plain = [
        record(k, escape(title) + f" {k}", abstract, extra=extra, version=k).replace("</ArticleIdList>", ids)
        for k in (1, 2)
    ]
    path = tmp_path_factory.mktemp("s") / "s.xml"
    path.write_bytes(citation_set(*plain))
    expected = read(path, other_abstract="append")
    odd = citation_set(*(spell(ET.fromstring(one), random) + "\n" for one in plain))
    path.write_bytes(odd)
    assert read(path, other_abstract="append") == expected
    by_parser = by_standard_library(odd)
    for document in read(path):
        facts = by_parser[document.pmid]
        assert document.text == facts["text"] and document.version == facts["version"]
        assert document.pmcid == "PMC7" and document.kinds == (("retracted",) if link == "RetractionIn" else ())


@pytest.mark.parametrize(
    ("ids", "pmcid"),
    [
        ('<OtherID Source="NLM">NIHMS1</OtherID> <OtherID Source="a>PMC9">PMC12 [Available 1/1/00]</OtherID>', "PMC12"),
        ('<OtherID Source="NLM"/><OtherID\nSource="NLM"> PMC3</OtherID >', "PMC3"),
        ('<OtherID Source="NLM">aPMC1</OtherID>', ""),
    ],
)
def test_pmc_ids_of_older_files(record, ids, pmcid):
    data = re.sub("<PubmedData>.*</PubmedData>", "", record(7, "T", "", extra=ids).strip()).encode()
    assert pubmed.citation(data, TextPolicy()).pmcid == citation_tree.read_citation(data, TextPolicy()).pmcid == pmcid


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.replace("<AbstractText>", '<AbstractText Label="OR > 1">'),
        lambda r: r.replace("<AbstractText>", "<AbstractText NlmCategory='A' Label = 'R&amp;D'>"),
        lambda r: r.replace("</Abstract>", "</Abstract >").replace("</ArticleTitle>", "</ArticleTitle\n>"),
        lambda r: r.replace("<Abstract>", "<Abstract\n>").replace("</PubmedArticle>", "</PubmedArticle\t>"),
        lambda r: r.replace("<Language>", "<!-- <Language>fre</Language> --><Language>"),
        lambda r: r.replace("<Language>eng</Language>", "<Language>eng</Language><Language>fre</Language>"),
        lambda r: r.replace('IdType="pubmed">', 'IdType="&#112;mc">PMC'),
        lambda r: r.replace("A body", "caf&eacute; &#233; &#xE9; <![CDATA[<b>]]>"),
        lambda r: r.replace("<Year>2001</Year>", "<Year>&#50;001</Year>"),
        lambda r: r.replace("<Year>2001</Year>", "<MedlineDate>Spring 1999-2000</MedlineDate>"),
        lambda r: r.replace(
            "</PublicationTypeList>", "<PublicationType UI='D1'>Comment</PublicationType ></PublicationTypeList>"
        ),
        lambda r: re.sub("(<ArticleTitle>.*?)(<Abstract>.*</Abstract>)", r"\2\1", r),
    ],
)
def test_the_searches_and_the_tree_read_alike(record, change):
    """`citation` may search or parse; what it gives is what parsing gives."""
    data = change(record(7, "A title", "<AbstractText>A body</AbstractText>").strip()).encode()
    assert pubmed.citation(data, TextPolicy()) == citation_tree.read_citation(data, TextPolicy())


@pytest.mark.realdata
def test_searches_and_tree_agree_on_every_real_record_and_searches_do_the_work(shared_data):
    from data_preprocessing.inputs import streams
    from data_preprocessing.sources.citation_set import cut

    searched = count = 0
    for path in sorted((shared_data / "pubmed_real").iterdir()):
        for tag, found in cut(streams.utf8(streams.unpacked(str(path), 1 << 40), ""), ""):
            if tag in (b"PubmedArticle", b"MedlineCitation"):
                count += 1
                expected = citation_tree.read_citation(found, TextPolicy())
                try:
                    assert pubmed._read_usual(found, TextPolicy()) == expected
                    searched += 1
                except pubmed._Unsure:
                    assert pubmed.citation(found, TextPolicy()) == expected
    assert count > 700 and searched > 0.95 * count


@pytest.mark.parametrize(
    "body", ["a ]]> b", "a \x01 b", "a &#1; b", "a &#xD800; b", "a & b", "a &lt b", "&nosuch;", "\ufffe"]
)
def test_what_no_parser_takes_is_counted_and_the_rest_is_kept(tmp_path, record, citation_set, body):
    path = tmp_path / "p.xml"
    path.write_bytes(
        citation_set(record(1, "T1", ""), record(2, "T2", f"<AbstractText>{body}</AbstractText>"), record(3, "T3", ""))
    )
    assert [d.key for d in read(path, "drop")] == ["pmid:1", "unreadable:p.xml:2", "pmid:3"]
    with pytest.raises(UserError, match="broken record after pmid:1"):
        read(path)


def test_a_record_that_is_not_closed_is_counted_and_the_next_is_read(tmp_path, record, citation_set):
    path = tmp_path / "p.xml"
    for cut_off in ("</PubmedArticle>", "</ArticleIdList></PubmedData></PubmedArticle>"):
        path.write_bytes(
            citation_set(record(1, "T1", "").replace(cut_off, ""), record(2, "T2", ""), "<PubmedArticle/>")
        )
        found = read(path, "drop")
        assert [d.key for d in found] == ["unreadable:p.xml:1", "pmid:2", "unreadable:p.xml:3"]
        assert "not closed before the next" in found[0].text and "without a PMID" in found[2].text


DOCTYPE = '<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD > x//EN" "https://dtd.nlm.nih.gov/x[1].dtd">\n'


@pytest.mark.parametrize("between", [b"", b"\n", b"\xef\xbb\xbf", b"<!-- joined -->", DOCTYPE.encode()])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_documents_one_after_another_are_all_read(record, citation_set, between, step):
    from data_preprocessing.sources.citation_set import cut

    data = between.join(
        [
            citation_set(record(1, "T1", "")),
            citation_set(record(2, "T2", ""), root="MedlineCitationSet"),
            b"<PubmedArticleSet/>",
        ]
    )
    found = [
        pubmed.citation(r, TextPolicy()).pmid
        for _, r in cut((data[i : i + step] for i in range(0, len(data), step)), "f")
    ]
    assert found == ["1", "2"]


def test_joined_documents_that_cannot_be_told_apart_are_refused_by_name(tmp_path, record, citation_set):
    path = tmp_path / "joined.xml"
    one = citation_set(record(1, "T1", ""))
    latin = one.replace(b'encoding="utf-8"', b'encoding="ISO-8859-1"')
    for data, message in [
        (one + latin, "holds documents in utf-8 and in iso-8859-1"),
        (latin + one, "holds documents in iso-8859-1 and in utf-8"),
        (one.replace(b"</PubmedArticleSet>", b"") + one, "<PubmedArticleSet> begins before </PubmedArticleSet>"),
        (one + b"</PubmedArticleSet>", "unexpected </PubmedArticleSet>"),
        (one + one[:-25], "truncated"),
    ]:
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"joined.xml: .*{message}"):
            read(path)
    path.write_bytes(latin.replace(b"T1", b"caf\xe9") * 2)
    assert [d.text for d in read(path)] == ["café"] * 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "iso-8859-1"])
def test_encodings(tmp_path, record, citation_set, encoding):
    text = citation_set(record(1, "Café", "")).decode().replace("utf-8", encoding.removesuffix("-sig"))
    bom = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "e.xml").write_bytes((bom + text.replace("?>", "?>" + DOCTYPE, 1)).encode(encoding))
    assert [d.text for d in read(tmp_path / "e.xml")] == ["Café"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [("1990\x962000", "1990–2000"), ("\x93a\x94", "“a”"), ("Crohn\x92s", "Crohn’s"), ("a\x85", "a…"), ("a\x81b", "ab")],
)
def test_c1_controls_are_the_characters_of_cp1252_in_every_source(tmp_path, record, citation_set, given, meant):
    import json

    from data_preprocessing.config import Job
    from data_preprocessing.sources import pmc
    from data_preprocessing.steps import extract

    for title in (given, "".join(f"&#{ord(c)};" for c in given), f"<i>{given}</i>"):
        (tmp_path / "c.xml").write_bytes(citation_set(record(1, title, "")))
        assert [d.text for d in read(tmp_path / "c.xml")] == [meant]
    article = f"<article><front><article-meta/></front><body><p>{given}</p></body></article>"
    assert [d.text for d in pmc.articles(article.encode(), "f", "m", TextPolicy())] == [meant]
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": given}) + "\n")
    (tmp_path / "c.txt").write_text(given, encoding="utf-8")
    for name in ("c.jsonl", "c.txt"):
        job = Job(source="jsonl", input=(str(tmp_path),), output=str(tmp_path / "out"))
        assert [d.text for d in extract.documents(job, str(tmp_path / name), name)] == [meant]


@pytest.mark.parametrize(
    ("given", "readable"),
    [
        ("Effect of &lt;i&gt;Ginkgo&lt;/i&gt; on CO&lt;sub&gt;2&lt;/sub&gt;", "Effect of Ginkgo on CO2"),
        ("10&lt;sup&gt;6&lt;/sup&gt; &lt;B&gt;&lt;i&gt;x&lt;/i&gt;&lt;/B&gt; a&lt;br/&gt;b", "10^6 x a b"),
        ("p &lt; 0.05 &lt;i class=&quot;x&quot;&gt;p &lt; 1&lt;/i&gt;", "p < 0.05 p < 1"),
        ("<b>in</b> &lt;i&gt;vivo&lt;/i&gt; 10<sup>&lt;b&gt;6&lt;/b&gt;</sup>", "in vivo 10^6"),
        ("a &lt;i&gt; b, &lt;c&gt;d&lt;/c&gt;, &lt;/i&gt;", "a b, <c>d</c>,"),
        ("a &lt;i&gt; b &lt;/b&gt; 3 &lt;b", "a <i> b </b> 3 <b"),
    ],
)
def test_escaped_inline_tags_are_inline_markup(tmp_path, record, citation_set, given, readable):
    (tmp_path / "e.xml").write_bytes(citation_set(record(1, given, "")))
    assert [d.text for d in read(tmp_path / "e.xml")] == [readable]


@pytest.mark.parametrize(
    ("title", "strip", "keep"),
    [
        ("[On fever].", "On fever.", "[On fever]."),
        ("[Is it fever?]", "Is it fever?", "[Is it fever?]"),
        ("[On fever]. [Article in Italian]", "On fever.", "[On fever]. [Article in Italian]"),
        ("On fever [Article in Chinese, English].", "On fever", "On fever [Article in Chinese, English]."),
        ("[On] fever and [cold]", "[On] fever and [cold]", "[On] fever and [cold]"),
        ("Role of [Ca2+]i", "Role of [Ca2+]i", "Role of [Ca2+]i"),
        ("[Not Available].", "", ""),
    ],
)
def test_brackets_of_translated_titles(tmp_path, record, citation_set, title, strip, keep):
    (tmp_path / "b.xml").write_bytes(citation_set(record(1, title, "")))
    assert [read(tmp_path / "b.xml", brackets=b)[0].text for b in ("strip", "keep")] == [strip, keep]


def test_policies_of_books(tmp_path):
    (tmp_path / "b.xml").write_text(
        "<PubmedArticleSet><PubmedBookArticle><BookDocument><PMID Version='2'>20301295</PMID><ArticleIdList/>"
        "<Book><BookTitle>Genes &amp; <i>more</i></BookTitle><PubDate><MedlineDate>Fall 1993</MedlineDate></PubDate></Book>"
        "<VernacularTitle>Gene</VernacularTitle><Language>eng</Language><Language>ger</Language><Abstract>"
        "<AbstractText Label='OR > 1'>Long.</AbstractText></Abstract><Sections><Section><SectionTitle>No text</SectionTitle>"
        "</Section></Sections></BookDocument><PubmedBookData><ArticleIdList><ArticleId IdType='pmc'>PMC5</ArticleId>"
        "</ArticleIdList></PubmedBookData></PubmedBookArticle></PubmedArticleSet>"
    )
    (d,) = read(tmp_path / "b.xml")
    assert d.text == "Genes & more\nOR > 1: Long." and read(tmp_path / "b.xml", labels="drop")[0].text.endswith(
        "\nLong."
    )
    assert (d.key, d.version, d.year, d.language, d.pmcid) == ("pmid:20301295", 2, 1993, "eng,ger", "PMC5")
    assert read(tmp_path / "b.xml", vernacular_title="append")[0].text == "Genes & more\nGene\nOR > 1: Long."
