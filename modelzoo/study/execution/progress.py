"""The live line of a study: the current run, the share of the study that is done, and the time left."""

import os
import time

from modelzoo.progress import LiveLine, format_duration
from modelzoo.reading import open_regular
from modelzoo.redact import redact_text
from modelzoo.study.matrix.matrix import Cell

LOOKED_AT = 65536  # bytes at the end of a failed run's log


class Progress(LiveLine):
    """The live line of a study. The time left is estimated by dense-equivalent FLOPs."""

    def __init__(self, total: float):
        super().__init__(live_every=1.0)
        self.total, self.done, self.spent = total, 0.0, 0.0
        self.begun: float | None = None
        self.from_step = 0

    def _share(self) -> str:
        return f"{self.done / self.total:4.0%}" if self.total else "100%"

    def passed(self, cell: Cell, why: str = "finished  ") -> None:
        self.total -= cell.dense  # so that the rate is of what ran now
        self.begun = None  # a run that another process is at was shown on the way
        self.note(f"{why} {cell.name}")

    def update(self, cell: Cell, step: int) -> None:
        now = time.monotonic()
        if self.begun is None:
            self.begun, self.from_step = now, step
        if not self.is_due():
            return
        part = cell.dense * (step - self.from_step) / cell.steps
        ahead = self.total - self.done - cell.dense * step / cell.steps
        spent = self.spent + now - self.begun
        left = f"  left {format_duration(ahead / (self.done + part) * spent)}" if self.done + part else ""
        self.show(f"{self._share()}  {cell.name}  step {step}/{cell.steps}{left}")

    def _stop(self, cell: Cell) -> float:
        seconds = 0.0 if self.begun is None else time.monotonic() - self.begun
        self.spent, self.done, self.begun = self.spent + seconds, self.done + cell.dense, None
        return seconds

    def ended(self, cell: Cell, loss: float | None) -> None:
        seconds = self._stop(cell)
        score = "" if loss is None else f"  validation loss {loss:.4f}"
        self.note(f"{self._share()}  {cell.name}  {cell.steps} steps in {format_duration(seconds)}{score}")

    def failed(self, cell: Cell, why: str) -> None:
        self._stop(cell)
        self.note(f"FAILED     {cell.name} {why}")


def last_words(log: str) -> str:
    """The error line of a failed run's log, without secrets; without one, the last line."""
    try:
        with open_regular(log) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOOKED_AT))
            text = file.read(LOOKED_AT).decode("utf-8", "replace")
    except OSError as e:
        return f"its log cannot be read ({e.strerror})"
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    found = next((x for x in reversed(lines) if x.startswith("error:")), lines[-1] if lines else "its log is empty")
    return redact_text("".join(c for c in found if c.isprintable()))[:500]
