"""One example of a task, and files of them: JSON lines, TSV and CSV with column names in their first line."""

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from modelzoo.config.errors import UserError


class Example(NamedTuple):
    """`fields` fill the template; `gold` is what the task's metrics compare (None where it is not known)."""

    id: str
    fields: dict[str, str]
    gold: Any


def read_text(path: str, hint: str = "") -> str:
    """A UTF-8 file.

    Raises:
        UserError: it is not there (followed by `hint`), or not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{hint}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None


def read_json(path: str, hint: str = "") -> Any:
    """A JSON file; a key that occurs twice in one object is an error, since the second would win in silence."""
    try:
        return json.loads(read_text(path, hint), object_pairs_hook=lambda pairs: _distinct(path, pairs))
    except ValueError as e:
        raise UserError(f"{path}:{getattr(e, 'lineno', 1)}: is not valid JSON: {e}") from None


def _distinct(path: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"{path}: id {key} occurs twice; remove one of them")
        found[key] = value
    return found


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", columns by name) for each row of a .jsonl, .tsv or .csv file."""
    text = read_text(path)
    if path.endswith(".jsonl"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"{path}:{number}", _object(f"{path}:{number}", line)
        return
    if not path.endswith((".tsv", ".csv")):
        raise UserError(f"{path}: is neither .jsonl nor .tsv nor .csv")
    tab = path.endswith(".tsv")
    # In TSV a quote is a character of the text, as in the files of HoC and BLUE.
    reader = csv.reader(text.splitlines(keepends=True), delimiter="\t" if tab else ",", quoting=3 if tab else 0)
    names = next(reader, None)
    if names is None:
        return
    if len(set(names)) < len(names):
        raise UserError(f"{path}:1: a column name occurs twice")
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(names):
            raise UserError(f"{path}:{reader.line_num}: has {len(cells)} columns, the first line names {len(names)}")
        yield f"{path}:{reader.line_num}", dict(zip(names, cells, strict=True))


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as e:
        raise UserError(f"{where}: is not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: is not a JSON object")
    return value


def require_field(row: dict[str, Any], name: str, where: str) -> Any:
    """A column that must be there."""
    if name not in row:
        raise UserError(f"{where}: has no column {name!r} (it has {', '.join(row)})")
    return row[name]


def as_text(value: Any) -> str:
    """A column as text for the template: lists are joined by spaces."""
    if isinstance(value, list | tuple):
        return " ".join(map(as_text, value))
    return value if isinstance(value, str) else json.dumps(value)


def check_unique(examples: Iterable[Example], path: str) -> list[Example]:
    """The examples as a list.

    Raises:
        UserError: two have one id, or there is none.
    """
    found: dict[str, Example] = {}
    for e in examples:
        if e.id in found:
            raise UserError(f"{path}: id {e.id} occurs twice; remove one of them")
        found[e.id] = e
    if not found:
        raise UserError(f"{path}: holds no example")
    return list(found.values())
