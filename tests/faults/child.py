"""Real commands in forks of one warmed process: `modelzoo.cli.main` without the seconds that importing torch takes.

`warm_up` once, then `run` as often as needed. The process that forks never computes with torch itself, so that no
thread of its own is missing in a fork.
"""

import contextlib
import importlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

PROGRAMS = ("modelzoo", "data_preprocessing")
PLAIN = {  # one thread, no compiler, no colours, whatever the machine: a command does the same every time
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1",
    "MEDISWIFT_KERNELS": "torch", "COLUMNS": "120", "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8",
    "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled",
}  # fmt: skip
WARM = (
    "h5py", "torch", "data_preprocessing.jobs.run", "data_preprocessing.tokens.repack",
    "data_preprocessing.inspection.verify",
    "data_preprocessing.sources.synthetic", "data_preprocessing.downloading.download",
    "data_preprocessing.downloading.articles",
    "modelzoo.finetuning.finetune", "modelzoo.interop.exporting.export", "modelzoo.interop.importing.import_checkpoint",
    "modelzoo.scoring.score",
    "modelzoo.scoring.prompt_search",
    "modelzoo.study.reports.report", "modelzoo.study.reports.compare", "modelzoo.study.execution.run",
    "modelzoo.tasks.eval", "modelzoo.tasks.pretrain", "modelzoo.training.logs.trackers", "tensorboard.compat.proto",
    "tokenizers", "matplotlib",
)  # fmt: skip
MEMORY = 4 << 30  # bytes of address space beyond what the forking process holds
SECONDS = 60.0


class Outcome(NamedTuple):
    """How a command ended.

    Attributes:
        code: its exit code; None if a signal ended it.
        signal: the number of that signal; None if it ended by itself.
        out, err: what it printed.
        seconds: how long it took.
        timed_out: whether it was killed for taking too long.
        fault: the last lines of the traceback that it wrote to a file (exit code 70); else empty.
        outside: files that it wrote outside its folders, as far as the shim is loaded; else empty.
    """

    code: int | None
    signal: int | None
    out: str
    err: str
    seconds: float
    timed_out: bool
    fault: str = ""
    outside: str = ""


def warm_up() -> None:
    """Import what commands import, on one thread."""
    os.environ.update(PLAIN)
    for name in WARM:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)


class Child:
    """A command that runs in a fork of this process.

    Args:
        program: one of PROGRAMS.
        words: its command line.
        folder: where it runs. Its temporary files and home are in a folder next to this one, named FOLDER.tmp.
        memory: bytes of address space that it may take beyond this process's.
        prepare: is called in the fork just before the command begins.
    """

    def __init__(
        self, program: str, words: Sequence[object], folder: Path, memory: int = MEMORY,
        prepare: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.temporary = folder.with_name(f"{folder.name}.tmp")
        self.temporary.mkdir(exist_ok=True, mode=0o700)
        self.streams = [os.memfd_create(name) for name in ("out", "err")]
        self.begun = time.monotonic()
        self.status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run(program, [str(w) for w in words], folder, memory, prepare)

    def _run(self, program: str, words: list[str], folder: Path, memory: int, prepare: Callable[[], None]) -> None:
        code = 99
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            for number, stream in enumerate(self.streams, 1):
                os.dup2(stream, number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
            os.environ.update(PLAIN, TMPDIR=str(self.temporary), HOME=str(self.temporary))
            tempfile.tempdir = None
            os.chdir(folder)
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory,) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            sys.argv = [program, *words]
            if program == "modelzoo":
                from modelzoo.cli import main
            else:
                from data_preprocessing.cli import main
            prepare()
            code = main(words)
            threading._shutdown()  # a thread that never ends would keep the command from ending
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:  # nothing of the process that forked may run on here
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(BaseException):
                    stream.flush()
            os._exit(code or 0)

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def send(self, number: int) -> None:
        """A signal to the command alone, if it still runs."""
        if not self.poll():
            os.kill(self.pid, number)

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Its end; it and all that it started are killed after `seconds`.

        Those are seconds of computing, or eight times as many of waiting: the machine may have other work.
        """
        timed_out, pause = False, 0.001
        while not self.poll():
            past = time.monotonic() - self.begun
            if past > seconds and not timed_out and (past > 8 * seconds or self._computed() > seconds):
                timed_out = True
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(0.01, pause * 1.2)
        took = time.monotonic() - self.begun
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # workers that outlive it
        out, err = (_read_all(s) for s in self.streams)
        code = os.waitstatus_to_exitcode(self.status or 0)
        fault = self._read_fault() if code == 70 else ""
        return Outcome(code if code >= 0 else None, -code if code < 0 else None, out, err, took, timed_out, fault)

    def _computed(self) -> float:
        """Seconds that the command has computed."""
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{self.pid}/stat") as file:
            user, system = file.read().rpartition(")")[2].split()[11:13]
            return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def _read_fault(self) -> str:
        """The last lines of the newest traceback file, and the file's removal."""
        found = sorted(self.temporary.glob("mediswift-*/fault-*.txt"))
        lines = found[-1].read_text(errors="replace").strip().splitlines() if found else []
        shutil.rmtree(self.temporary, ignore_errors=True)
        frames = [line.strip() for line in lines if line.lstrip().startswith('File "')]
        return " | ".join([*frames[-2:], *lines[-1:]])[:600]


def run(
    program: str, words: Sequence[object], folder: Path, seconds: float = SECONDS, memory: int = MEMORY,
    prepare: Callable[[], None] = lambda: None,
) -> Outcome:  # fmt: skip
    """Run a command to its end; the arguments are those of `Child` and `wait`."""
    return Child(program, words, folder, memory, prepare).wait(seconds)


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _read_all(stream: int) -> str:
    size = min(os.fstat(stream).st_size, 1 << 20)
    data = os.pread(stream, size, 0)
    os.close(stream)
    return data.decode(errors="replace")
