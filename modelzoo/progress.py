"""What a person sees while a run goes on: one line, rewritten on a terminal, printed now and then into a file."""

import contextlib
import logging
import os
import sys
import time
from typing import TextIO

EVERY = 60.0  # seconds between lines where the output is not a terminal


def format_duration(seconds: float) -> str:
    """3725 -> 1:02:05."""
    seconds = int(max(seconds, 0))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def format_amount(x: float) -> str:
    """12345 -> 12.3k; three digits and a unit."""
    rounded = float(f"{abs(x):.3g}")  # 999,999 is 1M, not 1e+03k
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rounded >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"


def format_size(nbytes: float) -> str:
    """3 * 2**29 -> 1.50 GiB; below one GiB in MiB."""
    mebibytes = round(nbytes / 2**20, 1)  # what rounds to 1024 MiB is one GiB
    return f"{nbytes / 2**30:.2f} GiB" if mebibytes >= 1024 else f"{mebibytes:.1f} MiB"


def can_rewrite(out: TextIO) -> bool:
    """Whether a line of the stream may be rewritten: it is a terminal that moves its cursor, and no log of a CI."""
    return out.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


LOG = logging.getLogger("modelzoo")


def set_level(name: str) -> None:
    """Set what `logging.log_level` prints: info the live line and notes, warning notes alone, error neither.

    Other packages' records follow it, but for info: their messages of every step are not wanted.
    """
    LOG.setLevel(name.upper())
    if name != "info":
        logging.basicConfig(level=name.upper(), force=True)


class LiveLine:
    """A line that is rewritten on a terminal, and printed now and then into a file; and lines of its own that stay.

    Args:
        out: where to; default: the standard error stream.
        every: seconds between lines where `out` is no terminal. live_every: the same where it is one.
    """

    def __init__(self, out: TextIO | None = None, every: float = EVERY, live_every: float = 0.0):
        self.out = out or sys.stderr
        self.live = can_rewrite(self.out)
        self.every = live_every if self.live else every
        self.printed = float("-inf")
        self.open = False  # whether the cursor is at the end of a line that may be rewritten

    def is_due(self) -> bool:
        """Whether enough time has passed since the last line."""
        return time.monotonic() - self.printed >= self.every

    def show(self, text: str) -> None:
        """Write the line, in place of the last one on a terminal; due or not."""
        self._write("\r\x1b[2K" + text if self.live else text + "\n")
        self.printed, self.open = time.monotonic(), self.live

    def note(self, text: str) -> None:
        """Write a line of its own that stays, unless `logging.log_level` asks for less."""
        if (LOG.level or logging.INFO) > logging.WARNING:
            return
        self._write(("\r\x1b[2K" if self.live else "") + text + "\n")
        self.open = False

    def close(self) -> None:
        """End the line, so that what follows begins on one of its own."""
        if self.open:
            self._write("\n")
            self.open = False

    def _write(self, text: str) -> None:
        """Write to the stream. A reader that is gone, or a full disk behind it, ends no run: the logs have the same."""
        with contextlib.suppress(OSError, ValueError):
            self.out.write(text)
            self.out.flush()

    def restart(self) -> None:
        """End the line; the next one is due at once."""
        self.close()
        self.printed = float("-inf")


class Progress(LiveLine):
    """The live line of a run that goes to step `stop`.

    Times are wall-clock; the time left is reckoned from the steps of this launch, its first one (which builds and warms
    things up) left out.
    """

    def __init__(self, stop: int, out: TextIO | None = None):
        super().__init__(out)
        self.stop = stop
        self.first: tuple[int, float] | None = None

    def update(self, step: int, text: str) -> bool:
        """Print `text` for `step`, with the share done and the time left, if a line is due; whether it was."""
        if (LOG.level or logging.INFO) > logging.INFO:
            return False
        now = time.monotonic()
        if self.first is None:
            self.first = step, now
        last = step == self.stop
        if not last and not self.is_due():
            return False
        done, spent = step - self.first[0], now - self.first[1]
        left = f"  left {format_duration(spent / done * (self.stop - step))}" if done and not last else ""
        self.show(f"step {step}/{self.stop}  {text}{left}")
        return True
