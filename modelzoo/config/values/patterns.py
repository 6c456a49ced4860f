"""Patterns that choose parameters by name: globs, or regular expressions as `re:...`. Each must match something."""

import difflib
import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from modelzoo.config.errors import UserError

REGULAR = "re:"  # before a regular expression, which may match anywhere in a name


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` chooses the parameter `name`."""
    if pattern.startswith(REGULAR):
        return re.search(pattern[len(REGULAR) :], name) is not None
    return fnmatchcase(name, pattern)


def check_syntax(patterns: Iterable[str] | None) -> None:
    """Refuse a regular expression that is none.

    Raises:
        ValueError: names it, for pydantic.
    """
    for pattern in patterns or ():
        try:
            matches("", pattern)
        except re.error as e:
            raise ValueError(f"{pattern!r} is no regular expression ({e})") from None


def check_match(key: str, patterns: Iterable[str], names: Collection[str], what: str) -> None:
    """Refuse a list in which some pattern matches nothing: a typing error would leave its weights out in silence.

    Args:
        key: the config's, dotted.
        names: what may be matched. what: of which kind that is, in the singular.

    Raises:
        UserError: names the key, the pattern and the nearest name.
    """
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise UserError(f"{key} ({pattern}): matches no {what}; names look like {_nearest(pattern, names)}")


def _nearest(pattern: str, names: Collection[str]) -> str:
    """The name that has most letters of `pattern` in a row, piece by piece; the first of those that are alike."""
    pieces = [p for p in re.split(r"\[.{0,100}?\]|[^\w.]+", pattern.removeprefix(REGULAR)) if p.strip(".")]

    def likeness(name: str) -> int:
        return sum(
            difflib.SequenceMatcher(None, piece, name, autojunk=False).find_longest_match().size for piece in pieces
        )

    return max(names, key=likeness, default="nothing here")
