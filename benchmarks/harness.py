"""Side-by-side timing: contestants take turns in one process, and only ratios within a round are compared."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def machine() -> str:
    """One line: processor, cores, threads, torch."""
    name = platform.processor() or "CPU"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    load = os.getloadavg()[0]
    threads = torch.get_num_threads()
    return f"{name}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}, load {load:.1f}"


def rounds(
    contestants: Mapping[str, Callable[[], None]], count: int, warmup: int = 2, clock=time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per call, by contestant and round. Each round calls every contestant once, in a rotating order.

    `clock` may be time.thread_time where one thread does all the work: it stands still while others have the processor.
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


def table(times: Mapping[str, list[float]], base: str, unit: float, label: str) -> str:
    """Median seconds, rate and ratio to `base` (median of the rounds' ratios, quartiles in brackets).

    Args:
        unit: what one call processes (tokens); label: its name.
    """
    lines = [f"{'':34} {'ms':>9} {label + '/s':>10}   {'speed against ' + base}"]
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        ratio, low, high = spread([b / s for b, s in zip(times[base], seconds, strict=True)])
        lines.append(f"{name:34} {middle * 1e3:9.1f} {unit / middle:10.0f}   {ratio:.3f}x  [{low:.3f} to {high:.3f}]")
    return "\n".join(lines)
