"""PubMed citation XML to documents: records are cut out by bytes, and only the fields that matter are read.

Old and new roots (MedlineCitationSet, PubmedArticleSet), efetch output, book articles and deletion orders are read. A
citation in the spelling that NLM writes is read by searches that step from one element to the next, in the order of
NLM's DTD. Each step is sure of what it sees, or the record goes to a parser (`citation_tree`), which reads the same.
"""

import functools
import re
from collections.abc import Iterator

from data_preprocessing.config import TextPolicy
from data_preprocessing.inputs import streams
from data_preprocessing.sources.citation_set import cut
from data_preprocessing.sources.citation_tree import (
    ANY_YEAR,
    assemble,
    find_kinds,
    put_label,
    read_book,
    read_citation,
    read_deletions,
)
from data_preprocessing.text.document import Document, show, unreadable_record
from data_preprocessing.text.markup import render, resolve_escaped, tidy, tidy_printable
from data_preprocessing.text.xml import parse_fragment
from modelzoo.config.errors import UserError

# Attributes as NLM writes them; an attribute value may hold ">" but no "<", so that "<Name" outside of comments and
# CDATA is always a tag. No search may take a time that grows with the square of a record.
_ATTRIBUTES = rb'(?:\s++[\w:.-]++="[^"<]*+")*+'
_HEAD = re.compile(
    rb"(?:<PubmedArticle>\s*+)?<MedlineCitation%b>\s*+"
    rb'<PMID(?: Version="(\d{1,9})")?>(\d{1,12})</PMID>((?:\s*+<Date\w+>\s*+<Year>\d{4}</Year>\s*+<Month>\d\d'
    rb"</Month>\s*+<Day>\d\d</Day>\s*+</Date\w+>)*+)\s*+<Article%b>" % (_ATTRIBUTES, _ATTRIBUTES)
)
_DATE = re.compile(
    rb"<Date(?:Created|Completed|Revised)>\s*+<Year>(\d{4})</Year>\s*+<Month>(\d\d)</Month>\s*+<Day>(\d\d)"
)
_PUBLISHED = re.compile(rb"<PubDate>\s*+(?:<Year>(\d{4})</Year>|<MedlineDate>([^<&]*+)</MedlineDate>)")
_TITLE = re.compile(rb"<ArticleTitle%b>([^<]*+)(</ArticleTitle>)?" % _ATTRIBUTES)
_PART = re.compile(rb"\s*+<AbstractText(%b)(?:/>|>([^<]*+)(</AbstractText>)?)" % _ATTRIBUTES)
_LABEL = re.compile(rb'(?:\s++(?!Label=)[\w:.-]++="[^"]*+")*+\s++Label="([^"]*+)"')
_ABSTRACT_END = re.compile(rb"\s*+(?:<CopyrightInformation>[^<]*+</CopyrightInformation>\s*+)?</Abstract>")
_LANGUAGE = re.compile(rb"<Language>([a-z]{3})</Language>\s*+(?!<Language)")
_TYPE = re.compile(rb'<PublicationType(?: UI="[^"<]*+")?>([^<&]*+)</PublicationType>')
_LINK = re.compile(rb'<CommentsCorrections RefType="(\w*+)">')
_PMC_ID = re.compile(rb'<ArticleId IdType="pmc">PMC(\d{1,12})</ArticleId>')
_OTHER_IDS = re.compile(rb"(?:<OtherID%b>[^<&]*+</OtherID>\s*+)++(?!<OtherID)" % _ATTRIBUTES)
_OTHER_ID = re.compile(rb"<OtherID%b>\s*+(?:(PMC\d{1,12})[^<]*+)?+" % _ATTRIBUTES)
_REFERENCE = re.compile("&(?:#([0-9]{1,7})|#x([0-9A-Fa-f]{1,6})|(amp|lt|gt|quot|apos));")
_PREDEFINED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_NO_CHARACTER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # none that XML allows


