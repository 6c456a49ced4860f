"""In-text citations: marks that stand for them while a text is put together, and their removal with their brackets."""

import re
from collections.abc import Iterable, Iterator

NUMBERED, NAMED, NAMED_END = "\x1f", "\x1c", "\x1d"  # where a citation was: by number, or around its name
_MARKS = re.compile(f"[{NUMBERED}{NAMED}]")
# What may be in brackets with a citation; a named one is taken whole. What was taken is never given back, so that the
# time is that of one pass.
_CITE_WORDS = re.compile(
    "(?:[^\\S\x1c]|[,;:.–—−&-]|and|see|also|e\\.g\\.|i\\.e\\.|cf|reviewed|in|for review|references?|refs?"
    "|\x1c[^\x1d]*+\x1d)*+"
)
_BRACKET = re.compile(r"[\[(]")
_CITED = re.compile("\x1f(?:[^\\S\x1f]*+(?:[,;–—−-][^\\S\x1f]*+)?+\x1f)*+")
NUMERIC = re.compile(r"[\s\[\](){}.,;*†‡§–—−-]*+(?:[SR]\d)?+(?:[\s\[\](){}.,;*–—−-]|\d[a-z]?)*+$")


def remove_citations(text: str) -> str:
    """The text without numbered citations, and without brackets that hold nothing else; other names stay."""
    if NUMBERED in text or NAMED in text:
        text = _cut_out(text, _bracketed_citations(text))
        text = _cut_out(text, (found.span() for found in _CITED.finditer(text)))
        text = text.replace(NAMED, "").replace(NAMED_END, "")
    return text


def _bracketed_citations(text: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of brackets, single or double, that hold citations and nothing else but words such as "see"."""
    at = 0
    while found := _BRACKET.search(text, at):
        begin = found.start()
        width = 2 if text.startswith("[[", begin) else 1
        words = _CITE_WORDS.match(text, begin + width)
        end = words.end() if words else begin + width
        closed = text.startswith("]]", end) if width == 2 else text[end : end + 1] in ("]", ")")
        if closed and _MARKS.search(text, begin + width, end):
            at = end + width
            yield begin, at
        else:  # a bracket before `end` is in a citation's name, and would be followed to the same end
            at = max(begin + 1, end) if width == 1 else begin + 1


def _cut_out(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text without these spans and the white space before them."""
    kept, at = [], 0
    for begin, end in spans:
        kept.append(text[at:begin].rstrip())
        at = end
    return "".join([*kept, text[at:]])
