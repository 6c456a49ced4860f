"""Regular expressions over parameter names as globs, where a glob can say the same."""

import re
from itertools import product
from re import _constants as sre  # the parser behind `re`: no second grammar to keep in step with the first
from re import _parser

MANY = 64  # globs that one expression may become


def globs(pattern: str) -> list[str] | None:
    """Globs that together match a name just where `re.search(pattern, name)` finds something; None if none can.

    Names hold no newline. A bare dot matches any character and becomes `?`.
    """
    found = _sequence(list(_parser.parse(pattern)))
    if found is None:
        return None
    done = []
    for text in found:
        head, tail = text.startswith(_BEGIN), text.endswith(_END)
        body = text[len(_BEGIN) if head else 0 : len(text) - len(_END) if tail else None]
        if _BEGIN in body or _END in body:
            return None
        done.append(re.sub(r"\*+", "*", ("" if head else "*") + body + ("" if tail else "*")))
    return list(dict.fromkeys(done))


_BEGIN, _END = "\0^", "\0$"
_SETS = {sre.CATEGORY_DIGIT: "0-9", sre.CATEGORY_WORD: "a-zA-Z0-9_"}


def _sequence(tokens: list) -> list[str] | None:
    parts = [_token(*t) for t in tokens]
    if any(p is None for p in parts):
        return None
    size = 1
    for p in parts:
        size *= len(p)
    return ["".join(combination) for combination in product(*parts)] if size <= MANY else None


def _token(kind, value) -> list[str] | None:
    if kind is sre.LITERAL:
        char = chr(value)
        return [f"[{char}]" if char in "*?[" else char]
    if kind is sre.ANY:
        return ["?"]
    if kind is sre.AT:
        begin, end = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING), (sre.AT_END, sre.AT_END_STRING)
        return [_BEGIN] if value in begin else [_END] if value in end else None
    if kind is sre.IN:
        return _set(value)
    if kind is sre.SUBPATTERN:
        return None if value[1] or value[2] else _sequence(list(value[3]))
    if kind is sre.BRANCH:
        branches = [_sequence(list(b)) for b in value[1]]
        return None if any(b is None for b in branches) else [g for b in branches for g in b]
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        low, high, inner = value
        once = _sequence(list(inner))
        if once == ["?"] and high is sre.MAXREPEAT:
            return ["?" * low + "*"]
        if once is None or high is sre.MAXREPEAT or high > 8:
            return None
        return [g for n in range(low, high + 1) for g in _sequence(list(inner) * n) or [""]]
    return None


def _set(items: list) -> list[str] | None:
    negate, text = "", ""
    for kind, value in items:
        if kind is sre.NEGATE:
            negate = "!"
        elif kind is sre.LITERAL and chr(value) not in "]!^-\\":
            text += chr(value)
        elif kind is sre.RANGE:
            text += f"{chr(value[0])}-{chr(value[1])}"
        elif kind is sre.CATEGORY and value in _SETS:
            text += _SETS[value]
        else:
            return None
    return [f"[{negate}{text}]"]
