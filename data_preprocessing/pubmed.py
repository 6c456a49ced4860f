"""PubMed citation XML to documents: records are cut out by bytes, and only the fields that matter are parsed.

Old and new roots (MedlineCitationSet, PubmedArticleSet), efetch output, book articles and deletion orders are
read. A scanner that accepts nothing but records, white space, comments and the root between records makes sure
that no record is passed over; anything unusual inside a record (CDATA, comments, single quotes) sends it through
lxml first, which writes it out again in the usual form.
"""

import html
import re
from collections.abc import Iterator

from lxml import etree

from data_preprocessing import streams
from data_preprocessing.citation_set import cut
from data_preprocessing.config import TextPolicy
from data_preprocessing.markup import hardened_parser, render, tidy
from data_preprocessing.records import Document, is_number, show, unreadable_record
from modelzoo.config.errors import UserError

# No search may take a time that grows with the square of a record: what repeats is bounded, or ends where it begins.
_PMID = re.compile(rb"<PMID\b([^>]{0,200})>\s{0,100}(\d{1,12})\s{0,100}</PMID>")
_VERSION = re.compile(rb'Version="([^"]{0,40})"')
_YEAR = re.compile(rb"<Year>\s{0,100}(\d{4})")
_ANY_YEAR = re.compile(rb"(1[5-9]\d\d|20\d\d)")
_LABEL = re.compile(rb'\bLabel="([^"]*)"')
_DATE = re.compile(
    rb"<Date(?:Created|Completed|Revised)>\s*+<Year>(\d{4})</Year>\s*+<Month>(\d\d)</Month>\s*+<Day>(\d\d)"
)
_OTHER_ID = re.compile(rb"<OtherID\b[^>]{0,200}>\s{0,100}(PMC\d{1,12})")
_PMC_ID = re.compile(rb'<ArticleId IdType="pmc[^"]{0,20}">\s{0,100}(?:PMC)?(\d{1,12})')
_NO_TITLE = re.compile(r"\[?not available\]?\.?$", re.I)
_BOOK_YEAR = re.compile(r"\d{4}", re.ASCII)
_KINDS = (  # (field of config.Kinds, what in the record marks it)
    ("retracted", (b">Retracted Publication<", b'RefType="RetractionIn"')),
    ("retraction_notice", (b">Retraction of Publication<", b">Retraction Notice<", b'RefType="RetractionOf"')),
    ("concern", (b'RefType="ExpressionOfConcernIn"',)),
    ("erratum", (b">Published Erratum<", b'RefType="ErratumFor"')),
    ("corrected", (b'RefType="ErratumIn"', b'RefType="CorrectedandRepublishedIn"')),
    ("comment", (b">Comment<", b'RefType="CommentOn"')),
)


def documents(
    path: str, policy: TextPolicy, max_bytes: int, unreadable: str = "refuse", name: str = ""
) -> Iterator[Document]:
    """Every record of one file, in order. `unreadable`: refuse the input, or count records that cannot be read.

    Raises:
        UserError: not citation XML, damaged, or hostile; the message names the file and the record before.
    """
    seen = "the start"
    for number, (tag, record) in enumerate(cut(streams.utf8(streams.unpacked(path, max_bytes), path), path), 1):
        try:
            if tag in (b"DeleteCitation", b"DeleteDocument"):
                yield from _deletions(record)
                continue
            parse = _book if tag == b"PubmedBookArticle" else citation
            document = parse(record, policy)
        except (ValueError, etree.XMLSyntaxError, RecursionError) as e:
            why = f"broken record after {seen}: {show(str(e))}"
            if unreadable == "refuse":
                raise UserError(f"{path}: {why}; fetch the file again, or pass --set unreadable=drop") from None
            document = unreadable_record(f"{name or path}:{number}", f"record {number}", why)
        seen = document.key
        yield document


def _deletions(record: bytes) -> list[Document]:
    """The orders of one DeleteCitation."""
    found = _PMID.findall(record)
    if len(found) != record.count(b"<PMID"):
        raise ValueError("a deletion whose PMID is no number")
    return [Document(key=f"pmid:{int(pmid)}", deleted=True) for _, pmid in found]


