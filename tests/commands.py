"""run.py in a process of its own that is forked from the tests': it starts without the seconds of importing torch."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import modelzoo.tasks.pretrain  # noqa: F401 - torch, for the forks to have
from modelzoo.cli import main
from modelzoo.study.execution import run as study

REPO = Path(__file__).resolve().parents[1]


class Forked:
    """`python run.py ARGUMENTS` as subprocess.Popen would run it: the same methods, as far as they are used here."""

    def __init__(self, arguments: Sequence[str], out: IO | None = None, env: Mapping[str, str] = os.environ):
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._run(arguments, out, env)

    def _run(self, arguments, out, env) -> None:
        code = 1
        try:
            os.setsid()
            # As a terminal starts a command, however the tests were started (in the background, or by nohup).
            signal.signal(signal.SIGINT, signal.default_int_handler)
            names = ("SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGXCPU")
            for number in (getattr(signal, name) for name in names):
                signal.signal(number, signal.SIG_DFL)
            target = os.open(os.devnull, os.O_WRONLY) if out is None else out.fileno()
            for number in (1, 2):
                os.dup2(target, number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
            sys.argv = ["run.py", *arguments]
            variables = dict(env)  # a copy: `env` may be os.environ itself
            os.environ.clear()
            os.environ.update(variables)
            code = main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:  # nothing of the tests' process may run on here: no further tests, no exit handlers
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 300.0) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGKILL)
                raise TimeoutError(f"a command did not end within {timeout:.0f} s")
            time.sleep(0.002)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def start(arguments: Sequence[object], out: IO | None = None, env: Mapping[str, str] = os.environ):
    """run.py with these arguments, its output to `out` (an open file) or nowhere.

    Elsewhere than on Linux system libraries may not outlive a fork, and a whole new interpreter starts.
    """
    words = [str(a) for a in arguments]
    if sys.platform == "linux":
        return Forked(words, out, env)
    target = subprocess.DEVNULL if out is None else out
    command = [sys.executable, str(REPO / "run.py"), *words]
    return subprocess.Popen(command, stdout=target, stderr=target, env=dict(env), start_new_session=True)


def fork_runs_of_studies(monkeypatch) -> None:
    """Let the runs of a study in this process start by a fork."""

    def popen(command, stdout, stderr, env, start_new_session):
        assert command[:3] == [sys.executable, "-c", study.RUN.format(parent=os.getpid())]
        assert stderr is stdout and start_new_session
        return start(command[3:], stdout, env)

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(Popen=popen))
    monkeypatch.setattr(study, "POLL", 0.02)


def kill(process: "Forked | subprocess.Popen") -> int:
    """SIGKILL to the command and its workers, as far as they still run; its exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()
