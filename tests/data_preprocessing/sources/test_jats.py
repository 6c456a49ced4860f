# ruff: noqa: E501  (lines of XML are kept whole)
"""Full text: what comes out of JATS, real articles all of them, packages and hostile input."""

import csv
import io
import re
import tarfile

import pytest

from data_preprocessing.config import TextPolicy
from data_preprocessing.sources import pmc
from modelzoo.config.errors import UserError

META = (
    '<journal-meta/><article-meta><article-id pub-id-type="pmid">11</article-id><article-id pub-id-type="pmcid">PMC22.2'
    '</article-id><title-group><article-title>A <italic>title</italic><xref ref-type="fn">*</xref></article-title></title-group>'
    "<pub-date><year>2011</year></pub-date><pub-date><year>2010</year></pub-date><permissions><license><license-p>"
    '<ext-link xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="http://creativecommons.org/licenses/by-nc/3.0/">CC</ext-link>'
    "</license-p></license></permissions><abstract><sec><title>Aim:</title><p>Why.</p></sec><sec><title>Methods</title><p>How.</p>"
    '<p>More.</p></sec></abstract><abstract abstract-type="graphical"><p>Picture.</p></abstract></article-meta>'
)
BACK = "<back><ref-list><ref><mixed-citation>Nobody et al.</mixed-citation></ref></ref-list></back>"


def article(body: str, meta: str = META, kind: str = "research-article", head: str = "") -> bytes:
    return f'{head}<article article-type="{kind}" xml:lang="en"><front>{meta}</front><body>{body}</body>{BACK}</article>'.encode()


def lines(body: str, **policy) -> list[str]:
    (document,) = pmc.articles(article(body), "f", "m", TextPolicy(**policy))
    return document.text.split("\n")[4:]


def test_front_matter():
    (d,) = pmc.articles(article("<p>Body.</p>"), "f", "m", TextPolicy())
    assert d.text == "A title*\nAim: Why.\nMethods: How.\nMore.\nBody."
    assert (d.key, d.pmid, d.pmcid, d.version, d.year, d.language, d.licence) == (
        "PMC22",
        "11",
        "PMC22",
        2,
        2010,
        "eng",
        "CC-BY-NC-3.0",
    )
    (short,) = pmc.articles(article("<p>Body.</p>"), "f", "m", TextPolicy(body=False, labels="drop"))
    assert short.text == "A title*\nWhy.\nHow.\nMore."
    (more,) = pmc.articles(article("<p>Body.</p>"), "f", "m", TextPolicy(body=False, other_abstract="append"))
    assert more.text.endswith("\nPicture.")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "<sec><label>1</label><title>Intro</title><p>One.</p><sec><title>Sub</title><p>Two.</p></sec></sec>",
            ["Intro", "One.", "Sub", "Two."],
        ),
        (
            '<p>Seen [<xref ref-type="bibr" rid="a">1</xref>,<xref ref-type="bibr" rid="b">2</xref>] before.</p>',
            ["Seen before."],
        ),
        (
            '<p>Seen<sup><xref ref-type="bibr" rid="a">1</xref>,<xref ref-type="bibr" rid="b">2</xref></sup>.</p>',
            ["Seen."],
        ),
        (
            '<p>So (<xref ref-type="bibr" rid="a">Smith, 2001</xref>; <xref ref-type="bibr" rid="b">Li, 2002</xref>) it is.</p>',
            ["So it is."],
        ),
        ('<p>As <xref ref-type="bibr" rid="a">Smith (2001)</xref> says.</p>', ["As Smith (2001) says."]),
        ('<p>See <xref ref-type="fig" rid="f">Figure 1</xref> (p = 0.1).</p>', ["See Figure 1 (p = 0.1)."]),
        (
            "<p>List: <list><list-item><p>a</p></list-item><list-item><p>b</p></list-item></list> end.</p>",
            ["List:", "a", "b", "end."],
        ),
        ("<fig><caption><p>Cap.</p></caption><graphic/></fig><p>X</p>", ["X"]),
        ("<table-wrap><table><tr><td>1</td></tr></table></table-wrap><p>X</p>", ["X"]),
        ("<p>x<sup>2</sup> and 10<sup>9</sup>/L</p>", ["x2 and 10^9/L"]),
        (
            "<p>So <inline-formula><alternatives><tex-math>\\frac12</tex-math><math><mfrac><mn>1</mn><mn>2</mn></mfrac></math>"
            "</alternatives></inline-formula> it is</p>",
            ["So 1/2 it is"],
        ),
        ("<p>T <tex-math>\\documentclass{x}\\begin{document}$$a_1$$\\end{document}</tex-math></p>", ["T a_1"]),
        ("<p>F <inline-formula><inline-graphic/></inline-formula>.</p>", ["F [formula]."]),
        (
            "<boxed-text><title>Box</title><p>In.</p></boxed-text><disp-quote><p>Said.</p></disp-quote>",
            ["Box", "In.", "Said."],
        ),
        ("<p>a&#160;b&#x2009;c\n   d</p>", ["a b c d"]),
    ],
)
def test_body(body, expected):
    assert lines(body) == expected


