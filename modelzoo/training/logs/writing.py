"""The logs of a run as it writes them: metrics.jsonl (what was computed), timing.jsonl (how fast), TensorBoard's files.

What was computed is kept apart from how fast, so that metrics.jsonl of a resumed run equals the uninterrupted one's to
the byte. Each checkpoint holds the length and the hash of both (`cutting`).
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

from modelzoo.config.errors import UserError
from modelzoo.files import write_bytes
from modelzoo.reading import look
from modelzoo.training.checkpoints.state_json import LogFacts
from modelzoo.training.logs.appending import is_there, open_append, set_aside, write_whole
from modelzoo.training.logs.tensorboard import Events, name_cards
from modelzoo.training.logs.trackers import Tracker
from modelzoo.training.runs.folder import RunFolder


class LogError(UserError):
    """A log cannot be written."""


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
