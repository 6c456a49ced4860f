"""Names of runs for people: in tables, pictures and pages, whatever their folders are called."""

import hashlib
import textwrap
import unicodedata
from collections.abc import Sequence

from modelzoo.redact import redact_text

MOST = 80  # characters


def show_name(text: str) -> str:
    """A name as one line of printable characters, without secrets; a long one is cut in its middle."""
    text = text.encode("utf-8", "backslashreplace").decode()  # a file name may hold bytes that are no text
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    name = redact_text(" ".join(kept.split())) or "unnamed"
    return name if len(name) <= MOST else f"{name[: MOST // 2]}…{name[1 - MOST // 2 :]}"


def list_names(names: Sequence[str], most: int = 6) -> str:
    """Names in one line: all of a few, else the first and how many more there are."""
    shown = ", ".join(map(show_name, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def label_line(name: str) -> str:
    """A name as matplotlib's label: it leaves those that begin with _ out of legends."""
    return f" {name}" if name.startswith("_") else name


def wrap_label(name: str, width: int = 16) -> str:
    """A name in lines of at most `width` characters, to the left of a picture."""
    return "\n".join(textwrap.wrap(name, width, break_on_hyphens=True))


def key_of(name: str) -> str:
    """A name for files and ids, of letters, digits and _; names that differ have keys that differ."""
    key = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)[:60]
    return key if key == name else f"{key}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
