"""What became of one record: its line in documents/*.tsv.gz, found by key, PMID, PMCID, id or DOI, in words."""

import os
from collections.abc import Iterator

from data_preprocessing.inputs import streams
from data_preprocessing.reports.report import explain_reason
from modelzoo.config.errors import UserError

TABLE, LINE = 2**36, 2**24  # bytes of a table unpacked, and of one line
NAMES = ("key", "pmid", "pmcid")
PREFIXES = ("id:", "doi:")  # of keys that are the record's own, JSONL's id_key or an article's DOI


def describe_record(out: str, name: str) -> str:
    """The fate of every record of an output folder that has `name` for its key, PMID, PMCID, id or DOI.

    Raises:
        UserError: there is no such record, or a table cannot be read.
    """
    folder = os.path.join(out, "documents")
    tables = sorted(n for n in os.listdir(folder) if n.endswith(".tsv.gz")) if os.path.isdir(folder) else []
    if not tables:
        raise UserError(f"{folder}: holds no *.tsv.gz; --document takes the folder OUT that a job wrote, not OUT/train")
    found = [_describe(row, table) for table in tables for row in _find(os.path.join(folder, table), name)]
    if not found:
        raise UserError(f"--document {name}: is no key, PMID, PMCID, id or DOI of a record in {folder}")
    return "\n\n".join(found)


def _find(path: str, name: str) -> Iterator[dict[str, str]]:
    """The rows of a table that have `name`."""
    lines = _split(path)
    head = next(lines, b"").decode("utf-8", "replace").split("\t")
    if not {*NAMES, "reason", "split", "tokens"} <= set(head):
        raise UserError(f"{path}: is no table of documents")
    wanted = name.encode()
    for line in lines:
        if wanted in line:
            row = dict(zip(head, line.decode("utf-8", "replace").split("\t"), strict=False))
            if name in (row.get(key) for key in NAMES) or row["key"] in (p + name for p in PREFIXES):
                yield row


def _split(path: str) -> Iterator[bytes]:
    """Lines of a packed file, without their ends."""
    rest = b""
    for chunk in streams.unpacked(path, TABLE):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE:
            raise UserError(f"{path}: holds a line of over {LINE >> 20} MiB")
        yield from whole


def _describe(row: dict[str, str], table: str) -> str:
    values = {**row, "reason": f"{row.get('reason', '')} ({explain_reason(row.get('reason', ''))})"}
    lines = [f"{row['key']} in documents/{table}"]
    lines += [f"  {key:<10}{x}" for key, x in values.items() if x and key != "key"]
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)
