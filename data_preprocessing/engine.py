"""Where the calls of one step run: in this process, in a pool of processes, or on Ray. Nothing else differs."""

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from modelzoo.config.errors import UserError


def run(function: Callable, calls: list[tuple], workers: int, engine: str = "local") -> Iterator[tuple[tuple, object]]:
    """Yield (arguments, result) as calls finish. A UserError of a call is raised here and stops the rest."""
    if engine == "ray":
        yield from _ray(function, calls, workers)
    elif workers > 1 and len(calls) > 1 and (pool := _pool(min(workers, len(calls)))):
        yield from _pooled(pool, function, calls)
    else:
        for call in calls:
            yield call, function(*call)


def _pool(workers: int) -> ProcessPoolExecutor | None:
    """A pool, or None where the system has no semaphores to share work by, which a line reports."""
    # spawn: a clean process per worker, the same on every platform; fork would copy threads' locks.
    context = multiprocessing.get_context("spawn")
    try:
        return ProcessPoolExecutor(workers, mp_context=context)
    except (OSError, ImportError, NotImplementedError) as e:  # /dev/shm is missing, full or closed
        print(f"no pool of {workers} workers here ({e}): one process does the work", file=sys.stderr, flush=True)
        return None


def _pooled(pool: ProcessPoolExecutor, function: Callable, calls: list[tuple]) -> Iterator[tuple[tuple, object]]:
    try:
        pending = {pool.submit(function, *call): call for call in calls}
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                call = pending.pop(future)
                yield call, future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (out of memory, or killed); what was finished is kept: run the same "
            "command again, with fewer --workers if memory is short"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ray(function: Callable, calls: list[tuple], workers: int) -> Iterator[tuple[tuple, object]]:
    try:
        import ray
    except ImportError:
        raise UserError(
            "--engine ray needs the extra: pip install 'mediswift-trainer[ray]' (or use --engine local)"
        ) from None
    if not ray.is_initialized():
        import os

        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"num_cpus": workers, "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, configure_logging=False, **local)
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
                if isinstance(e.cause, UserError):
                    raise UserError(str(e.cause)) from None
                raise