class _Unsure(Exception):
    """The record is written in a way that only a parser reads for certain."""


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
                yield from read_deletions(record)
                continue
            if not tag:
                raise ValueError("a record is not closed before the next begins")
            document = read_book(record, policy) if tag == b"PubmedBookArticle" else citation(record, policy)
        except (ValueError, RecursionError) as e:
            why = f"broken record after {seen}: {show(str(e))}"
            if unreadable == "refuse":
                raise UserError(f"{path}: {why}; fetch the file again, or pass --set unreadable=drop") from None
            document = unreadable_record(f"{name or path}:{number}", f"record {number}", why)
        seen = document.key
        yield document


def citation(record: bytes, policy: TextPolicy) -> Document:
    """One PubmedArticle or MedlineCitation.

    Raises:
        ValueError: it has no PMID or no Article, or is malformed.
    """
    try:
        return _read_usual(record, policy)
    except (_Unsure, UnicodeDecodeError):
        return read_citation(record, policy)


def _read_usual(record: bytes, policy: TextPolicy) -> Document:
    """What `read_citation` reads.

    Raises:
        _Unsure: the record is not, or may not be, in the usual spelling.
        UnicodeDecodeError: it is not UTF-8.
    """
    head = _HEAD.match(record)
    if not head:
        raise _Unsure
    if (b"!" in record and b"<!" in record) or (b"?" in record and b"<?" in record):
        raise _Unsure
    version, digits, dates = head.groups()
    number = str(int(digits))
    published = _PUBLISHED.match(record, record.find(b"<PubDate", head.end()))
    title = _TITLE.match(record, record.find(b"<ArticleTitle", head.end()))
    if not published:
        raise _Unsure
    if not title:
        raise _Unsure
    body, at = _content(record, title, 1, b"</ArticleTitle>")
    language = _LANGUAGE.match(record, spoken := record.find(b"<Language", at))
    types = record.find(b"<PublicationTypeList>", spoken)
    types_end = record.find(b"</PublicationTypeList>", types)
    stop = record.find(b"</Article>", types_end)
    if not language or min(types, types_end, stop) < 0:
        raise _Unsure
    text = _read_abstract(record, at, stop, policy)
    data = record.find(b"<PubmedData", stop)
    links = record.find(b"<CommentsCorrectionsList", stop, data if data >= 0 else len(record))
    _refuse_others(record, types_end, stop, data, bool(text), policy)
    return Document(
        key="pmid:" + number,
        text=assemble(_read_fragment(body, policy), "", text, policy),
        version=int(version) if version else 1,
        date=max([int(b"".join(d)) for d in _DATE.findall(dates)], default=0),
        pmid=number,
        pmcid=_find_pmcid(record, stop, data),
        year=int(published[1]) if published[1] else _find_year(published[2]),
        language=language[1].decode(),
        kinds=_find_kinds(record[types:types_end], _read_links(record, links)),
        has_abstract=bool(text),
    )


def _content(record: bytes, opened: re.Match[bytes], group: int, end: bytes) -> tuple[bytes, int]:
    """What is inside an element whose start tag and first text were matched, and where the element ends."""
    if opened[group + 1]:
        return opened[group], opened.end()
    begin, stop = opened.start(group), record.find(end, opened.end())
    if stop < 0:
        raise _Unsure
    return record[begin:stop], stop + len(end)


def _read_abstract(record: bytes, at: int, stop: int, policy: TextPolicy) -> str:
    """The text of the Abstract, which is in record[at:stop] if there is one."""
    at = record.find(b"<Abstract", at, stop)
    if at < 0:
        if record.find(b"<Abstract", 0, stop) >= 0:
            raise _Unsure
        return ""
    if not record.startswith(b"<Abstract>", at):
        raise _Unsure
    parts, at = [], at + 10
    while part := _PART.match(record, at):
        if part[2] is None:
            at = part.end()
            continue
        body, at = _content(record, part, 2, b"</AbstractText>")
        text = _read_fragment(body, policy)
        if part[1] and policy.labels == "keep" and (label := _LABEL.match(part[1])):
            text = put_label(_read_characters(label[1], policy), text)
        if text:
            parts.append(text)
    if not _ABSTRACT_END.match(record, at):
        raise _Unsure
    return "\n".join(parts)


