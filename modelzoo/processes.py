"""The processes of one launch: who they are, by torchrun's or Slurm's variables, and starting them on one machine.

No torch: the command that starts them only waits.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from modelzoo import host, interrupts
from modelzoo.config.errors import UserError
from modelzoo.reading import is_number

PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # where this package is
NOTICE = 10.0  # seconds in which the others notice and report that one has failed; then those that wait get a SIGTERM
GRACE = 15.0  # seconds that the others have to end after one has ended; then they are killed
POLL = 0.02  # seconds between looks at them
PROGRAM = "from modelzoo.cli import main; sys.exit(main())"  # run.py, installed or not
_BOUND = "import signal, sys; from modelzoo import host; host.end_with_parent({parent}, signal.SIGTERM); "
_PASSED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT")  # the signals that end a run
_AT_ONCE = {signal.SIGINT, signal.SIGTERM}  # a second one of these does not wait for a step's end
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID")


class World(NamedTuple):
    """One process's place among those of its launch."""

    rank: int
    size: int
    local: int  # its number on this machine
    address: str  # of rank 0
    port: int

    def environment(self) -> dict[str, str]:
        """The variables by which torch.distributed knows the same."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def find_world(env: Mapping[str, str] = os.environ) -> World | None:
    """This process's place, as torchrun (RANK, WORLD_SIZE) or Slurm's srun (SLURM_PROCID) says; None if it is alone.

    Raises:
        UserError: the variables contradict each other.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if missing := [n for n in names if not env.get(n)]:
            raise UserError(
                f"set: {', '.join(n for n in names if n in env)}; not set: {', '.join(missing)}: start with "
                "torchrun, or unset them"
            )
        rank, size, port = (_number(env, n) for n in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        if not port < 65536:
            raise UserError(f"MASTER_PORT={port}: a port is at most 65535; start with torchrun, or unset it")
        if not rank < size:
            raise UserError(f"RANK={rank} is not below WORLD_SIZE={size}: start with torchrun, or unset them")
        local = _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank
        return World(rank, size, local, env["MASTER_ADDR"], port) if size > 1 else None
    if "SLURM_STEP_ID" in env and _number(env, "SLURM_STEP_NUM_TASKS", 1) > 1:
        address = env.get("MASTER_ADDR") or _first_host(env.get("SLURM_STEP_NODELIST", "localhost"))
        port = _number(env, "MASTER_PORT", 20000 + _number(env, "SLURM_JOB_ID", 0) % 20000)
        rank, size = _number(env, "SLURM_PROCID"), _number(env, "SLURM_STEP_NUM_TASKS")
        return World(rank, size, _number(env, "SLURM_LOCALID", 0), address, port)
    return None


def find_rank() -> tuple[int, int]:
    """This process's rank, and how many there are: 0 of 1 if it is alone, or where `find_world` would refuse."""
    try:
        world = find_world()
    except UserError:
        return 0, 1
    return (world.rank, world.size) if world is not None else (0, 1)


def has_own_store(env: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher itself is where ranks meet, as torchrun is, and not rank 0."""
    return env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def end_with_launcher(env: Mapping[str, str] = os.environ) -> None:
    """If torchrun started this process, let its end be a SIGTERM: its ranks would go on for themselves otherwise."""
    if "TORCHELASTIC_RUN_ID" in env and "RANK" in env:
        host.end_with_parent(os.getppid(), signal.SIGTERM)


def leave_ranks(env: Mapping[str, str]) -> dict[str, str]:
    """The variables for a process that is none of this launch's ranks."""
    return {name: value for name, value in env.items() if name not in _VARIABLES}


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name, "")
    if default is not None and not text:
        return default
    if not is_number(text, 9):
        raise UserError(f"{name}={text[:40]}: takes a number from 0; start with torchrun, or unset it")
    return int(text)


def _first_host(nodes: str) -> str:
    """The first of Slurm's list: `gpu[03-07,9],cpu1` is gpu03."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


def start_ranks(arguments: Sequence[str], count: int, program: str = PROGRAM) -> int:
    """Run a command in `count` processes on this machine, as torchrun would, and wait for them.

    Signals that end a run go on to all of them, and a second Ctrl-C or SIGTERM ends them at once. Once one has ended,
    the others have GRACE seconds to do so. If this process is killed, they end as by SIGTERM.

    Args:
        arguments: of the command line. program: what runs them, in Python, with `sys` at hand.

    Returns:
        The exit code of rank 0 if that failed by itself, else of the first that did, or 0.

    Raises:
        UserError: no process can be started.
    """
    threads = str(max(1, host.available_cores() // count))
    with socket.create_server(("127.0.0.1", 0)) as server:  # a port that is free now
        port = server.getsockname()[1]
    children: list[subprocess.Popen] = []
    command = [sys.executable, "-c", _BOUND.format(parent=os.getpid()) + program, *arguments]
    passed = [getattr(signal, name) for name in _PASSED if hasattr(signal, name)]
    waiting: list[int] = []
    before = {
        s: signal.signal(s, lambda number, _: waiting.append(number))
        for s in passed
        if signal.getsignal(s) != signal.SIG_IGN  # nohup's
    }
    try:
        for rank in range(count):
            world = World(rank, count, rank, "127.0.0.1", port)
            path = os.pathsep.join([PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])])
            env = {
                "OMP_NUM_THREADS": threads,
                "TORCH_CPP_LOG_LEVEL": "ERROR",
                **os.environ,
                "PYTHONPATH": path,
                **world.environment(),
            }
            children.append(subprocess.Popen(command, env=env, start_new_session=True))
        return _wait(children, waiting)
    except OSError as e:
        raise UserError(f"process {len(children)} of {count} cannot be started ({e.strerror})") from None
    finally:
        for child in children:
            _kill(child)
            child.wait()
        for number, old in before.items():
            signal.signal(number, old)


def _wait(children: Sequence[subprocess.Popen], waiting: list[int]) -> int:
    """Wait for all; pass on signals; report who was killed, and end those that wait for it, or hang."""
    until, notice, passed, hung = float("inf"), float("inf"), set[int](), set[int]()
    running, failed, ended = dict(enumerate(children)), dict[int, int](), set[int]()
    while running:
        while waiting:
            number = waiting.pop(0)
            for child in running.values():
                child.send_signal(number)
            if number in _AT_ONCE and passed & _AT_ONCE:  # who waits for another rank does not see it
                until = min(until, time.monotonic() + interrupts.PATIENCE)
            passed.add(number)
        for rank, child in list(running.items()):
            if (code := child.poll()) is None:
                continue
            del running[rank]
            until = min(until, time.monotonic() + GRACE)
            if code < 0 and rank not in hung | ended and -code not in passed:
                _report(f"rank {rank} was killed by {signal.Signals(-code).name}")
            if code:
                notice = min(notice, time.monotonic() + NOTICE)
                failed[rank] = code if code > 0 else 128 - code
        if time.monotonic() > notice and not ended:
            ended = set(running)
            for child in running.values():
                child.send_signal(signal.SIGTERM)
        if time.monotonic() > until and not hung:
            hung = set(running)
            for rank, child in running.items():
                if not passed & _AT_ONCE:
                    _report(f"rank {rank} did not end within {GRACE:.0f} s of another, and was killed")
                _kill(child)
        time.sleep(POLL)
    own = {rank: code for rank, code in failed.items() if rank not in ended}
    return own.get(0) or next(iter(own.values()), 0)


def _report(line: str) -> None:
    print(f"error: {line}", file=sys.stderr, flush=True)


def _kill(child: subprocess.Popen) -> None:
    """End a rank, and with it what it has started: it leads a session of its own."""
    if child.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