def citation(record: bytes, policy: TextPolicy) -> Document:
    """One PubmedArticle or MedlineCitation. Raises ValueError where it has no PMID or is malformed."""
    if _unusual(record):
        record = _normalised(record)
    # The order of elements is that of NLM's DTD, so each search begins where the last one ended.
    pmid = _PMID.match(record, record.find(b"<PMID"))  # its own, which is the first, or none: never another's
    if not pmid:
        raise ValueError("a record without a PMID")
    version = _VERSION.search(pmid[1])
    number = str(int(pmid[2]))
    start = record.find(b"<Article", pmid.end())
    stop = record.find(b"</Article>", start)
    if start < 0 or stop < 0 or record[start + 8 : start + 9] not in b" >":
        raise ValueError(f"PMID {number} has no Article")
    dates = [int(b"".join(d)) for d in _DATE.findall(record, pmid.end(), start)]
    published = _element(record, b"PubDate", start, stop)[0] or b""
    year = _YEAR.search(published) or _ANY_YEAR.search(published)
    title, at = _element(record, b"ArticleTitle", start, stop)
    abstract, at = _element(record, b"Abstract", max(at, start), stop)
    at = max(at, start)
    vernacular = _element(record, b"VernacularTitle", at, stop)[0] if policy.vernacular_title == "append" else b""
    data = record.find(b"<PubmedData>", stop)
    head_end = data if data >= 0 else len(record)
    ids = _element(record, b"ArticleIdList", data, len(record))[0] if data >= 0 else None
    pmcid = _PMC_ID.search(ids) if ids else _OTHER_ID.search(record, stop, head_end)
    text = _abstract(abstract, policy)
    if policy.other_abstract == "append" or (policy.other_abstract == "if_missing" and not text):
        others = [_abstract(other, policy) for other in _others(record, stop, head_end)]
        text = "\n".join(filter(None, [text, *(others if policy.other_abstract == "append" else others[:1])]))
    return Document(
        key="pmid:" + number,
        text=assemble(_fragment(title, policy), _fragment(vernacular, policy), text, policy),
        version=_count(version[1].decode()) if version else 1,
        date=max(dates, default=0),
        pmid=number,
        pmcid="PMC" + pmcid[1].decode().removeprefix("PMC") if pmcid else "",
        year=int(year[1]) if year else 0,
        language=_languages(record, at, stop),
        kinds=_kinds(record, at, stop, head_end),
        has_abstract=bool(text),
    )


def _unusual(record: bytes) -> bool:
    """Whether the record is written in a way that the searches below could misread.

    A rare byte is looked for first, which is fast; white space inside tags is looked for before the authors, where
    everything is that is read with its attributes.
    """
    if (
        (b"!" in record and b"<!" in record)
        or (b"?" in record and b"<?" in record)
        or (b"'" in record and b"='" in record)
    ):
        return True
    head = record[: record.find(b"<AuthorList")]
    return b'= "' in head or b' ="' in head or b" >" in head or b"\n>" in head


def _languages(record: bytes, start: int, stop: int) -> str:
    codes = []
    while (start := record.find(b"<Language>", start, stop)) >= 0:
        start += 10
        codes.append(record[start : record.find(b"<", start)].strip().decode().lower())
    return ",".join(codes)


def assemble(title: str, vernacular: str, abstract: str, policy: TextPolicy) -> str:
    """Title on the first line, then the abstract; a translated title loses its [brackets]."""
    if policy.brackets == "strip" and title.startswith("["):
        inner = re.fullmatch(r"\[(.*)\](\.?)", title, re.S)
        if inner and "[" not in inner[1]:
            title = inner[1] if inner[1].endswith((".", "?", "!")) else inner[1] + inner[2]
    if _NO_TITLE.match(title):
        title = ""
    return "\n".join(part for part in (title, vernacular, abstract) if part)


def _kinds(record: bytes, at: int, stop: int, head_end: int) -> tuple[str, ...]:
    types = record.find(b"<PublicationTypeList", at, stop)
    links = record.find(b"<CommentsCorrectionsList", stop, head_end)
    marks = b""
    if types >= 0:
        marks = record[types : record.find(b"</PublicationTypeList>", types)]
    if links >= 0:
        marks += record[links : record.find(b"</CommentsCorrectionsList>", links)]
    elif marks.count(b"</PublicationType>") == 1 and b">Journal Article<" in marks:
        return ()
    return tuple(kind for kind, signs in _KINDS if any(sign in marks for sign in signs))


