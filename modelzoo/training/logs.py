"""The logs of a run: metrics.jsonl (what was computed), timing.jsonl (how fast), and TensorBoard's files.

What was computed is kept apart from how fast, so that metrics.jsonl of a resumed run equals the uninterrupted one's to
the byte. Each checkpoint holds the length and the hash of both: on resume they are cut back to that, and a log that is
no longer what was written is named, but ends no run.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

from pydantic import ConfigDict

from modelzoo.config.errors import UserError
from modelzoo.files import write_bytes
from modelzoo.reading import look, open_regular
from modelzoo.records import Record
from modelzoo.training.appending import is_there, open_append, set_aside, write_whole
from modelzoo.training.checkpoint_state import Count, LogFacts
from modelzoo.training.events import Events, name_cards
from modelzoo.training.lines import MAX_LINE, Log, parse_line, read_log
from modelzoo.training.run_folder import RunFolder
from modelzoo.training.trackers import Tracker

NO_RECORD = "is no record of a log"


class LogError(UserError):
    """A log cannot be written."""


class LogRecord(Record):
    """A line of a log: numbers of one step."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)  # a loss may be infinite
    __pydantic_extra__: dict[str, float | None]  # pyright: ignore[reportIncompatibleVariableOverride]  # pydantic's way

    step: Count
    kind: str  # train, validation, dev


class _Log:
    """One file of records, which grows by whole lines."""

    def __init__(self, path: str):
        self.path, self.unwritten = path, b""
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self.file: BinaryIO = open_append(path)
            self.file.seek(0)
            self.length, self.hash = 0, hashlib.sha256()
            while block := self.file.read(2**20):
                self._count(block)
        except OSError as e:
            raise LogError(f"{path}: cannot be written ({e.strerror})") from None

    def _count(self, data: bytes) -> None:
        self.length += len(data)
        self.hash.update(data)

    def append(self, record: Mapping[str, object], note: Callable[[str], None]) -> None:
        """Append a record. One that the file does not take is kept for the checkpoint.

        Raises:
            LogError: the file cannot be written.
        """
        line = (json.dumps(record) + "\n").encode()
        self._count(line)
        self.unwritten += line
        try:
            if not is_there(self.file, self.path):
                self._restore()
                note(f"restored   {self.path}: it was removed or replaced during the run")
            write_whole(self.file, self.path, self.unwritten)
        except OSError as e:
            raise LogError(
                f"{self.path}: cannot be written ({e.strerror}); free some space and run the same command again"
            ) from None
        self.unwritten = b""

    def _restore(self) -> None:
        """Write the file anew from the one that is open still, though it has no name any more."""
        self.file.seek(0)
        data = self.file.read(self.length - len(self.unwritten))
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        if look(self.path) is not None:
            set_aside(self.path)
        write_bytes(self.path, data)
        file = open_append(self.path)
        self.file.close()
        self.file = file

    @property
    def facts(self) -> LogFacts:
        return LogFacts(bytes=self.length, sha256=self.hash.hexdigest(), unwritten=self.unwritten.decode())


class Logs:
    """Append-only logs in `folder`, continuing after step `resume` (0: from the beginning); see `cut_back`.

    Args:
        events: the folder of TensorBoard's files; None writes none.
        note: is called with a line for what was lost or restored.

    Raises:
        LogError: a log cannot be written. TensorBoard's files are secondary: a line reports them.
    """

    def __init__(
        self,
        folder: RunFolder,
        resume: int,
        events: str | None,
        trackers: Sequence[Tracker] = (),
        note: Callable[[str], None] = lambda line: None,
    ):
        self._files = {"metrics": _Log(folder.metrics), "timing": _Log(folder.timing)}
        self._trackers, self._note = trackers, note
        self._events: Events | None = None
        if events is not None:
            with self._secondary():
                self._events = Events(events, resume)

    def write(self, step: int, kind: str, metrics: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """One record of `step`. `kind` is train or validation.

        Raises:
            LogError: a log cannot be written; the record is in `facts` all the same.
        """
        problems = []
        for name, values in (("metrics", metrics), ("timing", timing)):
            if values:
                try:
                    self._files[name].append({"step": step, "kind": kind, **values}, self._note)
                except LogError as e:
                    problems.append(e)
        named = {f"{kind}/{k}": v for k, v in {**metrics, **timing}.items()}
        if self._events is not None:
            with self._secondary():
                self._events.write(step, name_cards(kind, {**metrics, **timing}))
        for tracker in self._trackers:
            tracker.write(step, named)
        if problems:
            raise problems[0]

    @property
    def facts(self) -> dict[str, LogFacts]:
        """How long each log is now, by file name."""
        return {os.path.basename(log.path): log.facts for log in self._files.values()}

    def close(self) -> None:
        for log in self._files.values():
            with contextlib.suppress(OSError):  # write() has reported what could not be written
                log.file.close()
        if self._events is not None:
            with self._secondary():
                self._events.close()
        for tracker in self._trackers:
            tracker.close()

    @contextlib.contextmanager
    def _secondary(self) -> Iterator[None]:
        """Report what goes wrong with TensorBoard's files, and go on without them: metrics.jsonl has all numbers."""
        try:
            yield
        except Exception as e:  # whatever a foreign package raises
            self._events = None
            reason = " ".join(str(getattr(e, "strerror", None) or e).split())[:200] or type(e).__name__
            self._note(f"note       TensorBoard's files end here ({reason}); metrics.jsonl has all records")


class NoLogs(Logs):
    """Logs of a rank that writes none."""

    def __init__(self) -> None:
        self._files, self._trackers, self._events = {}, [], None

    def write(self, step: int, kind: str, metrics: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """Nothing: rank 0 writes the records of all."""


def read(path: str, fits: Callable[[dict], bool] = lambda record: True) -> Log:
    """The records of a metrics.jsonl or timing.jsonl; `fits` and errors as of `read_log`."""
    return read_log(path, LogRecord, NO_RECORD, fits)


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
    log = folder.read_launches()
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
