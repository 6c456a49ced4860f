"""In-text citations: marks that stand for them while a text is put together, and their removal without debris.

Numbered citations go, with their brackets: "seen [1, 2]." becomes "seen.". One that its sentence needs, "reviewed in
[4]", stays as it is written. Names go where they fill a bracket, "(Li, 2001; Ma, 2002)", and stay elsewhere; a citation
that holds only the year, "(Li et al., <xref>2001</xref>)", always stays, since its name is not marked as such.
"""

import re

BEGIN, END = "\x01", "\x04"  # of a mark: one of the next three, the citation's text, END
NUMBER, NAME, YEAR = f"{BEGIN}#", f"{BEGIN}@", f"{BEGIN}%"

NUMERIC = re.compile(
    r"(?:[Rr]ef(?:erence)?s?\b\.?)?+[\s\[\](){}.,;*†‡§•▶►–—−-]*+(?:[SR]\d)?+"
    r"(?:[\s\[\](){}.,;*•▶►–—−-]|\d[a-z]?|\b(?:and|to)\b|&)*+$"
)
_YEAR = re.compile(r"(?<!\d)(?:1[6-9]|20)\d\d(?!\d)")
_YEARS = re.compile(
    r"(?:[\s()\[\].,;–—−&/-]|(?:1[6-9]|20)\d\d[a-z]?\b|\b[a-z]\b|\bin (?:press|prep\w*|review)\b"
    r"|\bforthcoming\b|\bsubmitted\b|\bunpublished(?: data)?\b|\bn\.?\s?d\b|\band\b)*+$",
    re.I,
)

# What may be in a bracket with citations alone. What was taken is never given back: the time is that of one pass.
_WORDS = (
    r"\b(?:(?:e\.?g|i\.?e|cf|vide|viz|ver|voir|siehe|vgl|and|or|see|also|but|as|in|by|for|an?|the|therein|review(?:s|ed)?|overviews?|details?"
    r"|detailed|descriptions?|discussions?|information|recent|further|more|full|examples?|instance|others|among|[Rr]efs?"
    r"|[Rr]eferences?|citations?|respectively|See|For|In|Reviewed)\b|(?:pp?\b\.?|pages?\b)\s*+\d{1,5}(?:\s*+[–—−-]\s*+\d{1,5})?+)"
)
_INSIDE = f"[^{BEGIN}{END}]*+"  # of a mark
_NUMBER = rf"(?:\d{{1,3}}\s*+[,–—−-]\s*+)*+{NUMBER}{_INSIDE}{END}(?:\s*+[,–—−-]\s*+\d{{1,3}}(?!\w))*+"
_NAME = rf"{NAME}{_INSIDE}{END}(?:[\s,]*+(?:1[6-9]|20)\d\d[a-z]?\b)?+"
_BRACKET = re.compile(
    rf"{BEGIN}{_INSIDE}{END}"
    rf"|[\[(]((?:[\s.,;:–—−&/•*†‡§-]|{_NUMBER}|{_NAME}|{YEAR}{_INSIDE}{END}|{_WORDS})*+)[\])]"
)
_DEPTH = 4  # brackets in brackets, "[see also (12)]"
_SERIES = re.compile(
    rf"({NUMBER}{_INSIDE}{END})(?:[\s,;–—−&/-]*+(?:\b(?:and|or)\b)?+[\s,;–—−&/-]*+{NUMBER}{_INSIDE}{END})++"
)
_MARKS = re.compile(f"{BEGIN}.|{END}")
_OTHERS = re.compile(rf"(?:{NAME}|{YEAR})({_INSIDE}){END}")
_NUMBERED = re.compile(rf"{NUMBER}({_INSIDE}){END}")

# Where a sentence cannot do without its citation: after these words, or as its subject.
_NEEDED_AFTER = re.compile(
    r"(?:^|[\s(\[])(?:in|of|by|from|with|see|to|than|per|via|also|In|By|From|See|cf|e\.?g|i\.?e|([Rr]efs?|[Rr]eferences?))[.,:]?\s*$"
)
_SENTENCE_END = re.compile(r"(?:[a-z]{4}|[)\]\d%])[.?!]\s+$")
_SUBJECT_OF = re.compile(r"\s+[a-z]{2}")
_PUNCTUATION = re.compile(r"\s*([,;:.?!])(?!\d)")
_LEADING = re.compile(r"^(?:[\s,;:]|[.&–—−-](?=\s)|\b(?:and|or)\b(?=\s))*+")
# Each begins where the one before it did not go on: a search passes over a text once.
_CLAUSE = re.compile(
    rf"(?<![\s.,;:&–—−-])(?:[\s.,;:&–—−-]|{_WORDS})++$"
)  # of a bracket, from its first [;,]: "; see also"
_TRAILING = re.compile(r"(?<![\s,;:&–—−-])(?:[\s,;:&–—−-]|\b(?:and|or)\b)++$")
_AND = re.compile(r"(?<![\s,])[\s,]++(?:and|or|&)$")
_NEAR = 80  # characters before and after a citation that decide what becomes of it


def mark_citation(text: str, rendered: str) -> str:
    """What stands for a citation until `remove_citations`.

    Args:
        text: all characters of the citation.
        rendered: the same as it is to be read.
    """
    if len(text) < 4 and text.isdecimal():
        return f"{NUMBER}{text}{END}"
    if not NUMERIC.match(text):
        years = _YEARS.match(text) and any(c.isalpha() or c.isdigit() for c in text)
        return f"{YEAR if years else NAME}{rendered}{END}"
    if _YEAR.search(text):
        return f"{YEAR}{rendered}{END}"
    before = after = ""
    if sum(map(text.count, "[({")) != sum(map(text.count, "])}")):  # "[1" and "3]" of two citations
        core = text.lstrip("[({ ")
        before, text = text[: len(text) - len(core)], core
        core = text.rstrip("])} ")
        after, text = text[len(core) :], core
    return f"{before}{NUMBER}{text}{END}{after}"


