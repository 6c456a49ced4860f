"""Files of examples: UTF-8 text, JSON, JSON lines, and TSV and CSV with column names in their first line."""

import csv
from collections.abc import Iterator
from typing import Any

from modelzoo import records
from modelzoo.config.errors import UserError
from modelzoo.reading import MIB, parse_json

MAX_DATA = 256 * MIB  # of a task's file; the largest known ones have a few MiB
HEADER = "the first line is taken for the columns' names: put one before the data if the file has none"


def read_text(path: str, hint: str = "") -> str:
    """A UTF-8 file, its line ends as \\n. A \\r ends a line before \\n, and by itself in a file that has no \\n.

    Raises:
        UserError: it is not there (followed by `hint`), is no regular file, is larger than MAX_DATA, or not UTF-8.
    """
    text = records.read_text(path, f"no such file{hint}", MAX_DATA, encoding="utf-8-sig")
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def read_json(path: str, hint: str = "") -> Any:
    """A JSON file; a key that occurs twice in one object is an error, since the second would win in silence."""
    return parse_value(read_text(path, hint), f"{path}:")


def parse_value(text: str, where: str) -> Any:
    """The value of a JSON text.

    Args:
        where: what errors begin with; a number of a line follows if it ends in a colon.

    Raises:
        UserError: it is no JSON.
    """
    try:
        return parse_json(text)
    except ValueError as e:
        found = " ".join(str(e).split())[:160]
        where = f"{where}{getattr(e, 'lineno', 1)}" if where.endswith(":") else where
        raise UserError(f"{where}: is not valid JSON: {found}") from None


def split_lines(text: str) -> list[str]:
    """The lines of a text, which end at \\n alone: a line separator (U+2028) or form feed inside a text ends none."""
    return text.removesuffix("\n").split("\n") if text else []


def parse_lines(text: str, path: str) -> Iterator[tuple[str, Any]]:
    """("file:line", value) of each line of JSON lines that is not blank."""
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_value(line, where)


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", columns by name) for each row of a .jsonl, .tsv or .csv file."""
    text = read_text(path)
    if path.endswith(".jsonl"):
        for where, value in parse_lines(text, path):
            if not isinstance(value, dict):
                raise UserError(f"{where}: is not a JSON object")
            yield where, value
        return
    if not path.endswith((".tsv", ".csv")):
        raise UserError(f"{path}: is neither .jsonl nor .tsv nor .csv")
    yield from _rows(path, _split_tsv(text) if path.endswith(".tsv") else _split_csv(path, text))


def _split_tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    """Each line's number and cells. A quote is a character of the text, as in the files of HoC and BLUE."""
    for number, line in enumerate(split_lines(text), 1):
        if line:
            yield number, line.split("\t")


def _split_csv(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """The same of CSV, by each row's last line; a quote that does not end would swallow the rows after it: `strict`."""
    csv.field_size_limit(MAX_DATA)  # of this process; a cell may be a whole article
    reader = csv.reader((line + "\n" for line in split_lines(text)), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as e:
        raise UserError(f"{path}:{reader.line_num}: is not a row of CSV ({e})") from None


def _rows(path: str, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    _, names = next(rows, (0, []))
    if len(set(names)) < len(names):
        raise UserError(f"{path}:1: a column name occurs twice; {HEADER}")
    for number, cells in rows:
        if len(cells) != len(names):
            raise UserError(f"{path}:{number}: has {len(cells)} columns, the first line names {len(names)}")
        yield f"{path}:{number}", dict(zip(names, cells, strict=True))
