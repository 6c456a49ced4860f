"""One example of a task, and what makes it of a file's row."""

import json
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.files import HEADER, read_rows


class Example(NamedTuple):
    """`fields` fill the template; `gold` is what the task's metrics compare (None where it is not known)."""

    id: str
    fields: dict[str, str]
    gold: Any


def require_field(row: dict[str, Any], name: str, where: str) -> Any:
    """A column that must be there."""
    if name not in row:
        hint = "" if where.rpartition(":")[0].endswith(".jsonl") else f"; {HEADER}"
        raise UserError(f"{where}: has no column {name!r} (it has {', '.join(map(str, row))[:200]}){hint}")
    return row[name]


def find_id(row: dict[str, Any], name: str, number: int) -> str:
    """A row's id: its column `name`, or where it has none the row's number."""
    found = row.get(name)
    return str(number if found is None else found)


def as_text(value: Any) -> str:
    """A column as text for the template: lists are joined by spaces, null is no text."""
    if isinstance(value, list | tuple):
        return " ".join(as_text(v) for v in value if v is not None)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def read_examples(path: str, make: Callable[[int, str, dict], Example]) -> list[Example]:
    """The examples of a .jsonl, .tsv or .csv file.

    Args:
        make: the example of a row's number (from 1), the words that name its place, and its fields.

    Raises:
        UserError: of `read_rows`, `make` and `check_unique`.
    """
    return check_unique((make(number, where, row) for number, (where, row) in enumerate(read_rows(path), 1)), path)


def check_unique(examples: Iterable[Example], path: str) -> list[Example]:
    """The examples as a list.

    Raises:
        UserError: two have one id, or there is none.
    """
    found: dict[str, Example] = {}
    for e in examples:
        if e.id in found:
            raise UserError(f"{path}: id {e.id[:80]} occurs twice; remove one of them")
        found[e.id] = e
    if not found:
        raise UserError(f"{path}: holds no example")
    return list(found.values())
