"""Side-by-side timing: contestants take turns, and only ratios within a round are compared.

A contestant is a call that does its work once. One whose packages clash with this environment's is a `Worker`: the same
call in a process of its own, which waits until its turn comes.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from forced import describe

from modelzoo import host
from modelzoo.kernels.processor import model_name


def machine() -> str:
    """One line: processor, its class, cores, threads, torch, load."""
    load, threads = host.load_average(), torch.get_num_threads()
    at = "" if load is None else f", load {load:.1f}"
    return f"{model_name()}, {describe()}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}{at}"


class Worker:
    """A contestant in another process: one call is one turn there, begun and ended by a line.

    Args:
        command: a program that ends in `serve`.
        ready: wait until it is; else `wait` does.

    Raises:
        RuntimeError: it ended before it was ready, or in a turn.
    """

    def __init__(self, command: Sequence[str], ready: bool = True, **environment: str):
        self.command = command
        self.process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        if ready:
            self.wait()

    def __call__(self) -> None:
        self.begin()
        self.wait()

    def begin(self) -> None:
        """Begin a turn."""
        print(file=self.process.stdin, flush=True)

    def wait(self) -> None:
        """Wait until it is ready, or a turn is over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:  # other lines are the peer's own talk
            if line == "done\n":
                return
        raise RuntimeError(f"{' '.join(self.command)} ended with {self.process.wait()}")


def serve(step: Callable[[], object]) -> None:
    """Report that all is built, then take a turn for each line that comes in (a Worker's other side)."""
    print("done", flush=True)
    for _ in sys.stdin:
        step()
        print("done", flush=True)
    os._exit(0)  # some peers' cleaning up prints errors when it begins only now


def rounds(
    contestants: Mapping[str, Callable[[], object]], count: int, warmup: int = 2, clock=time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per call, by contestant and round. Each round calls every contestant once, in a rotating order.

    `clock` may be time.thread_time where one thread does all the work: it does not run while others have the processor.
    """
    names = list(contestants)
    for name in names:
        for _ in range(warmup):
            contestants[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(count):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            begin = clock()
            contestants[name]()
            times[name].append(clock() - begin)
    return times


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high


def table(
    times: Mapping[str, list[float]],
    base: str,
    unit: float,
    label: str,
    flops: Mapping[str, float] | None = None,
    peak: float | None = None,
) -> str:
    """Median milliseconds, rate and ratio to `base` (median of the rounds' ratios, quartiles in brackets).

    Args:
        unit: what one call processes (tokens); label: its name.
        flops: those that one call of a contestant needs; with `peak`, FLOPs a second that this machine reached in a
            plain product in the same rounds, the table has MFU.
    """
    share = flops is not None and peak is not None
    lines = [f"{'':36} {'ms':>9} {label + '/s':>10}   {'MFU   ' if share else ''}{'speed against ' + base}"]
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        ratio, low, high = spread([b / s for b, s in zip(times[base], seconds, strict=True)])
        mfu = "" if flops is None or peak is None else f"{flops[name] / middle / peak:4.0%}  "
        text = f"{name:36} {middle * 1e3:9.1f} {unit / middle:10.0f}   {mfu}{ratio:.2f}x  [{low:.2f} to {high:.2f}]"
        lines.append(text)
    return "\n".join(lines)
