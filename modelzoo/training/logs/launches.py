"""launches.jsonl: a line for each command that trained in a run's folder, read, and cleared for another. No torch."""

import json
import os
import stat
from typing import Annotated

from pydantic import Field

from modelzoo.files import write_bytes
from modelzoo.reading import look, open_regular
from modelzoo.records import Record
from modelzoo.training.logs.appending import set_aside
from modelzoo.training.logs.lines import Log, read_log
from modelzoo.training.runs.folder import RunFolder


class Begun(Record):
    """What a run first started from."""

    path: str
    states: list[str]


class Launch(Record):
    """A line of launches.jsonl: one command that trained in the folder. Older ones lack some keys."""

    command: str = ""
    time: str = ""
    device: str = ""
    torch: str = ""
    notes: Annotated[list[str], Field(default_factory=list)]
    from_step: Annotated[int, Field(ge=0)] = 0
    run: str | None = None
    start: Begun | None = None
    changes: Annotated[dict[str, list[str]], Field(default_factory=dict)]


def read_launches(folder: RunFolder) -> Log:
    """launches.jsonl, oldest line first; empty where there is none.

    Raises:
        UserError: it is there, and cannot be read.
    """
    return read_log(folder.launches, Launch, "is no launch of a run") if folder.begun else Log([])


def clear_launches(folder: RunFolder) -> str | None:
    """Leave the lines of launches.jsonl that are whole, so that another may follow: a kill leaves half a line.

    Returns:
        A line where the file is not what was written; what it was is kept next to it.

    Raises:
        OSError: it cannot be read, or written anew.
    """
    path = folder.launches
    if (found := look(path)) is None:
        return None
    if not stat.S_ISREG(found.st_mode):
        return f"damaged    {path}: is no file; it is {set_aside(path)} now, and the log goes on without it"
    log = read_launches(folder)
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if log.note is None and file.read(1) in (b"\n", b""):
            return None
    kept = set_aside(path) if log.note is not None else None
    write_bytes(path, "".join(json.dumps(record) + "\n" for record in log.records).encode())
    if log.note is None:
        return None
    problem = log.note.removeprefix("note").strip()
    return f"damaged    {problem}; it is {kept} now, and the log goes on with the records that are whole"
