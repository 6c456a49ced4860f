"""BioC-JSON to documents: NCBI's BioC of PMC open access, and PubTator's exports.

A collection has documents, these have passages, and a passage's infons say what it is (`section_type` and `type`):
Comeau et al., "PMC text mining subset in BioC", Bioinformatics 35 (2019).
"""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

from data_preprocessing.config import TextPolicy
from data_preprocessing.inputs import streams, tar
from data_preprocessing.inputs.listing import is_package, is_wanted, strip_packing
from data_preprocessing.sources import json_stream
from data_preprocessing.sources.article_ids import identify
from data_preprocessing.sources.jsonl import decode_line, list_lines
from data_preprocessing.text.document import Document, read_year, unreadable_record
from data_preprocessing.text.markup import tidy
from data_preprocessing.text.spellings import normalise_licence
from modelzoo.config.errors import UserError
from modelzoo.reading import load_json

WHOLE = 4 << 20  # bytes of a file that is parsed at once
MAX_MEMBER = 128 << 20
_COLLECTIONS = frozenset((b"documents", b"PubTator3"))
_NAMES = (".json", ".jsonl", ".xml")  # some of NCBI's packages call JSON .xml
_NOT_READ = frozenset(
    ("REF", "ACK_FUND", "AUTH_CONT", "COMP_INT", "SUPPL", "ABBR", "KEYWORD", "KEYWORDS", "REVIEW_INFO", "APPENDIX")
)


def documents(
    path: str,
    policy: TextPolicy,
    max_bytes: int,
    unreadable: str = "refuse",
    name: str = "",
    passed: Counter[str] | None = None,
) -> Iterator[Document]:
    """Every document of one file or package, in order. `unreadable`: refuse the input, or count such documents.

    Args:
        name: of the file, for keys of documents without an id; its base name where it is "".
        passed: counts the members of a package that are not read.

    Raises:
        UserError: not JSON, damaged, or hostile; the message names the file and the member.
    """
    passed = Counter() if passed is None else passed
    name = name or os.path.basename(path)
    chunks = streams.unpacked(path, max_bytes)
    if not is_package(path):
        lines = strip_packing(path).endswith(".jsonl")
        yield from _read(chunks, path, name, policy, unreadable, lines)
        return
    for member, data in tar.read_files(chunks, path, lambda m: is_wanted(m, _NAMES, passed), MAX_MEMBER):
        if data.lstrip()[:1] not in (b"{", b"["):
            passed["no article"] += 1
            continue
        lines = member.lower().endswith(".jsonl")
        yield from _read(iter([data]), f"{path}:{member}", f"{name}:{member}", policy, unreadable, lines)


def _read(
    chunks: Iterator[bytes], where: str, place: str, policy: TextPolicy, unreadable: str, lines: bool
) -> Iterator[Document]:
    """The documents of one JSON file; `place` is its name in their keys."""
    for number, value in enumerate(_by_line(chunks) if lines else _values(chunks, where, unreadable), 1):
        try:
            if isinstance(value, ValueError):
                raise value
            yield document(value, policy, str(number), f"{place}#{number}")
        except (ValueError, RecursionError) as e:
            if unreadable == "refuse":
                raise UserError(f"{where}#{number}: {e}; pass --set unreadable=drop to go on without it") from None
            yield unreadable_record(f"{place}#{number}", str(number), str(e))


def _by_line(chunks: Iterator[bytes]) -> Iterator[Any]:
    """The documents of JSON lines, or why there is none."""
    for _, line in list_lines(chunks):
        try:
            if (text := decode_line(line).removeprefix("\ufeff")).strip():
                yield from _list_documents(load_json(text))
        except ValueError as e:
            yield ValueError(f"not JSON ({e})")


def _values(chunks: Iterator[bytes], where: str, unreadable: str) -> Iterator[Any]:
    """The documents of a JSON file, or why there is none."""
    head = bytearray()
    for chunk in chunks:
        head += chunk
        if len(head) > WHOLE:
            break
    small = len(head) <= WHOLE
    if head.startswith(b"\xef\xbb\xbf"):
        del head[:3]
    if small:
        try:
            value = load_json(bytes(head))
        except ValueError:  # perhaps several values
            value = None
        if value is not None:
            yield from _list_documents(value)
            return
    try:
        for piece in json_stream.cut(chain([bytes(head)], chunks), where, _COLLECTIONS):
            yield _parse(piece)
    except UserError as e:
        if not small or unreadable == "refuse":  # damage of a file that is not held in memory ends the job
            raise
        yield ValueError(str(e).removeprefix(f"{where}: "))


