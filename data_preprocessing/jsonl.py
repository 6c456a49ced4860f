"""JSONL and plain text to documents."""

import json
from collections.abc import Iterator

from data_preprocessing import streams
from data_preprocessing.records import Document
from modelzoo.config.errors import UserError

MAX_LINE = 256 << 20


def documents(path: str, name: str, job, max_bytes: int) -> Iterator[Document]:
    """One document per JSON line; a .txt file is one document, or several between blank-line triples ("\\n\\n\\n").

    Raises:
        UserError: a line that is no JSON object or lacks the key; the message names file and line.
    """
    lines = _lines(streams.unpacked(path, max_bytes), path)
    if path.lower().endswith((".txt", ".txt.gz")):
        yield from _text(lines, name)
        return
    pairs = job.objective.name == "prompt_completion"
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as e:
            raise UserError(f"{where}: not JSON ({e})") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: a JSON {type(record).__name__}, expected an object with {job.text_key!r}")
        text = _string(record, job.completion_key if pairs else job.text_key, where)
        given = record.get(job.id_key)
        yield Document(
            key=f"id:{given}" if given is not None else f"{name}:{number}",
            text=text if pairs else _strip(text),
            prompt=_string(record, job.prompt_key, where) if pairs else None,
            source=str(number),
            pmid=str(record.get("pmid") or ""),
            pmcid=str(record.get("pmcid") or ""),
            year=int(record["year"]) if str(record.get("year", "")).isdigit() else 0,
            language=str(record.get("language") or ""),
            licence=str(record.get("licence") or record.get("license") or ""),
        )


def _string(record: dict, key: str, where: str) -> str:
    if key not in record:
        raise UserError(
            f"{where}: no key {key!r} (it has {', '.join(sorted(record)[:8])}); name it with --set text_key=KEY "
            "(or prompt_key, completion_key)"
        )
    if not isinstance(record[key], str):
        raise UserError(f"{where}: {key!r} is a {type(record[key]).__name__}, expected a string")
    return record[key]


def _strip(text: str) -> str:
    return text.strip("\ufeff \t\r\n")


def _text(lines: Iterator[tuple[int, str]], name: str) -> Iterator[Document]:
    first, gathered, blanks = 1, [], 0
    for number, line in lines:
        blanks = 0 if line.strip() else blanks + 1
        if blanks == 2 and gathered:
            if text := _strip("\n".join(gathered)):
                yield Document(key=f"{name}:{first}", text=text, source=str(first))
            gathered = []
            continue
        if not gathered:
            first = number
        gathered.append(line)
    if text := _strip("\n".join(gathered)):
        yield Document(key=f"{name}:{first}", text=text, source=str(first))


def _lines(chunks: Iterator[bytes], path: str) -> Iterator[tuple[int, str]]:
    number, rest = 0, b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE:
            raise UserError(f"{path}:{number + len(whole) + 1}: a line of over {MAX_LINE >> 20} MB; not JSONL")
        for line in whole:
            number += 1
            yield number, _decode(line, path, number)
    if rest:
        yield number + 1, _decode(rest, path, number + 1)


def _decode(line: bytes, path: str, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError as e:
        raise UserError(f"{path}:{number}: not UTF-8 ({e.reason} at byte {e.start} of the line)") from None
