"""Shards held once to the SHA-256 that their manifests record: at once while they are small, else during the run.

A flipped bit in a shard's index, or a shard that was exchanged after its manifest was written, changes what a run
learns and breaks nothing. What was held is not remembered from one launch to the next: a second's work, or a quarter of
a core for a while, is less than the doubt whether a file is the one that was held.
"""

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from modelzoo.config.errors import UserError
from modelzoo.data import format as f
from modelzoo.data import storage
from modelzoo.data.files import list_recorded
from modelzoo.data.folder import UNRECORDED, Recorded, open_shard, read_manifest, read_shards
from modelzoo.reading import open_regular

AT_ONCE = 1 << 29  # bytes of all shards: 0.3 s where the processor has instructions for SHA, else 1 to 2 s
BLOCK = 1 << 22  # bytes hashed at a time: the hash lets other threads run, and between blocks it can be stopped
IDLE = 3.0  # times as long as a block took, the thread rests: the loop wants the cores and the disk
Batch = TypeVar("Batch")


class Stopped(Exception):
    """A hash was stopped before its end."""


def hash_file(path: str, pause: Callable[[float], bool] | None = None) -> str:
    """SHA-256 of a file's bytes.

    Args:
        pause: is called with the seconds that each block took; it may wait, and returns whether to stop.

    Raises:
        UserError: it cannot be read. Stopped: `pause` asked for it.
    """
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            begin = time.perf_counter()
            while block := file.read(BLOCK):
                digest.update(block)
                if pause is not None and pause(time.perf_counter() - begin):
                    raise Stopped
                begin = time.perf_counter()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    return digest.hexdigest()


def hash_values(path: str, pause: Callable[[float], bool] | None = None) -> str:
    """SHA-256 of a shard's values in order, as `data_sha256` records it; arguments and errors as in `hash_file`."""
    digest = hashlib.sha256()
    file, data = open_shard(path)
    with file:
        step = max(1, BLOCK // max(1, data.dtype.itemsize * data[:1].size))
        for start in range(0, data.shape[0], step):
            begin = time.perf_counter()
            with storage.explaining(path, "an example cannot be read; make this shard again"):
                digest.update(data[start : start + step].tobytes())
            if pause is not None and pause(time.perf_counter() - begin):
                raise Stopped
    return digest.hexdigest()


def check_hash(path: str, recorded: Recorded, pause: Callable[[float], bool] | None = None) -> None:
    """Refuse a shard that is not what is recorded of it. Without a record there is nothing to refuse.

    Raises:
        UserError: it differs, or cannot be read. Stopped: of `hash_file`.
    """
    if recorded.sha256 is not None:
        same = hash_file(path, pause) == recorded.sha256
    elif recorded.data_sha256 is not None:
        same = hash_values(path, pause) == recorded.data_sha256
    else:
        return
    if not same:
        raise UserError(
            f"{path}: is not what its {f.MANIFEST} records (SHA-256): damaged, or changed after the manifest was "
            "written; restore this shard, or make its folder again"
        )


class Holding:
    """The shards of one data section that are still to be held to what is recorded of them."""

    def __init__(self, shards: Iterable[tuple[str, Recorded]] = ()):
        self.waiting = [(path, recorded) for path, recorded in shards if recorded.has_hash]
        self.total, self.noted = len(self.waiting), False
        self.failure: UserError | None = None

    def hold_small(self) -> None:
        """Hold all shards now, if together they have at most `AT_ONCE` bytes.

        Raises:
            UserError: of `check_hash`.
        """
        if sum(_size(path) for path, _ in self.waiting) <= AT_ONCE:
            self._hold(None)
            self.check()

    def check(self) -> None:
        """Raise what the thread found, if it found something.

        Raises:
            UserError: of `check_hash`.
        """
        if self.failure is not None:
            raise self.failure

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, while a thread holds the shards that wait; what it finds is raised between two of them.

        The thread begins after the first batch: processes that read data are there by then, and inherit no lock that
        it holds.

        Raises:
            UserError: of `check_hash`.
        """
        ended, thread = threading.Event(), None
        try:
            for batch in batches:
                self.check()
                yield batch
                if thread is None and self.waiting:
                    thread = self._start(ended)
            self.check()
        finally:
            ended.set()
            if (close := getattr(batches, "close", None)) is not None:  # a backend's: it gives back what it holds
                close()
            if thread is not None:
                thread.join(10)  # it ends within a block
                self._note_rest()

    def _start(self, ended: threading.Event) -> threading.Thread | None:
        def pause(seconds: float) -> bool:
            return ended.wait(IDLE * seconds)

        def hold() -> None:
            with contextlib.suppress(OSError, AttributeError):  # Linux: a thread has a priority of its own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            self._hold(pause)

        thread = threading.Thread(target=hold, name="hold shards", daemon=True)  # it keeps no process from ending
        try:
            thread.start()
        except RuntimeError:  # no more threads: the loop waits instead
            self._hold(None)
            return None
        return thread

    def _hold(self, pause: Callable[[float], bool] | None) -> None:
        while self.waiting and self.failure is None:
            path, recorded = self.waiting[0]
            try:
                check_hash(path, recorded, pause)
            except Stopped:
                return
            except UserError as e:
                self.failure = e
            except Exception as e:  # in a thread nothing else would tell of it
                self.failure = UserError(f"{path}: cannot be held to its {f.MANIFEST} ({storage.explain(e)})")
            else:
                self.waiting.pop(0)

    def _note_rest(self) -> None:
        if self.waiting and self.failure is None and not self.noted:
            self.noted = True
            print(
                f"note       {len(self.waiting)} of {self.total} shards were not yet compared with the SHA-256 of "
                "their manifest when the batches ended; `python -m data_preprocessing verify FOLDER` does it",
                file=sys.stderr,
                flush=True,
            )


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0  # reading it says why


def hold_shards(files: Sequence[str]) -> tuple[Holding, list[str]]:
    """Hold the shards of a data section, small ones at once.

    Returns:
        What is still to be held, and lines about what is not held.

    Raises:
        UserError: of `check_hash`.
    """
    notes = []
    for folder in dict.fromkeys(map(os.path.dirname, files)):
        recorded = {s.file: s for s in read_shards(folder)}
        used = [os.path.basename(p) for p in files if os.path.dirname(p) == folder]
        unheld = sum(not recorded.get(name, UNRECORDED).has_hash for name in used)
        if not recorded and not read_manifest(folder):
            notes.append(f"note       {folder}: has no {f.MANIFEST}; its shards are not compared with a SHA-256")
        elif unheld:
            notes.append(f"note       {folder}: {unheld} of {len(used)} shards have no SHA-256 in {f.MANIFEST}")
    holding = Holding(list_recorded(files))
    holding.hold_small()
    return holding, notes
