"""Prompts from the command line, a file or standard input. No torch."""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.reading import MAX_TEXT, parse_json
from modelzoo.records import read_text

STDIN = "-"
FIELD = "prompt"


class Prompt(NamedTuple):
    """A text to go on from. `where` names it in messages; `row` is the JSON object that it came in."""

    text: str
    where: str
    row: dict[str, Any] | None = None


def read_prompts(texts: Sequence[str], file: str | None, field: str | None, whole: bool) -> list[Prompt]:
    """The prompts of a command.

    Args:
        texts: given on the command line.
        file: JSONL by its name, or text; "-" is standard input, which is text.
        field: of a JSONL line, that holds the prompt.
        whole: take a text file for one prompt; else each of its lines that is not blank is one.

    Raises:
        UserError: both or neither are given, a line is no object with that field, or there is no prompt.
    """
    if texts and file is not None:
        raise UserError("--prompt: does not go with --file; put all prompts into the file")
    jsonl = file is not None and file.endswith(".jsonl")
    for flag, given, takes in (("--field", field, jsonl), ("--whole", whole, file is not None and not jsonl)):
        if given and not takes:
            raise UserError(f"{flag}: is for a --file of {'JSON lines (.jsonl)' if flag == '--field' else 'text'}")
    if file is None:
        found = [Prompt(text, f"--prompt {i}" if len(texts) > 1 else "--prompt") for i, text in enumerate(texts, 1)]
    elif jsonl:
        found = _read_rows(file, field or FIELD)
    else:
        name = "standard input" if file == STDIN else file
        text = _read_stdin() if file == STDIN else read_text(file, "no such file", encoding="utf-8-sig")
        text = text.replace("\r\n", "\n")
        if whole:
            found = [Prompt(text, name)] if text else []
        else:
            lines = enumerate(text.split("\n"), 1)
            found = [Prompt(line, f"{name}:{number}") for number, line in lines if line.strip()]
    if not found:
        raise UserError(f"{file if file not in (None, STDIN) else 'standard input'}: holds no prompt")
    for prompt in found:
        check_text(prompt)
    return found


def _read_rows(file: str, field: str) -> list[Prompt]:
    found = []
    for number, line in enumerate(read_text(file, "no such file", encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            row = parse_json(line)
        except ValueError as e:
            raise UserError(f"{where}: is not valid JSON ({' '.join(str(e).split())[:120]})") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: is not a JSON object")
        if field not in row:
            has = ", ".join(row)[:120] or "none"
            raise UserError(f"{where}: has no field {field!r} (it has: {has}); name the prompts' field with --field")
        if not isinstance(row[field], str):
            raise UserError(f"{where}: {field}: is not a text")
        found.append(Prompt(row[field], where, row))
    return found


def _read_stdin() -> str:
    """All of standard input.

    Raises:
        UserError: it is too long, or not UTF-8.
    """
    data = sys.stdin.buffer.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise UserError(f"standard input: has more than {MAX_TEXT:,} bytes; no more are taken here")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"standard input: is not UTF-8 text (byte {e.start})") from None


def check_text(prompt: Prompt) -> None:
    """Refuse what the command line's bytes may hold and text may not."""
    try:
        prompt.text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{prompt.where}: is not UTF-8 text") from None