def remove_citations(text: str) -> str:
    """A paragraph without numbered citations, and without brackets that hold nothing else; other names stay."""
    if END not in text:
        return text
    done: list[str] = []
    window = ""
    *pieces, last = text.split(END)
    for piece in pieces:  # each ends with a mark that lacks its END
        begin = piece.rindex(BEGIN)
        if begin > 2 * _NEAR:  # what is far from any citation stays as it is, and is not searched
            done += (
                [*_clear(window + piece[:_NEAR]), piece[_NEAR : begin - _NEAR]] if window else [piece[: begin - _NEAR]]
            )
            window = piece[begin - _NEAR :] + END
        else:
            window += piece + END
    far = last[_NEAR:]
    return "".join([*done, *_clear(window + last[:_NEAR], is_last=not far), far])


def _clear(text: str, is_last: bool = False) -> list[str]:
    """The pieces of a text without its citations. `is_last`: the paragraph ends with it."""
    marks = text.count(END)
    if marks > 1:
        text = _SERIES.sub(_merge, text)
        marks = text.count(END)
    if marks == 1 and NUMBER in text and (parts := _split_at_lone(text)):  # what the rest of this would find too
        return [_join(*parts, is_last)]
    for _ in range(_DEPTH):
        before = text
        text = _BRACKET.sub(_take_bracket, text)
        if text == before:
            break
        text = _SERIES.sub(_merge, text)
    if NAME in text or YEAR in text:
        text = _OTHERS.sub(r"\1", text)
    left, *rest = _NUMBERED.split(text)
    done: list[str] = []
    for k in range(0, len(rest), 2):
        if len(left) > 4 * _NEAR:
            done.append(left[:-_NEAR])
            left = left[-_NEAR:]
        left = _join(left, rest[k], rest[k + 1], is_last=is_last and k + 2 == len(rest))
    return [*done, left]


def _split_at_lone(text: str) -> tuple[str, str, str] | None:
    """The text before a single numbered citation, the citation, what is after it; None where a bracket is around it."""
    left, _, rest = text.partition(NUMBER)
    citation, _, right = rest.partition(END)
    if left[-1:] in ("[", "(") and right[:1] in ("]", ")"):
        left, citation, right = left[:-1], left[-1] + citation + right[0], right[1:]
    is_inside = left.rfind("(") > left.rfind(")") or left.rfind("[") > left.rfind("]")
    return None if is_inside else (left, citation, right)


def _take_bracket(found: re.Match) -> str:
    """One numbered citation in the place of a bracket that holds citations alone; any other match as it is."""
    inside = found[1]
    if inside is None or not (NAME in inside or (NUMBER in inside and YEAR not in inside)):
        return found[0]
    return _merge(found)


def _merge(found: re.Match) -> str:
    return NUMBER + _MARKS.sub("", found[0]) + END


def _join(left: str, citation: str, right: str, is_last: bool) -> str:
    """The texts before and after a numbered citation, joined over it as if it had never been there."""
    following = right.lstrip()
    closing = following[:1] in (")", "]", "}")
    if closing and (clause := _find_clause(left)) is not None:
        return left[:clause].rstrip() + following
    if kept := _keep(left, citation, right):
        blank = "" if not left or left[-1].isspace() or left[-1] in "([{" else " "
        return f"{left}{blank}{kept}{right}"
    spaced = left[-1:].isspace() or right[:1].isspace()
    left = left.rstrip()
    if not left or left[-1] in "([{":
        return left + _LEADING.sub("", right, count=1)
    if closing:
        found = _TRAILING.search(left, max(0, len(left) - _NEAR))
        return (left[: found.start()] if found else left) + following
    if is_last and not following:
        return _cut_and(left).rstrip(" ,;")
    if found := _PUNCTUATION.match(right):
        left = _cut_and(left)
        if found[1] in ",;:." and left[-1:] in (",", ";", ":"):
            left = left.rstrip(" ,;:")
        elif found[1] == "." and left[-1:] in (".", "?", "!"):
            following = following[1:]
        return left + following
    glued = right[:1].isalnum() and (spaced or left[-1].isalnum() or left[-1] in ".,;:)]%")
    return f"{left} {right}" if glued else left + right


def _find_clause(left: str) -> int | None:
    """Where a text ends with a clause that a citation alone gave sense: "; see also" of "(TTM; see also [3])"."""
    found = _CLAUSE.search(left, max(0, len(left) - _NEAR))
    if found is None:
        return None
    return next((k for k in range(found.start(), len(left)) if left[k] in ";,"), None)


def _keep(left: str, citation: str, right: str) -> str:
    """How a citation is written that its sentence needs; "" for others."""
    near = left[-24:]
    after = _NEEDED_AFTER.search(near)
    if not after and not (_SUBJECT_OF.match(right) and (not near.strip() or _SENTENCE_END.search(near))):
        return ""
    citation = citation.strip()
    if not any(map(str.isdigit, citation)) or (not after and any(map(str.isalpha, citation))):
        return ""
    return citation if citation[0] in "[(" or (after and after[1]) or citation[0].isalpha() else f"[{citation}]"


def _cut_and(left: str) -> str:
    return _AND.sub("", left) if left.endswith(("and", "or", "&")) else left