def _read_fragment(body: bytes, policy: TextPolicy) -> str:
    """Text of an element's content, inline markup as the policy has it."""
    if b"<" in body:
        return tidy(render(parse_fragment(body), policy.scripts))
    return _read_characters(body, policy)


def _read_characters(data: bytes, policy: TextPolicy) -> str:
    """Text of character data without markup; only what a parser takes."""
    text = data.decode()
    if b"]" in data and b"]]>" in data:
        raise _Unsure
    if "&" in text:
        text, count = _REFERENCE.subn(_character, text)
        if count != data.count(b"&"):
            raise _Unsure
        text = resolve_escaped(text, policy.scripts)
    if text.isprintable():
        return tidy_printable(text)
    if _NO_CHARACTER.search(text):
        raise _Unsure
    return tidy(text)


def _character(reference: re.Match[str]) -> str:
    if reference[3]:
        return _PREDEFINED[reference[3]]
    code = int(reference[1]) if reference[1] else int(reference[2], 16)
    if not (0x20 <= code < 0xD800 or code in (9, 10, 13) or 0xE000 <= code < 0xFFFE or 0x10000 <= code < 0x110000):
        raise _Unsure
    return chr(code)


def _refuse_others(record: bytes, types_end: int, stop: int, data: int, has_text: bool, policy: TextPolicy) -> None:
    """Leave records to the parser in which the policy wants more than title and abstract."""
    if policy.vernacular_title == "append" and record.find(b"<VernacularTitle", types_end, stop) >= 0:
        raise _Unsure
    wanted = policy.other_abstract == "append" or (policy.other_abstract == "if_missing" and not has_text)
    if wanted and record.find(b"<OtherAbstract", stop, data if data >= 0 else len(record)) >= 0:
        raise _Unsure


def _find_pmcid(record: bytes, stop: int, data: int) -> str:
    first = record.find(b"<ArticleIdList>", data) if data >= 0 else record.find(b"<OtherID", stop)
    if first < 0 and data < 0:
        return ""
    if data < 0:  # older files have OtherID
        others = _OTHER_IDS.match(record, first)
        if not others:
            raise _Unsure
        return next(filter(None, _OTHER_ID.findall(others[0])), b"").decode()
    last = record.find(b"</ArticleIdList>", first)
    if min(first, last) < 0:
        raise _Unsure
    ids = record[first:last]
    if b"pmc" not in ids and b"&" not in ids:
        return ""
    found = _PMC_ID.search(ids)
    if not found or ids.count(b"pmc") > 1:
        raise _Unsure
    return "PMC" + found[1].decode()


def _find_year(words: bytes) -> int:
    year = ANY_YEAR.search(words.decode())
    return int(year[1]) if year else 0


def _read_links(record: bytes, start: int) -> frozenset[bytes]:
    """RefTypes of the CommentsCorrectionsList at `start`, if there is one."""
    if start < 0:
        return frozenset()
    inside = record[start : record.find(b"</CommentsCorrectionsList>", start)]
    found = _LINK.findall(inside)
    if len(found) != inside.count(b"<CommentsCorrections") - 1:
        raise _Unsure
    return frozenset(found)


@functools.lru_cache(maxsize=4096)  # a few lists of types are those of most records
def _find_kinds(types: bytes, links: frozenset[bytes]) -> tuple[str, ...]:
    found = _TYPE.findall(types)
    if len(found) != types.count(b"<PublicationType") - 1:
        raise _Unsure
    return find_kinds((name.decode().strip() for name in found), map(bytes.decode, links))