def _normalised(record: bytes) -> bytes:
    """The record as lxml writes it: no comments, CDATA or instructions, attributes in double quotes."""
    parser = hardened_parser(remove_comments=True, remove_pis=True)
    root = etree.fromstring(record, parser)
    if root.getroottree().docinfo.doctype:
        raise ValueError("a DOCTYPE inside a record")
    return etree.tostring(root, encoding="utf-8")


def _element(data: bytes, tag: bytes, start: int, stop: int) -> tuple[bytes | None, int]:
    """(inner bytes, where it ends) of the first <tag ...> in data[start:stop]; (None, -1) where there is none."""
    at = data.find(b"<" + tag, start, stop)
    after = at + len(tag) + 1
    while at >= 0 and data[after : after + 1] not in (b">", b" ", b"/", b"\n", b"\t", b"\r"):
        at = data.find(b"<" + tag, after, stop)  # <AbstractText is no <Abstract
        after = at + len(tag) + 1
    if at < 0:
        return None, -1
    inner = data.index(b">", after) + 1
    if data[inner - 2 : inner - 1] == b"/":
        return b"", inner
    end = data.find(b"</" + tag + b">", inner, stop)
    if end < 0:
        raise ValueError(f"<{tag.decode()}> is not closed")
    return data[inner:end], end


def _others(record: bytes, start: int, stop: int) -> Iterator[bytes]:
    while start >= 0:
        inner, start = _element(record, b"OtherAbstract", start, stop)
        if inner:
            yield inner


def _abstract(inner: bytes | None, policy: TextPolicy) -> str:
    if not inner:
        return ""
    parts, at = [], 0
    while (at := inner.find(b"<AbstractText", at)) >= 0:
        begin = inner.index(b">", at) + 1
        attributes = inner[at + 13 : begin - 1]
        at = begin
        if attributes.endswith(b"/"):
            continue
        end = inner.find(b"</AbstractText>", begin)
        if end < 0:
            raise ValueError("<AbstractText> is not closed")
        at = end
        text = _fragment(inner[begin:end], policy)
        if text and attributes and policy.labels == "keep" and (label := _LABEL.search(attributes)):
            name = tidy(html.unescape(label[1].decode()))
            if name and name.upper() != "UNLABELLED":
                text = f"{name}: {text}"
        if text:
            parts.append(text)
    return "\n".join(parts)


def _fragment(body: bytes | None, policy: TextPolicy) -> str:
    if not body:
        return ""
    if b"<" not in body:
        text = body.decode()
        return tidy(html.unescape(text) if "&" in text else text)
    root = etree.fromstring(b'<x xmlns:mml="http://www.w3.org/1998/Math/MathML">' + body + b"</x>", hardened_parser())
    return tidy(render(root, policy.scripts))


def _count(text: str) -> int:
    if not is_number(text.strip()):
        raise ValueError(f"the version {text[:40]!r} is no number")
    return int(text)


def _book(record: bytes, policy: TextPolicy) -> Document:
    """A PubmedBookArticle: rare, so read as a tree."""
    root = etree.fromstring(record, hardened_parser(remove_comments=True, remove_pis=True))
    book = root.find("BookDocument")
    pmid = book.findtext("PMID") if book is not None else None
    if book is None or not pmid or not is_number(pmid.strip(), 12):
        raise ValueError("a book article without a PMID")
    titles = [book.find(p) for p in ("ArticleTitle", "VernacularTitle", "Book/BookTitle")]
    title = next((tidy(render(t, policy.scripts)) for t in (titles[0], titles[2]) if t is not None), "")
    vernacular = titles[1] if policy.vernacular_title == "append" else None
    abstract = book.find("Abstract")
    body = _abstract(etree.tostring(abstract, encoding="utf-8"), policy) if abstract is not None else ""
    year = _BOOK_YEAR.search(book.findtext("Book/PubDate/Year") or book.findtext("Book/PubDate/MedlineDate") or "")
    pmc = root.findtext("PubmedBookData/ArticleIdList/ArticleId[@IdType='pmc']") or ""
    pmid = str(int(pmid))
    return Document(
        key=f"pmid:{pmid}",
        pmid=pmid,
        version=_count(book.find("PMID").get("Version", "1")),
        year=int(year[0]) if year else 0,
        text=assemble(title, tidy(render(vernacular, policy.scripts)) if vernacular is not None else "", body, policy),
        pmcid=pmc if pmc.startswith("PMC") else "",
        has_abstract=bool(body),
        language=",".join((e.text or "").strip().lower() for e in book.findall("Language")),
    )
