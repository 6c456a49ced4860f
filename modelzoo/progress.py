"""What a person sees while a run goes on: one line, rewritten on a terminal, printed now and then into a file."""

import logging
import sys
import time
from typing import TextIO

EVERY = 10.0  # seconds between lines where the output is not a terminal


def duration(seconds: float) -> str:
    """3725 -> 1:02:05."""
    seconds = int(max(seconds, 0))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def amount(x: float) -> str:
    """12345 -> 12.3k; three digits and a unit."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"


def size(nbytes: float) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


LOG = logging.getLogger("modelzoo")


def set_level(name: str) -> None:
    """Show what `logging.log_level` asks for: info has the live line and notes, warning notes alone, error neither.

    Other packages' records follow it, but for info: what they say of every step is not asked for.
    """
    LOG.setLevel(name.upper())
    if name != "info":
        logging.basicConfig(level=name.upper(), force=True)


class Progress:
    """The live line of a run that goes to step `stop`.

    Times are wall-clock; the time left is reckoned from the steps of this launch, its first one (which builds and warms
    things up) left out.
    """

    def __init__(self, stop: int, out: TextIO | None = None):
        self.stop = stop
        self.out = out or sys.stderr
        self.live = self.out.isatty()
        self.first: tuple[int, float] | None = None
        self.printed = 0.0

    def update(self, step: int, text: str) -> None:
        """Show `text` for `step`, with the share done and the time left."""
        if (LOG.level or logging.INFO) > logging.INFO:
            return
        now = time.monotonic()
        if self.first is None:
            self.first = step, now
        last = step == self.stop
        if not self.live and not last and now - self.printed < EVERY:
            return
        done, spent = step - self.first[0], now - self.first[1]
        left = f"  left {duration(spent / done * (self.stop - step))}" if done and not last else ""
        line = f"step {step}/{self.stop}  {text}{left}"
        if self.live:
            self.out.write("\r\x1b[2K" + line)
        else:
            self.out.write(line + "\n")
        self.out.flush()
        self.printed = now

    def note(self, text: str) -> None:
        """A line of its own that stays."""
        if (LOG.level or logging.INFO) > logging.WARNING:
            return
        self.out.write(("\r\x1b[2K" if self.live else "") + text + "\n")
        self.out.flush()

    def close(self) -> None:
        if self.live and self.first is not None:
            self.out.write("\n")
            self.out.flush()
