"""launches.jsonl: a line for each command that trained in a run's folder, as it is read. No torch."""

from typing import Annotated

from pydantic import Field

from modelzoo.records import Record
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
