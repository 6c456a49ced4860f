"""Where the calls of one step run: in this process, in worker processes, or on Ray. Nothing else differs.

A worker gets one call at a time through a pipe of its own. Its end, whatever ended it, closes the pipe: it is noticed,
named and never waited for. Workers never see Ctrl-C or SIGTERM; this process ends them, and they end with it.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from modelzoo import host, interrupts
from modelzoo.config.errors import UserError

Call = tuple
GRACE = 5.0  # seconds for an idle worker to end by itself


def run(
    function: Callable,
    calls: list[Call],
    workers: int,
    engine: str = "local",
    describe: Callable[[Call], str] = lambda call: str(call[-1]),
) -> Generator[tuple[Call, Any], None, None]:
    """Yield (arguments, result) as calls finish. What a call raises is raised here, and stops the rest.

    Args:
        describe: what a call works on, for the message about a worker that died in it.

    Raises:
        UserError: a worker died, or Ray is missing or cannot be reached.
    """
    if engine == "ray":
        yield from _ray(function, calls, workers)
        return
    team = _start_workers(min(workers, len(calls))) if workers > 1 and len(calls) > 1 else []
    if not team:
        host.keep_freed_memory()  # a twentieth of a job's time
        for call in calls:
            yield call, function(*call)
        return
    try:
        yield from _share_out(function, calls, team, describe)
    except BaseException:
        for worker in team:
            worker.process.kill()
        raise
    finally:
        for worker in team:
            worker.end()


class _Worker:
    """A process that makes the calls that it gets through a pipe, and answers through it."""

    def __init__(self):
        # spawn: a clean process, the same on every platform; fork would copy threads' locks
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, os.getpid()), daemon=True)
        self.call: Call | None = None
        try:
            self.process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            other.close()  # so that the worker's end is the end of the pipe

    def begin(self, function: Callable, call: Call) -> None:
        self.call = call
        with contextlib.suppress(OSError):  # it died; `take_answer` finds out
            self.pipe.send((function, call))

    def take_answer(self, describe: Callable[[Call], str]) -> tuple[Call, Any]:
        """The call, and what it returned.

        Raises:
            UserError: the worker died. Otherwise, what the call raised.
        """
        call, self.call = self.call, None
        assert call is not None
        try:
            done, answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(GRACE)
            raise UserError(
                f"a worker process {_explain_end(self.process.exitcode)} at {describe(call)}; what was finished "
                "is kept: run the same command again, with fewer --workers if memory is short"
            ) from None
        if not done:
            raise answer
        return call, answer

    def end(self) -> None:
        self.pipe.close()
        self.process.join(GRACE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()


def _explain_end(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was killed by {name}" + (" (most often for want of memory)" if name == "SIGKILL" else "")
    return f"ended with code {code}"


def _start_workers(count: int) -> list[_Worker]:
    """As many workers as the system allows; fewer than asked for are reported in a line."""
    from multiprocessing import resource_tracker

    team: list[_Worker] = []
    try:
        if hasattr(resource_tracker, "ensure_running"):
            resource_tracker.ensure_running()  # every spawn needs it, and its start would undo the shield
        for _ in range(count):
            with interrupts.shielding_children():
                team.append(_Worker())
    except (OSError, ImportError, NotImplementedError) as e:  # no more processes, files or memory
        have = f"{len(team)} work" if len(team) > 1 else "one process does the work"
        print(f"{count} workers cannot be started here ({e}): {have}", file=sys.stderr, flush=True)
        if len(team) < 2:
            for worker in team:
                worker.end()
            return []
    except BaseException:
        for worker in team:
            worker.process.kill()
        raise
    return team


def _share_out(
    function: Callable, calls: list[Call], team: list[_Worker], describe: Callable[[Call], str]
) -> Iterator[tuple[Call, Any]]:
    waiting = iter(calls)
    for worker, call in zip(team, waiting, strict=False):  # there are no more workers than calls
        worker.begin(function, call)
    while busy := {worker.pipe: worker for worker in team if worker.call is not None}:
        for pipe in wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index] `wait` was given these pipes alone
            finished = worker.take_answer(describe)
            if (following := next(waiting, None)) is not None:
                worker.begin(function, following)
            yield finished


def _serve(pipe: Connection, parent: int) -> None:
    """Make calls until the pipe ends; runs in a worker."""
    host.end_with_parent(parent)
    host.keep_freed_memory()
    while True:
        try:
            function, call = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, function(*call)
        except BaseException as e:
            answer = False, _prepare_error(e)
        try:
            pipe.send(answer)
        except OSError:
            return


def _prepare_error(error: BaseException) -> BaseException:
    """The error as it travels: with its traceback as a note, and of a type that can be sent."""
    if isinstance(error, UserError | OSError | MemoryError):
        return error
    text = "".join(traceback.format_exception(error))
    try:
        if not isinstance(error, Exception):  # SystemExit, a Rust panic: here it is a fault of the call
            raise TypeError
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"in a worker process:\n{text}")
    return error


def _ray(function: Callable, calls: list[Call], workers: int) -> Iterator[tuple[Call, Any]]:
    try:
        import ray
    except ImportError:
        raise UserError(
            "--engine ray needs the extra: pip install 'mediswift-trainer[ray]' (or use --engine local)"
        ) from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, **local)
        except (ConnectionError, RuntimeError, ValueError) as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"--engine ray: cannot start or reach Ray ({reason}); see RAY_ADDRESS") from None
    remote = ray.remote(max_retries=2)(function)
    pending = {}
    queue = list(reversed(calls))
    while queue or pending:
        while queue and len(pending) < 4 * workers:  # a bounded number in flight: 38 M citations are 1,300 calls
            call = queue.pop()
            pending[remote.remote(*call)] = call
        done, _ = ray.wait(list(pending), num_returns=1)
        for reference in done:
            call = pending.pop(reference)
            try:
                yield call, ray.get(reference)
            except ray.exceptions.RayTaskError as e:
                if isinstance(e.cause, UserError | OSError | MemoryError):
                    raise e.cause from None
                raise
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as e:
                reason = " ".join(str(e).split())[:200]
                raise UserError(f"a Ray worker died ({reason}); what was finished is kept: run it again") from None
