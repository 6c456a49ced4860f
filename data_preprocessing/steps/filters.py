"""Filters: small functions that keep a document (None) or name the reason for dropping it.

Every record of the input ends under exactly one of REASONS, the first being "written"; the report counts them all,
so that records in = written + dropped by reason.
"""

import hashlib
import re
from collections.abc import Callable

from data_preprocessing.config import Filters, Kinds
from data_preprocessing.text.document import Document
from data_preprocessing.text.spellings import normalise_language, normalise_licence

# Codes are positions in this tuple; they are kept on disk between steps. The order is the one in which filters run.
REASONS = (
    "written",
    "superseded",
    "deleted",
    "retracted",
    "retraction_notice",
    "concern",
    "erratum",
    "corrected",
    "comment",
    "unreadable",
    "no_text",
    "no_abstract",
    "too_short",
    "too_long",
    "language",
    "licence",
    "boilerplate",
    "benchmark_pmid",
    "benchmark_overlap",
    "exact_duplicate",
    "near_duplicate",
)
CODE = {reason: code for code, reason in enumerate(REASONS)}

Filter = Callable[[Document], str | None]

_TAGS = {
    "retracted": "[Retracted]",
    "retraction_notice": "[Retraction notice]",
    "erratum": "[Erratum]",
    "concern": "[Expression of concern]",
    "corrected": "[Corrected]",
    "comment": "[Comment]",
}
_BOILERPLATE = re.compile(
    r"(this article has been (withdrawn|retracted)"
    r"|an abstract is (not available|unavailable) for this (article|content)"
    r"|no abstract (is )?available|abstract not available|\[?this corrects the article|\[?this retracts the article"
    r"|publisher'?s note|copyright ©? ?\d{4})[\w\s.,:;()/'’\[\]-]{0,200}$",
    re.I,
)


def mark(document: Document, kinds: Kinds) -> None:
    """Put the tag line of every kind whose policy is `mark` in front of the text."""
    tags = [_TAGS[kind] for kind in document.kinds if getattr(kinds, kind, "") == "mark"]
    if tags and document.text:
        document.text = " ".join(tags) + "\n" + document.text


def build(filters: Filters, kinds: Kinds, benchmark=None) -> list[Filter]:
    """The filters that need one document alone, in order. `benchmark`: a decontaminate.Benchmark or None."""
    dropped = frozenset(k for k in Kinds.model_fields if getattr(kinds, k) == "drop") | {"unreadable"}
    chain: list[Filter] = [lambda d: next((k for k in d.kinds if k in dropped), None) if d.kinds else None, has_text]
    if filters.require_abstract:
        chain.append(has_abstract)
    chain.append(lambda d: length(d, filters.min_chars, filters.max_chars))
    if languages := tuple(map(normalise_language, filters.languages)):
        chain.append(lambda d: language(d, languages))
    if licences := tuple(map(normalise_licence, filters.licences)):
        chain.append(lambda d: licence(d, licences))
    if filters.boilerplate:
        chain.append(boilerplate)
    if benchmark is not None:
        chain.append(benchmark.find_overlap)
    return chain


def find_reason(document: Document, chain: list[Filter]) -> int:
    """The code of the first reason that a filter names, 0 to keep."""
    for keep in chain:
        if reason := keep(document):
            return CODE[reason]
    return 0


def has_text(document: Document) -> str | None:
    """Drop a record without any text."""
    return None if document.text else "no_text"


def has_abstract(document: Document) -> str | None:
    """Drop a record that has a title alone."""
    return None if document.has_abstract else "no_abstract"


def length(document: Document, least: int, most: int | None) -> str | None:
    """Drop texts of fewer than `least` or more than `most` characters; a pair's are the prompt and the completion."""
    characters = len(document.prompt or "") + len(document.text)
    if characters < least:
        return "too_short"
    return "too_long" if most is not None and characters > most else None


def language(document: Document, wanted: tuple[str, ...]) -> str | None:
    """Any of the record's languages is enough; a record that names none is kept."""
    codes = document.language.split(",") if document.language else []
    return None if not codes or any(code in wanted for code in codes) else "language"


def licence(document: Document, wanted: tuple[str, ...]) -> str | None:
    """By prefix of the normalised name (CC-BY also admits CC-BY-4.0, not CC-BY-NC)."""
    return None if any(_licence_fits(document.licence, prefix) for prefix in wanted) else "licence"


def _licence_fits(name: str, prefix: str) -> bool:
    name, prefix = name.upper(), prefix.upper()
    return name == prefix or (name.startswith(prefix + "-") and name[len(prefix) + 1 : len(prefix) + 2].isdigit())


def boilerplate(document: Document) -> str | None:
    """The abstract is nothing but a stock phrase."""
    if len(document.text) > 800:
        return None
    body = document.text.partition("\n")[2] or document.text
    return "boilerplate" if _BOILERPLATE.match(body) else None


_FOLD = bytes(  # ASCII to lower case, a line break to a blank, other controls to a line break
    0x20 if c == 0x0A else 0x0A if c < 0x20 or c == 0x7F else ord(chr(c).lower()) if c < 0x80 else c for c in range(256)
)


def text_hash(text: str) -> bytes:
    """16 bytes that are equal for texts that differ in case and white space alone."""
    if text.isascii():
        folded = text.encode().translate(_FOLD)
        if b"\n" not in folded and b"  " not in folded and folded[:1] != b" " and folded[-1:] != b" ":
            return hashlib.blake2b(folded, digest_size=16).digest()
    plain = text.lower().replace("\n", " ")
    if "  " in plain or plain[:1] == " " or plain[-1:] == " " or not plain.isprintable():
        plain = " ".join(plain.split())
    return hashlib.blake2b(plain.encode(), digest_size=16).digest()


def key_hash(key: str) -> bytes:
    """8 bytes that identify a record's key."""
    return hashlib.blake2b(key.encode(), digest_size=8).digest()
