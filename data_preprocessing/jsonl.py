"""JSONL and plain text to documents."""

from collections.abc import Iterator

from data_preprocessing import streams
from data_preprocessing.records import MAX_TEXT, Document, read_year, restore_cp1252, show, unreadable_record
from modelzoo.config.errors import UserError
from modelzoo.reading import load_json

MAX_LINE = 4 * MAX_TEXT  # bytes
BLANK = "\ufeff \t\r\n"


def documents(path: str, name: str, job, max_bytes: int) -> Iterator[Document]:
    """One document per JSON line; a .txt file is one document, or several between blank-line triples ("\\n\\n\\n").

    A line that is no JSON object with the text is an unreadable record.

    Raises:
        UserError: the file is damaged, or holds such a record and job.unreadable refuses it; the message names the
            line.
    """
    lines = _lines(streams.unpacked(path, max_bytes))
    found = _text(lines, name) if path.lower().endswith((".txt", ".txt.gz")) else _records(lines, name, job)
    for number, document in found:
        if isinstance(document, Document):
            yield document
        elif job.unreadable == "refuse":
            raise UserError(f"{path}:{number}: {show(document)}")
        else:
            yield unreadable_record(f"{name}:{number}", str(number), document)


def _records(lines: Iterator[tuple[int, bytes | None]], name: str, job) -> Iterator[tuple[int, Document | str]]:
    """(line, its document or why there is none) of every line that is not blank."""
    for number, line in lines:
        try:
            text = _decode(line).removeprefix("\ufeff")
            if text.strip():
                yield number, _record(text, number, name, job)
        except RecursionError:
            yield number, "not JSON (nested too deeply)"
        except ValueError as e:
            yield number, str(e)


def _record(line: str, number: int, name: str, job) -> Document:
    try:
        record = load_json(line)
    except ValueError as e:
        raise ValueError(f"not JSON ({e})") from None
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, expected an object with {job.text_key!r}")
    pairs = job.objective.name == "prompt_completion"
    text = _string(record, job.completion_key if pairs else job.text_key)
    given = record.get(job.id_key)
    return Document(
        key=f"id:{given}" if given is not None else f"{name}:{number}",
        text=text if pairs else text.strip(BLANK),
        prompt=_string(record, job.prompt_key) if pairs else None,
        source=str(number),
        pmid=_fact(record, "pmid"),
        pmcid=_fact(record, "pmcid"),
        year=read_year(record.get("year")),
        language=_fact(record, "language"),
        licence=_fact(record, "licence") or _fact(record, "license"),
    )


def _fact(record: dict, key: str) -> str:
    """A fact that is text or a number; "" for anything else."""
    value = record.get(key)
    return str(value) if value and type(value) in (str, int) else ""


def _string(record: dict, key: str) -> str:
    if key not in record:
        raise ValueError(
            f"no key {key!r} (it has {', '.join(sorted(record)[:8])}); name it with --set text_key=KEY "
            "(or prompt_key, completion_key)"
        )
    if record[key] is None:
        return ""
    if not isinstance(record[key], str):
        raise ValueError(f"{key!r} is a {type(record[key]).__name__}, expected a string")
    return restore_cp1252(record[key])


def _text(lines: Iterator[tuple[int, bytes | None]], name: str) -> Iterator[tuple[int, Document | str]]:
    """(first line, document or why it cannot be read) of every part of a plain text."""
    first, size, blanks = 1, 0, 0
    gathered: list[bytes] = []
    why = ""
    for number, line in lines:
        blanks = 0 if line is None or line.decode(errors="replace").strip() else blanks + 1
        if blanks == 2 and (gathered or why):
            yield from _part(gathered, first, why, name)
            gathered, size, why = [], 0, ""
            continue
        if not gathered and not why:
            first = number
        size += MAX_LINE if line is None else len(line)
        if size >= MAX_LINE:
            gathered, why = [], f"a document of over {MAX_TEXT >> 20} MB; part documents by two blank lines"
        elif not why and line is not None:
            gathered.append(line)
    yield from _part(gathered, first, why, name)


def _part(lines: list[bytes], first: int, why: str, name: str) -> Iterator[tuple[int, Document | str]]:
    try:
        if why:
            raise ValueError(why)
        if text := restore_cp1252("\n".join(map(_decode, lines))).strip(BLANK):
            yield first, Document(key=f"{name}:{first}", text=text, source=str(first))
    except ValueError as e:
        yield first, str(e)


def _lines(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """(number, line) of every line; None for one of over MAX_LINE bytes, which is never held."""
    number, size = 0, 0
    parts: list[bytes] = []
    for chunk in chunks:
        head, end, rest = chunk.partition(b"\n")
        size += len(head)
        if size > MAX_LINE:
            parts.clear()
        else:
            parts.append(head)
        if not end:
            continue
        *whole, rest = rest.split(b"\n")
        number += 1
        yield number, b"".join(parts) if size <= MAX_LINE else None
        for line in whole:
            number += 1
            yield number, line
        parts, size = [rest], len(rest)
    if size:
        yield number + 1, b"".join(parts) if size <= MAX_LINE else None


def _decode(line: bytes | None) -> str:
    """The text of a line.

    Raises:
        ValueError: it is too long or not UTF-8.
    """
    if line is None:
        raise ValueError(f"a line of over {MAX_LINE >> 20} MB; not a record")
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as e:
        raise ValueError(f"not UTF-8 ({e.reason} at byte {e.start} of the line)") from None