def _parse(piece: bytes | None) -> Any:
    if piece is None:
        return ValueError(f"larger than {json_stream.MAX_DOCUMENT >> 20} MB; refused as a document")
    try:
        return load_json(piece)
    except ValueError as e:
        return ValueError(f"not JSON ({e})")


def _list_documents(value: Any) -> Iterator[Any]:
    """The documents in a parsed file: of collections, of arrays of them, or the value itself."""
    if isinstance(value, list):
        for item in value:
            yield from _list_documents(item)
        return
    inner = [value[k.decode()] for k in _COLLECTIONS if isinstance(value, dict) and k.decode() in value]
    found = next((item for item in inner if isinstance(item, list)), None)
    if found is None:
        yield value
    else:
        yield from found


def document(record: Any, policy: TextPolicy, source: str, place: str) -> Document:
    """One BioC document.

    Raises:
        ValueError: it is none.
    """
    passages = record.get("passages") if isinstance(record, dict) else None
    if not isinstance(passages, list) or not all(isinstance(passage, dict) for passage in passages):
        raise ValueError("no BioC document: an object with a list `passages` was expected")
    facts: dict[str, Any] = {}
    for part in (*reversed(passages[:2]), record):
        facts |= _infons(part)
    given = str(record.get("id") or "").strip()
    pmcid = _text(facts, "article-id_pmc", "pmcid") or _text(record, "pmcid") or given * (given[:3].upper() == "PMC")
    pmid = _text(facts, "article-id_pmid", "pmid") or _text(record, "pmid") or ("" if pmcid else given)
    doi = _text(facts, "article-id_doi", "doi") or given
    known = identify(pmcid, pmid, doi, place)
    licence = normalise_licence(_text(facts, "license", "licence"))
    title, abstract, body = _lines(passages, policy)
    return Document(
        key=known.key,
        text="\n".join([*title, *abstract, *body]),
        version=known.version,
        pmid=known.pmid,
        pmcid=known.pmcid,
        year=read_year(facts.get("year")) or read_year(record.get("date")),
        licence=licence if len(licence) <= 60 else "other",
        source=source,
        has_abstract=bool(abstract or body),
    )


def _infons(part: dict) -> dict[str, Any]:
    infons = part.get("infons")
    return infons if isinstance(infons, dict) else {}


def _text(facts: dict, *keys: str) -> str:
    """The first of these facts that is text or a number."""
    return next((str(facts[key]) for key in keys if type(facts.get(key)) in (str, int) and facts[key]), "")


def _lines(passages: list[dict], policy: TextPolicy) -> tuple[list[str], list[str], list[str]]:
    """The lines of the title, of the abstract and of the body, as JATS gives them."""
    title: list[str] = []
    abstract: list[str] = []
    body: list[str] = []
    label = ""
    for passage in passages:
        infons = _infons(passage)
        kind = _text(infons, "type").lower()
        section = _text(infons, "section_type").upper() or kind.upper()
        text = _passage_text(passage, kind)
        if not text or section in _NOT_READ or not _is_read(kind, section, policy):
            continue
        if section in ("TITLE", "FRONT"):
            title.append(text)
        elif section != "ABSTRACT":
            body += [text] if policy.body else []
        elif "title" in kind:
            label = text.rstrip(" .:") if policy.labels == "keep" else ""
        else:
            abstract.append(f"{label}: {text}" if label else text)
            label = ""
    return title, abstract, body


def _passage_text(passage: dict, kind: str) -> str:
    """A passage's text, or that of its sentences."""
    text = passage.get("text")
    if not isinstance(text, str) or not text:
        sentences = passage.get("sentences")
        parts = [s.get("text") for s in sentences if isinstance(s, dict)] if isinstance(sentences, list) else []
        text = " ".join(part for part in parts if isinstance(part, str))
    if kind == "table":
        text = text.replace("\t", " | ")
    return tidy(text)


def _is_read(kind: str, section: str, policy: TextPolicy) -> bool:
    """Whether the policy takes a passage of this kind."""
    if "footnote" in kind or kind == "ref":
        return False
    if kind == "table":
        return policy.tables == "text"
    if section in ("FIG", "TABLE") or "caption" in kind:
        return policy.captions == "keep"
    return True
