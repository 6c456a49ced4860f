"""The library that lets file operations fail (`shim.c`): compiled once, loaded before libc, armed in a fork."""

import ctypes
import enum
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.faults.child import Child, Outcome

SOURCE = Path(__file__).with_name("shim.c")


class Mode(enum.IntEnum):
    """What happens at the n-th operation; the numbers are those of shim.c."""

    COUNT = 0  # nothing: operations are counted
    FAIL = 1  # it returns an error
    KILL_BEFORE = 2
    KILL_IN = 3  # a write writes half of its bytes, and the process is killed
    KILL_AFTER = 4
    SHORT = 5  # a read or write does half of what was asked, which is allowed
    SIGNAL = 6  # the process gets a signal, and the operation goes on


class Fault(NamedTuple):
    """One fault.

    Attributes:
        number: of the operation, from 1; 0 for none.
        error: the errno of FAIL, the signal of SIGNAL.
        persistent: whether all later operations fail, too.
        again: SIGNAL's second operation; 0 for none.
        stats: whether stat, access and their like count as operations.
    """

    mode: Mode = Mode.COUNT
    number: int = 0
    error: int = 0
    persistent: bool = False
    again: int = 0
    stats: bool = False


class Report(NamedTuple):
    """What the library saw: operations and the letter of each, how often it acted, and what it acted on first."""

    count: int
    kinds: str
    fired: int
    operation: str
    path: str
    outside: str


class _Shared(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_long), ("fired", ctypes.c_long), ("outside", ctypes.c_long),
        ("operation", ctypes.c_char * 32), ("path", ctypes.c_char * 1024), ("where", ctypes.c_char * 1024),
        ("kinds", ctypes.c_char * (1 << 16)),
    ]  # fmt: skip


def compile_shim(folder: Path) -> Path:
    """The library in `folder`, compiled unless it is there.

    Raises:
        modelzoo.kernels.compiled.build.Unavailable: there is no compiler, or it fails.
    """
    from modelzoo.kernels.compiled import build

    library = folder / "shim.so"
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        command, _ = build._compiler()
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work, "shim.so")
            build._run([*command, "-x", "c", "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(made), "-ldl"], work)
            os.replace(made, library)
    return library


def is_loaded() -> bool:
    """Whether this process has the library."""
    return hasattr(ctypes.CDLL(None), "faults_arm")


def arm(fault: Fault, watched: list[Path], writable: list[Path]) -> None:
    """Arm this process and its forks: operations on files below `watched` count, writes not below `writable` are noted.

    A process without the library is left alone.
    """
    if is_loaded():
        join = lambda folders: ":".join(str(f) for f in folders).encode()
        ctypes.CDLL(None).faults_arm(
            join(watched), join(writable), int(fault.mode), ctypes.c_long(fault.number), fault.error,
            int(fault.persistent), ctypes.c_long(fault.again), int(fault.stats),
        )  # fmt: skip


def begin_worker() -> None:
    """Give this process counters of its own, apart from those of the process that it was forked from."""
    if is_loaded():
        ctypes.CDLL(None).faults_begin()


def report() -> Report:
    """What was seen since the last `arm` of this process or of a fork, which may have died."""
    call = ctypes.CDLL(None).faults_report
    call.restype = ctypes.POINTER(_Shared)
    found = call().contents
    text = lambda name: getattr(found, name).decode(errors="replace")
    return Report(
        found.count, text("kinds"), found.fired, text("operation"), text("path"), text("where") if found.outside else ""
    )


def run_with_fault(
    fault: Fault, program: str, words, folder: Path, inputs: list[Path], seconds: float = 60.0, prepare=lambda: None
) -> tuple[Outcome, Report]:
    """A command with one fault on the files of `folder` and `inputs`; it may write below `folder` alone."""
    temporary = folder.with_name(f"{folder.name}.tmp")

    def begin() -> None:
        prepare()
        arm(fault, [folder, *inputs], [folder, temporary])

    outcome = Child(program, words, folder, prepare=begin).wait(seconds)
    found = report()
    return outcome._replace(outside=found.outside), found
