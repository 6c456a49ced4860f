"""Opening files that are regular and not too large, and JSON that is not taken on trust. Imports nothing of ours.

A FIFO would wait for ever and /dev/zero never end; a size that a reader checks first cannot exhaust memory.
"""

import json
import os
import re
import stat
from io import BufferedReader
from typing import Any

MIB = 2**20
MAX_TEXT = 64 * MIB  # of a config, a manifest, a tokenizer: thousands of times what they are
_TOKENS = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)  # of JSON: brackets, and strings to pass over
MAX_DEPTH = 200  # of nested JSON; what this project reads has a dozen levels


def open_regular(path: str | os.PathLike, max_bytes: int | None = None) -> BufferedReader:
    """Open a file for reading, if it is a regular one of at most `max_bytes` bytes.

    Raises:
        OSError: there is no such file, it cannot be read, is a folder, a FIFO, a socket or a device, or is larger. Its
            `filename` is `path`, and its `strerror` the reason.
    """
    path = os.fspath(path)
    # O_NONBLOCK: a FIFO that nobody writes to would wait in open() itself
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(21, "is a folder", path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(22, "is not a regular file (a pipe, a socket or a device)", path)
        if max_bytes is not None and found.st_size > max_bytes:
            raise OSError(27, f"has {found.st_size:,} bytes; at most {max_bytes:,} are taken here", path)
        return os.fdopen(fd, "rb")
    except BaseException as e:
        os.close(fd)
        if isinstance(e, OSError) and e.filename is None:  # of fstat
            e.filename = path
        raise


def look(path: str | os.PathLike) -> os.stat_result | None:
    """What is at `path`, a link itself and not its target; None where nothing is. (`os.path.lexists` hides errors.)

    Raises:
        OSError: that cannot be seen.
    """
    try:
        return os.lstat(os.fspath(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def exists(path: str | os.PathLike) -> bool:
    """Whether anything is at `path`, be it a link that leads nowhere.

    Raises:
        OSError: that cannot be seen. `os.path.exists` would say no, and what is there would be passed over in silence.
    """
    return look(path) is not None


def read_bytes(path: str | os.PathLike, max_bytes: int = MAX_TEXT) -> bytes:
    """The bytes of a regular file of at most `max_bytes`.

    Raises:
        OSError: of `open_regular`.
    """
    with open_regular(path, max_bytes) as file:
        found = file.read(max_bytes + 1)  # it may grow while it is read
    if len(found) > max_bytes:
        raise OSError(27, f"has more than {max_bytes:,} bytes; no more are taken here", os.fspath(path))
    return found


def read_text(path: str | os.PathLike, max_bytes: int = MAX_TEXT) -> str:
    """The UTF-8 text of a regular file of at most `max_bytes`.

    Raises:
        OSError: of `open_regular`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, max_bytes).decode("utf-8")


def is_number(text: str, digits: int = 18) -> bool:
    """Whether a text is one to `digits` ASCII digits, which `int` takes: not "²", not "", and no 4,301 digits."""
    return len(text) <= digits and text.isascii() and text.isdigit()


def load_json(text: str | bytes, **options: Any) -> Any:
    """`json.loads` of a text from anywhere: deep nesting would overrun the stack where its limit was raised, and of a
    key that occurs twice the second value would win in silence.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or gives a key twice.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if text.count("[") + text.count("{") > MAX_DEPTH and _measure_depth(text) > MAX_DEPTH:
        raise ValueError("is nested too deeply")
    try:
        return json.loads(text, object_pairs_hook=_without_repeats, **options)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _measure_depth(text: str) -> int:
    """How deep brackets of a JSON text are nested, those in strings left out."""
    depth = deepest = 0
    for token in _TOKENS.findall(text):
        if token in ("[", "{"):
            depth += 1
            deepest = max(deepest, depth)
        elif token in ("]", "}"):
            depth -= 1
    return deepest


def parse_json(text: str | bytes, max_depth: int = MAX_DEPTH, undefined: bool = False, nonfinite: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        undefined: take NaN and infinities, which older results hold, for null.
        nonfinite: take them as the numbers that they are.

    Raises:
        ValueError: it is not JSON, is nested too deeply, gives a key twice, or holds half a surrogate pair. The
            message is one line.
    """
    constant = float if nonfinite else (lambda name: None) if undefined else _refuse_constant
    found = load_json(text, parse_constant=constant)
    _check_values(found, max_depth)
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"gives the key {twice[:40]!a} twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"holds {name}, which is not JSON")


def _check_values(value: Any, depth: int) -> None:
    """Refuse nesting below `depth` levels, and text that is no text (half a surrogate pair)."""
    if depth < 0:
        raise ValueError("is nested too deeply")
    if isinstance(value, str):
        _check_surrogates(value)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, str | list | dict):
                _check_values(item, depth - 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_surrogates(key)
            if isinstance(item, str | list | dict):
                _check_values(item, depth - 1)


def _check_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no text") from None
