"""Files with many articles: what is cut out is what an XML parser finds, in the memory of one article."""

import gzip
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from data_preprocessing.config import TextPolicy
from data_preprocessing.sources import article_set, pmc
from modelzoo.config.errors import UserError

FRAMES = {
    "Europe PMC": ("<articles>\n", "</articles>\n"),
    "efetch": ("<!DOCTYPE pmc-articleset PUBLIC '-//NLM' 'x.dtd'><pmc-articleset>", "</pmc-articleset>"),
    "namespaces": ('<j:set xmlns:j="urn:j" xmlns:xlink="http://www.w3.org/1999/xlink" a="/>">', "</j:set >"),
    "OAI-PMH": (
        '<OAI-PMH xmlns="http://www.openarchives.org/OAI/2.0/"><date>2026</date><record><header/><metadata>',
        "</metadata></record><!-- </OAI-PMH> --></OAI-PMH>",
    ),
}
pieces = st.sampled_from(
    ["words ", "<!-- </article> -->", "<![CDATA[</article><article>]]>", "<?p </article>?>", "<xref a='/article>'/>",
     "<x a=\"1>2\" b='\"'/>", "<article-x></article-x>", "<sub-article></sub-article>", "&amp;", "é", "<article/>"]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FRAMES)),
    st.lists(st.lists(pieces, max_size=5).map("".join), max_size=4),
    st.sampled_from(["", " ", "\n"]),
    st.integers(1, 60),
)
def test_articles_are_those_that_a_parser_finds(frame, bodies, blank, size):
    before, after = FRAMES[frame]
    name = "j:article" if frame == "namespaces" else "article"
    text = "".join(f"<{name} id='{k}>'><body>{body}</body></{name}{blank}> " for k, body in enumerate(bodies))
    data = f"<?xml version='1.0'?>{before}<!-- <article> -->{text}{after}".encode()
    outer = [e for e in etree.fromstring(data).iter("{*}article") if next(e.iterancestors("{*}article"), None) is None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(article_set, "WHOLE", 0)
        found = list(article_set.cut((data[at : at + size] for at in range(0, len(data), size)), "f"))
    cut = [next(etree.fromstring(piece).iter("{*}article")) for piece in found]
    shown = [[etree.tostring(e, method="c14n", with_tail=False) for e in side] for side in (cut, outer)]
    assert shown[0] == shown[1]


def article(number: int, text: str = "Words. ", ids: str = "") -> str:
    ids = ids or f"<article-id pub-id-type='pmcid'>PMC{number}</article-id>"
    return f"<article><front><article-meta>{ids}</article-meta></front><body><p>{text}{number}</p></body></article>\n"


def read(path, unreadable="refuse"):
    return list(pmc.documents(str(path), TextPolicy(), 1 << 40, unreadable, path.name))


@pytest.mark.parametrize("whole", [0, 1 << 20])
def test_one_bad_article_of_many_is_counted_or_refused_by_its_number(tmp_path, monkeypatch, whole):
    for module in (article_set, pmc):
        monkeypatch.setattr(module, "WHOLE", whole)
    monkeypatch.setattr(article_set, "MAX_ARTICLE", 5000)
    path = tmp_path / "PMC1_PMC5.xml.gz"
    texts = [article(1), article(2, "<b>"), article(3, "x" * 9000), article(4, "&nbsp;"), article(5)]
    texts.append(article(6).replace("</article>", "") + article(7))  # one that has no end
    texts += [article(8).replace("<article>", "<Article>"), article(9)]
    path.write_bytes(gzip.compress(f"<articles>{''.join(texts)}</articles>".encode()))
    found = read(path, "drop")
    assert [d.key for d in found if not d.kinds] == ["PMC1", "PMC5", "PMC7", "PMC9"]
    why = [d.text for d in found if d.kinds]
    assert "broken XML" in why[0] and "larger than" in why[1] and "nbsp" in why[2] and "broken XML" in why[3]
    assert why[4] == "broken XML around articles: </article> closes what is not open"
    with pytest.raises(UserError, match=r"PMC1_PMC5\.xml\.gz#2: broken XML"):
        read(path)


@pytest.mark.parametrize("damage,message", [
    (lambda d: d[: len(d) // 2], "truncated"), (lambda d: d[:-11], "</articles> is missing"),
    (lambda d: d.replace(b"</articles>", b"</article>"), "</articles> is missing"),
    (lambda d: d + b"words", "text outside of any tag"),
    (lambda d: b"<!DOCTYPE articles [<!ENTITY a 'b'>]>" + d, "declares entities"),
])  # fmt: skip
def test_damage_around_articles_ends_the_job(tmp_path, monkeypatch, damage, message):
    for module in (article_set, pmc):
        monkeypatch.setattr(module, "WHOLE", 100)
    path = tmp_path / "a.xml"
    path.write_bytes(damage(f"<articles>{article(1) * 9}</articles>".encode()))
    with pytest.raises(UserError, match=f"a.xml.*{message}"):
        read(path, "drop")


def test_a_large_file_is_read_in_the_memory_of_one_article(tmp_path):
    path = tmp_path / "PMC1_PMC400.xml.gz"
    with gzip.open(path, "wb", 1) as f:
        f.write(b"<?xml version='1.0'?><articles>")
        for k in range(1, 401):
            f.write(article(k, "words and words " * 12_000).encode())  # 0.2 MB
        f.write(b"</articles>")
    tracemalloc.start()
    numbers = [int(d.pmcid[3:]) for d in pmc.documents(str(path), TextPolicy(), 1 << 40)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert numbers == list(range(1, 401)) and peak < 40 << 20  # of 77 MB


def test_articles_are_one_by_id_alone(tmp_path):
    """PMCID, PMID, DOI, then the place in the input; what is no id is none."""
    ids = "<article-id pub-id-type='{}'>{}</article-id>"
    given = [
        ids.format("pmcid", "PMC7.2"), ids.format("pmc", "7"), ids.format("pmcid-ver", "PMC7.3"),
        ids.format("pmid", "0012") + ids.format("doi", "10.1000/X"), ids.format("pmid", "0") + ids.format("doi", "n/a"),
        ids.format("doi", "https://doi.org/10.1000/x.1"), ids.format("doi", "10.1000/X.1"), ids.format("pmcid", "PMC"),
        ids.format("pmc", "PMC0"),
    ]  # fmt: skip
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for k, one in enumerate(given):
            (tmp_path / folder / f"{k}.xml").write_text(article(0, ids=one))
    found = [
        [pmc.documents(str(tmp_path / f / f"{k}.xml"), TextPolicy(), 1 << 30, "refuse", f"{f}/{k}.xml") for f in "ab"]
        for k in range(len(given))
    ]
    a, b = [[next(pair[side]) for pair in found] for side in (0, 1)]
    doi = "doi:10.1000/x.1"
    assert [d.key for d in a] == [
        "PMC7", "PMC7", "PMC7", "pmid:12", "file:a/4.xml", doi, doi, "file:a/7.xml", "file:a/8.xml"
    ]  # fmt: skip
    assert [d.version for d in a] == [2, 1, 3, 1, 1, 1, 1, 1, 1]
    assert [d.key for d in b] == [d.key.replace("file:a", "file:b") for d in a]


def test_the_cloud_services_file_names_give_the_version(tmp_path):
    for name, version in (("PMC9.4.xml", 4), ("PMC8.4.xml", 1)):
        (tmp_path / name).write_text(article(9))
        assert [(d.key, d.version) for d in read(tmp_path / name)] == [("PMC9", version)]
