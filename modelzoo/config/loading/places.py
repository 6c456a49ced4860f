"""Where a config has what turned out wrong: the key and line of a path, the line of a key, added to the message."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from modelzoo.config.errors import UserError
from modelzoo.config.loading.yaml12 import NOWHERE, Document, Path
from modelzoo.reading import is_number

_KEY = re.compile(r"trainer(?:\.\w+)+(?=[: ])")
# keys that name folders and files: one may be called as a choice of another key is (none)
_HOLDS_PATHS = re.compile(r"dir|path|root|file|checkpoint$|tokenizer|data$")


@contextlib.contextmanager
def naming_places(doc: Document, flags: Mapping[str, str | None] = MappingProxyType({})) -> Iterator[None]:
    """Add to an error about a path or a key, raised in the body, where `doc` names it: the key, its file and line.

    Args:
        flags: of the command line, with their values: they win over keys, and one of the same value is named instead.

    Raises:
        UserError: the one raised, of its own class and exit code.
        OSError: the one raised.
    """
    try:
        yield
    except UserError as e:
        lines = [line + _describe(line, doc, flags) for line in str(e).split("\n")]
        e.args = ("\n".join(lines),)
        raise
    except OSError as e:
        if isinstance(e.filename, str | os.PathLike):
            e.strerror = f"{e.strerror or e}{_describe(f'{os.fspath(e.filename)}:', doc, flags)}"
        raise


def _describe(line: str, doc: Document, flags: Mapping[str, str | None]) -> str:
    """` (KEY, FILE:LINE)` of the longest value that is the path at the beginning of `line`, or a folder above it, or
    ` (FLAG)` where it is a flag's; of a key there, ` (FILE:LINE)`.
    """
    if named := _KEY.match(line):
        mark = str(doc.mark(tuple(int(k) if is_number(k) else k for k in named[0].split("."))))
        return f" ({mark})" if mark != NOWHERE and mark not in line else ""
    found = [
        (len(value), any(isinstance(key, str) and _HOLDS_PATHS.search(key) for key in path), path)
        for path, value in _texts(doc.data, ())
        if _begins(line, value)
    ]
    if not found:
        return ""
    length, _, path = max(found)
    given = [flag for flag, value in flags.items() if value and len(value) >= length and _begins(line, value)]
    if given:
        return "" if given[0] in line else f" ({given[0]})"
    key, mark = ".".join(map(str, path)), str(doc.mark(path))
    return "" if key in line or mark in line else f" ({key}, {mark})"


def _begins(line: str, value: str) -> bool:
    return bool(value) and line.startswith(value) and line[len(value.rstrip(os.sep)) :][:1] in (os.sep, ":")


def _texts(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, below in value.items():
            yield from _texts(below, (*path, key))
    elif isinstance(value, list):
        for i, below in enumerate(value):
            yield from _texts(below, (*path, i))
