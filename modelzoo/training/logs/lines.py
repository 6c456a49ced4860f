"""The logs of a run's folder as they are read: records of one schema, and a line about what is none. No torch.

Whoever reads metrics.jsonl, timing.jsonl or launches.jsonl passes over what is no record of it, and reports it.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import ConfigDict

from modelzoo.config.errors import UserError
from modelzoo.reading import open_regular, parse_json
from modelzoo.records import Record, check_record
from modelzoo.training.checkpoints.state_json import Count

MAX_LINE = 2**20  # bytes; a record has some hundred
NO_RECORD = "is no record of a log"


class Log(NamedTuple):
    """The records of a log, in its order; `note` names the first line that is none, and how many there are."""

    records: list[dict[str, Any]]
    note: str | None = None


class LogRecord(Record):
    """A line of a log: numbers of one step."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)  # a loss may be infinite
    __pydantic_extra__: dict[str, float | None]  # pyright: ignore[reportIncompatibleVariableOverride]  # pydantic's way

    step: Count
    kind: str  # train, validation, dev


def read_log(
    path: str, schema: type[Record], if_other: str, fits: Callable[[dict[str, Any]], bool] = lambda record: True
) -> Log:
    """The lines of a log that are records of `schema`. A half-written last line, which a kill leaves, is no fault.

    Args:
        if_other: what a line is that is none, after its place.
        fits: whether a record of the schema is one that the reader can use.

    Raises:
        UserError: there is no such log, or it cannot be read.
    """
    found, problems, number = [], [], 1
    for line in _list_lines(path):
        try:
            record = parse_line(line, schema, f"{path}:{number}", if_other)
            if not fits(record):
                raise UserError(f"{path}:{number}: {if_other}")
            found.append(record)
        except UserError as e:
            problems += [str(e)] if line.endswith(b"\n") else []
        number += line.endswith(b"\n")
    if not problems:
        return Log(found)
    which = f"{len(problems):,} such lines are" if len(problems) > 1 else "it is"
    return Log(found, f"note       {problems[0]}; {which} left out")


def read_records(path: str, fits: Callable[[dict], bool] = lambda record: True) -> Log:
    """The records of a metrics.jsonl or timing.jsonl; `fits` and errors as of `read_log`."""
    return read_log(path, LogRecord, NO_RECORD, fits)


def parse_line(line: bytes, schema: type[Record], where: str, if_other: str) -> dict[str, Any]:
    """The record that a line holds, with its keys in their order.

    Raises:
        UserError: it holds none.
    """
    try:
        found = parse_json(line, nonfinite=True)  # a loss may be infinite; what may not, the schema refuses
    except ValueError as e:
        raise UserError(f"{where}: {if_other} ({' '.join(str(e).split())[:80]})") from None
    check_record(found, schema, where, if_other)
    return found


def _list_lines(path: str) -> Iterator[bytes]:
    """The lines of a file; one of over MAX_LINE bytes in pieces."""
    try:
        with open_regular(path) as file:
            while line := file.readline(MAX_LINE):
                yield line
    except FileNotFoundError:
        raise UserError(f"{path}: no such log") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
