"""A run's logs as a resumed run goes on with them: cut back to what its checkpoint holds of them.

A log that is no longer what was written is named, but ends no run.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Mapping
from typing import BinaryIO

from modelzoo.config.errors import UserError
from modelzoo.files import write_bytes
from modelzoo.reading import look, open_regular
from modelzoo.training.checkpoints.state_json import LogFacts
from modelzoo.training.logs.appending import open_append, set_aside, write_whole
from modelzoo.training.logs.lines import MAX_LINE, NO_RECORD, LogRecord, parse_line
from modelzoo.training.runs.folder import RunFolder


def cut_back(folder: RunFolder, step: int, facts: Mapping[str, LogFacts]) -> list[str]:
    """Cut a run's logs back to what they held at step `step` (0: nothing). No log, whatever became of it, ends a run.

    Args:
        facts: by file name, of the checkpoint; older ones have none, and logs are cut by their records' steps.

    Returns:
        A line for each log that is not what was written; what it was is kept next to it.

    Raises:
        OSError: a log cannot be written.
    """
    found = (_cut(path, step, facts.get(os.path.basename(path))) for path in (folder.metrics, folder.timing))
    return [line for line in found if line is not None]


def _cut(path: str, step: int, facts: LogFacts | None) -> str | None:
    end = facts.unwritten.encode() if facts is not None else b""
    if look(path) is None:
        if facts is None or not facts.bytes:
            return None
        write_bytes(path, end)
        return f"damaged    {path}: is missing; its records until step {step} are lost"
    try:
        with open_append(path) as file:
            if step == 0:
                file.truncate(0)
                return None
            if facts is not None and _hash(file, facts.bytes - len(end), end) == facts.sha256:
                file.truncate(facts.bytes - len(end))
                write_whole(file, path, end)
                return None
        with open_regular(path) as file:
            lines = file.read().splitlines(keepends=True)
    except OSError as e:
        if (found := look(path)) is None or stat.S_ISREG(found.st_mode):
            raise
        aside = set_aside(path)
        write_bytes(path, end)
        return f"damaged    {path}: {e.strerror}; it is {aside} now, and the log goes on without it"
    records = [(line, record) for line in lines if (record := _try(line)) is not None]
    text = b"".join(line for line, record in records if record["step"] <= step)
    text += b"" if text.endswith(end) else end
    others = len(lines) - len(records) - (not lines[-1:] or not lines[-1].endswith(b"\n"))
    if facts is None and others <= 0:  # an older checkpoint's
        write_bytes(path, text)
        return None
    kept = set_aside(path)
    write_bytes(path, text)
    what = f"{others} of its lines are no records" if others > 0 else "it is not what was written"
    return f"damaged    {path}: {what}; it is {kept} now, and the log goes on with the records that are whole"


def _try(line: bytes) -> dict | None:
    if line.endswith(b"\n") and len(line) <= MAX_LINE:
        with contextlib.suppress(UserError):
            return parse_line(line, LogRecord, "", NO_RECORD)
    return None


def _hash(file: BinaryIO, length: int, end: bytes) -> str:
    """The SHA-256 of the first `length` bytes of a file, and of `end`."""
    digest, left = hashlib.sha256(), length
    file.seek(0)
    while left > 0 and (block := file.read(min(left, 2**20))):
        digest.update(block)
        left -= len(block)
    digest.update(end)
    return digest.hexdigest()