BOX = (
    "<boxed-text><label>Box 1</label><caption><title>Key points</title><p>One.</p></caption><p>Two.</p><fig><caption><p>Fig.</p>"
    "</caption></fig><list><list-item><p>Three.</p></list-item></list></boxed-text>"
)


def test_boxes_keep_their_text_and_captions_obey():
    group = "<fig-group><caption><p>Both.</p></caption><fig><caption><p>Fig.</p></caption></fig></fig-group>"
    kept = ["Key points", "One.", "Two.", "Three."]
    for body in (BOX, f"<sec>{BOX}</sec>", f"<p>{BOX}</p>"):
        assert lines(body) == kept
        assert lines(body, captions="keep") == [*kept[:3], "Fig.", kept[3]]
    assert lines(group + "<p>x</p>") == ["x"] and lines(group, captions="keep") == ["Both.", "Fig."]


def test_what_floats_at_the_end_of_an_article_is_read_by_the_same_policy():
    floats = f"<floats-group>{BOX}<table-wrap><caption><p>Tab.</p></caption><table><tr><td>1</td></tr></table></table-wrap></floats-group>"
    data = article("<p>x</p>").replace(b"</article>", floats.encode() + b"</article>")
    (d,) = pmc.articles(data, "f", "m", TextPolicy())
    assert d.text.split("\n")[4:] == ["x", "Key points", "One.", "Two.", "Three."]
    (d,) = pmc.articles(data, "f", "m", TextPolicy(captions="keep", tables="text"))
    assert d.text.split("\n")[5:] == ["Key points", "One.", "Two.", "Fig.", "Three.", "Tab.", "1"]
    (d,) = pmc.articles(data, "f", "m", TextPolicy(body=False))
    assert d.text.split("\n")[4:] == []


def test_tables_captions_and_citations_are_policy():
    table = "<table-wrap><caption><p>Cap.</p></caption><table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td/></tr></table></table-wrap>"
    assert lines(table, tables="text") == ["a | b", "1 | "] or lines(table, tables="text") == ["a | b", "1 |"]
    assert lines(table, captions="keep") == ["Cap."]
    assert lines('<p>Seen [<xref ref-type="bibr">1</xref>].</p>', citations="keep") == ["Seen [1]."]


@pytest.mark.parametrize(
    ("kind", "meta", "kinds"),
    [
        ("retraction", META, ("retraction_notice",)),
        ("correction", META, ("erratum",)),
        ("research-article", META, ()),
        (
            "research-article",
            META.replace(
                "</article-meta>", '<related-article related-article-type="retraction-forward"/></article-meta>'
            ),
            ("retracted",),
        ),
    ],
)
def test_kinds(kind, meta, kinds):
    (d,) = pmc.articles(article("<p>x</p>", meta, kind), "f", "m", TextPolicy())
    assert d.kinds == kinds


def test_article_sets_and_named_entities():
    data = (
        b"<!DOCTYPE pmc-articleset PUBLIC 'x' 'y.dtd'><pmc-articleset>"
        + article("<p>caf&eacute;</p>") * 2
        + b"</pmc-articleset>"
    )
    found = list(pmc.articles(data, "f", "m", TextPolicy()))
    assert len(found) == 2 and found[0].text.endswith("café") and found[1].source == "m#2"


# What taking citations out may leave behind. A few of each are the authors' own.
DEBRIS = re.compile(
    r"[\[(]\s*[,;)\]]|[\[(](?:see|e\.g\.|cf\.?|refs?\.?)[,\s]*[)\]]|[^\W\d]\s*[,;]\s*[)\];.]|\bet al\.\."
    r"|\bet al\.?,\s*[);]|\[formula\] [,.;)]"
)


