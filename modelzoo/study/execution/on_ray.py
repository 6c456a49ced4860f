"""A study's settings as Ray tasks: on this machine, or on the cluster of $RAY_ADDRESS if all nodes see the folder."""

import os
import sys
from collections.abc import Callable

from modelzoo.config.errors import UserError
from modelzoo.redact import redact_text


def run(function: Callable, calls: list[tuple], target: str) -> list[str]:
    """Call `function` with each of `calls` in a task of its own; returns the names of runs that failed.

    Args:
        function: returns the label of what it did and the runs that failed in it.
        target: GPU gives each task one; else a task takes one CPU, and its run one thread.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs the extra: pip install 'mediswift-trainer[ray]' (or use --share)") from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        local = {} if address else {"include_dashboard": False}
        ray.init(address=address, log_to_driver=False, configure_logging=False, **local)
    here = {"working_dir": os.getcwd(), "threads": "1" if target != "GPU" else None}
    remote = ray.remote(num_cpus=1, num_gpus=1 if target == "GPU" else 0, max_retries=2)(_in_place)
    asked = {remote.remote(function, call, here): number for number, call in enumerate(calls, 1)}
    failed, pending, total = [], list(asked), len(asked)
    while pending:
        (done,), pending = ray.wait(pending, num_returns=1)
        try:
            label, bad = ray.get(done)
        except Exception as e:  # a worker that died, or what the setting raised: the others still run
            label = f"setting {asked[done]}"
            bad = [f"{label} ({redact_text((str(e).strip().splitlines() or [type(e).__name__])[-1])[:200]})"]
        failed += bad
        print(f"{total - len(pending)}/{total} settings  {label}" + (f"  FAILED: {', '.join(bad)}" if bad else ""),
              file=sys.stderr, flush=True)  # fmt: skip
    return failed


def _in_place(function: Callable, call: tuple, here: dict):
    """In a worker: where the command was given, so that relative paths mean what they meant there."""
    os.chdir(here["working_dir"])
    if here["threads"]:
        os.environ["OMP_NUM_THREADS"] = here["threads"]
    return function(*call)
