"""JSONL and plain text to documents."""

from collections.abc import Iterator

from data_preprocessing.inputs import streams
from data_preprocessing.inputs.listing import strip_packing
from data_preprocessing.sources.article_ids import Ids, identify
from data_preprocessing.text.document import MAX_TEXT, Document, read_year, restore_cp1252, show, unreadable_record
from data_preprocessing.text.spellings import normalise_language, normalise_licence
from modelzoo.config.errors import UserError
from modelzoo.reading import load_json

MAX_LINE = 4 * MAX_TEXT  # bytes
MAX_PARTS = 3_000_000  # objects, lists and strings of a line; each takes some 150 bytes while it is read
BLANK = "\ufeff \t\r\n"


def documents(path: str, name: str, job, max_bytes: int) -> Iterator[Document]:
    """One document per JSON line; a .txt file is one document, or several between blank-line triples ("\\n\\n\\n").

    A line that is no JSON object with the text is an unreadable record.

    Raises:
        UserError: the file is damaged, or holds such a record and job.unreadable refuses it; the message names the
            line.
    """
    lines = list_lines(streams.unpacked(path, max_bytes))
    found = _text(lines, name) if strip_packing(path).endswith(".txt") else _records(lines, name, job)
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
            text = decode_line(line).removeprefix("\ufeff")
            if text.strip():
                yield number, _record(text, number, name, job)
        except RecursionError:
            yield number, "not JSON (nested too deeply)"
        except ValueError as e:
            yield number, str(e)


def _record(line: str, number: int, name: str, job) -> Document:
    if len(line) > MAX_PARTS and (parts := line.count("{") + line.count("[") + line.count('"') // 2) > MAX_PARTS:
        raise ValueError(f"a record of {parts:,} objects, lists and strings; at most {MAX_PARTS:,} are taken")
    try:
        record = load_json(line)
    except ValueError as e:
        raise ValueError(f"not JSON ({e})") from None
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, expected an object with {job.text_key!r}")
    pairs = job.objective.name == "prompt_completion"
    text = _string(record, job.completion_key if pairs else job.text_key)
    given = find_value(record, job.id_key)
    pmcid, pmid = _fact(record, job.pmcid_key), _fact(record, job.pmid_key)
    ids = identify(pmcid, pmid, "", "") if pmcid or pmid else _NO_IDS
    licence = _fact(record, job.licence_key) or (_fact(record, "license") if job.licence_key == "licence" else "")
    return Document(
        key=f"{name}:{number}" if given is None or given == "" else f"id:{given}",
        text=text if pairs else text.strip(BLANK),
        prompt=_string(record, job.prompt_key) if pairs else None,
        source=str(number),
        pmid=ids.pmid,
        pmcid=ids.pmcid,
        year=read_year(find_value(record, job.year_key)),
        language=",".join(map(normalise_language, _fact(record, job.language_key).split(","))),
        licence=normalise_licence(licence),
    )


_MISSING = object()
_NO_IDS = Ids("")


def find_value(record: dict, key: str, if_missing: object = None) -> object:
    """The value of a key, which may be a path through objects in objects: `content.text`."""
    if key in record:
        return record[key]
    if "." not in key:
        return if_missing
    value: object = record
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return if_missing
        value = value[part]
    return value


def _fact(record: dict, key: str) -> str:
    """A fact that is text or a number, or a list of such, joined by commas; "" for anything else."""
    value = find_value(record, key)
    if value is None or type(value) is str:
        return (value or "").strip()
    parts = value if isinstance(value, list) else [value]
    shown = (str(int(p)) if isinstance(p, float) and p.is_integer() else str(p) for p in parts if _is_fact(p))
    return ",".join(text for part in shown if (text := part.strip()))


def _is_fact(value: object) -> bool:
    return type(value) in (str, int, float) and bool(value)


def _string(record: dict, key: str) -> str:
    value = find_value(record, key, _MISSING)
    if value is _MISSING:
        raise ValueError(
            f"no key {key!r} (it has {', '.join(sorted(record)[:8])}); name it with --set text_key=KEY "
            "(or prompt_key, completion_key)"
        )
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is a {type(value).__name__}, expected a string")
    return restore_cp1252(value)


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
        if text := restore_cp1252("\n".join(map(decode_line, lines))).strip(BLANK):
            yield first, Document(key=f"{name}:{first}", text=text, source=str(first))
    except ValueError as e:
        yield first, str(e)


def list_lines(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes | None]]:
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


def decode_line(line: bytes | None) -> str:
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