@pytest.mark.realdata
def test_every_real_article_is_read(shared_data):
    folder = shared_data / "pmc_nxml"
    with open(folder / "manifest.csv", newline="") as f:
        manifest = {row["pmcid"]: row for row in csv.DictReader(f)}
    documents = [
        d
        for path in sorted([*folder.rglob("*.nxml"), *folder.glob("*.tar.gz")])
        for d in pmc.documents(str(path), TextPolicy(), 1 << 40)
    ]
    by_id = {d.pmcid: d for d in documents}
    assert len(documents) == len(by_id) == 1849 and set(manifest) < set(by_id)
    # Of several dates the earliest counts here; the manifest's maker took another now and then.
    assert sum(by_id[k].year != int(row["year"]) for k, row in manifest.items()) < 40
    for pmcid, row in manifest.items():
        d = by_id[pmcid]
        assert d.pmid == row["pmid"] and d.licence == row["license"], pmcid
        assert len(d.text) > 0.6 * int(row["body_chars"]), pmcid
        assert not re.search("[\x00-\x08\x0b-\x1f]|  |\\[ *[,;–-]* *\\]", d.text), pmcid
    debris = [found[0] for d in documents for found in DEBRIS.finditer(d.text)]
    assert len(debris) < 60, sorted(debris)


def pack(path, members) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), "/etc/passwd" if kind != tarfile.REGTYPE else ""
            archive.addfile(info, io.BytesIO(data))


def read(path, **more):
    return list(pmc.documents(str(path), TextPolicy(), 1 << 40, **more))


def test_packages_are_streamed(tmp_path):
    pack(
        tmp_path / "p.tar.gz",
        [
            ("PMC1/a.nxml", article("<p>1</p>"), tarfile.REGTYPE),
            ("PMC1/a.jpg", b"\xff", tarfile.REGTYPE),
            ("PMC1", b"", tarfile.DIRTYPE),
            ("b.xml", article("<p>2</p>"), tarfile.REGTYPE),
        ],
    )
    before = set(tmp_path.iterdir())
    assert [(d.source, d.text[-1]) for d in read(tmp_path / "p.tar.gz")] == [("PMC1/a.nxml", "1"), ("b.xml", "2")]
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../evil.nxml", tarfile.REGTYPE, "points out"),
        ("/abs.nxml", tarfile.REGTYPE, "points out"),
        ("a/../../b.nxml", tarfile.REGTYPE, "points out"),
        ("link.nxml", tarfile.SYMTYPE, "link or device"),
        ("hard.nxml", tarfile.LNKTYPE, "link or device"),
        ("dev.nxml", tarfile.CHRTYPE, "link or device"),
        ("fifo.nxml", tarfile.FIFOTYPE, "link or device"),
    ],
)
def test_hostile_members(tmp_path, name, kind, message):
    pack(tmp_path / "evil.tar.gz", [(name, b"" if kind != tarfile.REGTYPE else article("<p>x</p>"), kind)])
    with pytest.raises(UserError, match=f"evil.tar.gz.*{message}"):
        read(tmp_path / "evil.tar.gz")


def test_truncated_package(tmp_path):
    pack(tmp_path / "p.tar.gz", [("a.nxml", article("<p>1</p>" * 3000), tarfile.REGTYPE)])
    data = (tmp_path / "p.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut.tar.gz.*truncated"):
        read(tmp_path / "cut.tar.gz")
    (tmp_path / "no.tar").write_bytes(b"not a tar at all" * 100)
    with pytest.raises(UserError, match=r"no.tar.*not a readable tar"):
        read(tmp_path / "no.tar")


LAUGHS = (
    "<!DOCTYPE article [<!ENTITY a 'aaaaaaaaaa'>"
    + "".join(f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>"
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (article("<p>&x;</p>", head='<!DOCTYPE article [<!ENTITY x SYSTEM "file:///etc/passwd">]>'), "entities"),
        (article("<p>&i;</p>", head=LAUGHS), "entities"),
        (article("<p>&nosuch;</p>", head='<!DOCTYPE article SYSTEM "http://127.0.0.1:9/x.dtd">'), "nosuch"),
        (article("<p>open"), "broken XML"),
        (b"<html/>", "no JATS article"),
        (b"", "broken XML"),
        (b"<article><front/></article>", "article-meta"),
    ],
)
def test_hostile_xml(tmp_path, data, message):
    (tmp_path / "h.nxml").write_bytes(data)
    with pytest.raises(UserError, match=f"h.nxml.*{message}"):
        read(tmp_path / "h.nxml")
    (dropped,) = read(tmp_path / "h.nxml", unreadable="drop")
    assert dropped.kinds == ("unreadable",)


def test_an_article_without_metadata_is_named_as_that():
    (found,) = pmc.articles(b"<article><front><journal-meta/></front><body/></article>", "f", "m", TextPolicy(), "drop")
    assert found.text == "an article without article-meta, so without title, abstract and identifiers"
