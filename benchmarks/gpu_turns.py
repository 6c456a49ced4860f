"""Contestants on a GPU, one after another against one base: figures are on disk before the next is built.

Base, contestant and a plain product take turns of `--steps` steps and one wait for the device. A contestant is gone
before the next is built, so that a card needs room for two; one that fails, or is killed, costs its own figures alone.
"""

import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from harness import rounds, spread
from train_step import Ours, product

from modelzoo.backends.step import settle

PRODUCT = "plain product"
Make = Callable[[], Callable[[], object]]  # builds a contestant and returns its step; keeps nothing of it


class Record:
    """The figures of one part. Its file has them whenever they change.

    Args:
        path: of the file; None: there is none.
        facts: what was run, on which card.
    """

    def __init__(self, path: str | None, **facts: Any):
        self.path, self.found = None if path is None else Path(path), dict(facts)

    def put(self, section: str, name: str, value: Any) -> None:
        """Take note of `value`."""
        self.found.setdefault(section, {})[name] = value
        self.write()

    def begin(self, name: str | None) -> None:
        """Take note of what is under way; None: all is done."""
        self.found["under_way"] = name
        self.write()

    def write(self) -> None:
        """Put what there is into the file, whole."""
        if self.path is not None:
            new = self.path.with_name(self.path.name + ".new")
            new.write_text(json.dumps(self.found, indent=2) + "\n", encoding="utf-8")
            new.replace(self.path)


def wait(args) -> None:
    """Let the device finish."""
    if args.device == "cuda":
        torch.cuda.synchronize()


def allocated(args, peak: bool = False) -> int:
    """Bytes on the device, now or at most."""
    if args.device != "cuda":
        return 0
    return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()


def free(args) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()


class Contestant:
    """`--steps` steps a turn, the device waited for once at its end."""

    def __init__(self, args, make: Make):
        free(args)
        before, begin = allocated(args), time.perf_counter()
        self.args, self.step = args, make()
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        built = time.perf_counter()
        for _ in range(3):
            self.step()
        wait(args)
        self.memory = allocated(args, peak=True) - before
        self.seconds = built - begin, time.perf_counter() - built  # to build, and for the first steps
        self.flops = self.step.flops() if isinstance(self.step, Ours) else None  # as run, and of a dense step

    def __call__(self) -> None:
        for _ in range(self.args.steps):
            self.step()
        wait(self.args)

    def settle(self) -> None:
        """Read our queued steps.

        Raises:
            RuntimeError: one was not finite, so that those after it changed nothing.
        """
        if isinstance(self.step, Ours):
            taken = self.step.run.step
            settle(self.step.run)
            if self.step.run.step != taken:
                raise RuntimeError(f"step {self.step.run.step + 1} was not finite")


def compete(args, makers: Mapping[str, Make], base: str, record: Record) -> None:
    """Let each of `makers` take turns with `base`, one of them, and put its figures into `record`."""
    first = _attempt(args, base, makers[base], record)
    if first is not None:
        _measure(args, base, None, first, record)
    for name, make in makers.items():
        if name == base:
            continue
        made = _attempt(args, name, make, record)
        if made is not None:
            _measure(args, name, made, first, record)
        del made  # before the next is built
    record.begin(None)


def _attempt(args, name: str, make: Make, record: Record) -> Contestant | None:
    """The contestant, or None where it cannot be built or take steps."""
    record.begin(name)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # some peers talk
            made = Contestant(args, make)
    except Exception as e:
        _report(name, e, record)
        made = None
    if made is None:  # here, not above: what has failed is held by its exception as long as that is handled
        free(args)
        return None
    print(f"{name}: built in {made.seconds[0]:.0f} s, first three steps {made.seconds[1]:.1f} s", flush=True)
    return made


def _measure(args, name: str, made: Contestant | None, base: Contestant | None, record: Record) -> None:
    """Figures of `name`, which is `made`, or the base itself where that is None."""
    try:
        found = _take_turns(args, made, base)
    except Exception as e:  # no memory is left for both, say
        return _report(name, e, record)
    record.put("contestants", name, found)
    speed = f"{found['milliseconds']:9.1f} ms {found['tokens_per_second']:10,.0f} tokens/s"
    share = f"MFU {found['mfu']:.0%} of {found['product_tflops']:.0f} TFLOP/s"
    against = "" if base is None else f", {found['ratio']:.2f}x [{found['low']:.2f} to {found['high']:.2f}]"
    print(f"{name:30} {speed}, {share}, {found['memory_bytes'] / 1e9:.1f} GB{against}", flush=True)


def _report(name: str, error: Exception, record: Record) -> None:
    why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    record.put("failed", name, why)
    print(f"{name}: not measured, {why}", flush=True)


def _take_turns(args, made: Contestant | None, base: Contestant | None) -> dict[str, float]:
    shown = made or base
    assert shown is not None
    multiply, count = product(args)

    def multiplied() -> None:
        multiply()
        wait(args)

    turns: dict[str, Callable[[], object]] = {"base": base} if base is not None else {}
    turns |= {"shown": made} if made is not None else {}
    times = rounds({**turns, PRODUCT: multiplied}, args.rounds, warmup=1)
    for contestant in (made, base):
        if contestant is not None:
            contestant.settle()
    peak = count / statistics.median(times[PRODUCT])
    seconds = times["shown" if made is not None else "base"]
    middle, tokens = statistics.median(seconds), args.batch * args.length * args.steps
    counted = shown.flops[0] if shown.flops else base.flops[1] if base is not None and base.flops else 0
    found = {
        "milliseconds": middle / args.steps * 1e3,
        "tokens_per_second": tokens / middle,
        "mfu": args.steps * counted / middle / peak,
        "product_tflops": peak / 1e12,
        "memory_bytes": shown.memory,
        "first_steps_seconds": shown.seconds[1],
    }
    if base is not None:
        ratios = spread([b / s for b, s in zip(times["base"], seconds, strict=True)])
        found |= dict(zip(("ratio", "low", "high"), ratios, strict=True))
    return found
