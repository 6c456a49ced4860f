"""The text that a run prints: the live line, a validation's scores, the closing summary."""

import os
import shlex
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from modelzoo.backends.arithmetic import Arithmetic
from modelzoo.backends.peaks import Peak
from modelzoo.progress import format_amount, format_duration, format_size
from modelzoo.sparsity.ledger import Ledger
from modelzoo.train_state import Timed, TrainState
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.validation import Score


class Rates(NamedTuple):
    """A second of training without the first step."""

    tokens: float
    flops: float  # of live weights, as counted
    dense_flops: float  # for the same steps had every weight been on


@dataclass
class Tally:
    """Totals of this launch, for the line and the summary. Seconds are wall-clock."""

    begun: int
    seconds: float = 0.0
    waiting: float = 0.0
    scores: list[Score] = field(default_factory=list)
    tokens: int = 0
    first: Timed | None = None  # of this launch; it builds and warms things up, so `steady` leaves it out
    ledger: tuple[Ledger, Ledger] = (Ledger(), Ledger())  # of the run: after the first step that was read, and now

    def add(self, timed: Timed, ledger: Ledger) -> None:
        """Count a step.

        Args:
            ledger: FLOPs of the run so far.
        """
        now = replace(ledger)  # the run's own goes on
        if self.first is None:
            self.first, self.ledger = timed, (now, now)
        self.seconds += timed.seconds
        self.waiting += timed.waiting
        self.tokens += timed.tokens
        self.ledger = self.ledger[0], now

    @property
    def steady(self) -> Rates | None:
        """Without the first step; None where there is no other."""
        if self.first is None or (seconds := self.seconds - self.first.seconds) <= 0:
            return None
        before, now = self.ledger
        flops, dense = now.sparse - before.sparse, now.dense - before.dense
        return Rates((self.tokens - self.first.tokens) / seconds, flops / seconds, dense / seconds)

    @property
    def waiting_share(self) -> float:
        return self.waiting / self.seconds if self.seconds else 0.0


def describe_step(run: TrainState, timed: Timed, tally: Tally) -> str:
    """The live line, less the step and the time left."""
    step, sparsity = timed.step, run.sparsity
    parts = [
        f"loss {step.loss:.4f}",
        f"lr {step.lr:.2e}" if step.lr else _explain_no_rate(run),
        f"{format_amount(timed.speed)} tokens/s",
        f"data {tally.waiting_share:.1%}",
    ]
    if sparsity.parameters:
        parts.append(f"sparsity {sparsity.actual():.2%} of {sparsity.target(run.optimizer_step):.2%}")
    if sparsity.changes:
        parts.append(f"churn {run.churn - run.churn_shown:,}")  # since the last line
    if run.skipped:
        parts.append(f"skipped {run.skipped}")
    return "  ".join(parts)


def _explain_no_rate(run: TrainState) -> str:
    """Why a step had a learning rate of 0."""
    return "lr 0 (warm-up begins at 0)" if run.optimizer_step <= 1 and run.lr() else "lr 0 (by the schedule)"


def describe_score(found: Score) -> str:
    accuracy = "" if found.accuracy is None else f", accuracy {found.accuracy:.2%}"
    part = f" ({found.examples:,} of {found.all_examples:,} examples)" if found.examples < found.all_examples else ""
    return f"loss {found.loss:.4f}, perplexity {found.perplexity:.2f}{accuracy} over {found.tokens:,} tokens{part}"


def describe_cost(tally: Tally, memory: int | None, peak: Peak | None) -> list[str]:
    """Lines about the speed and the memory of this launch; arguments as in `describe_run`."""
    lines = []
    if (steady := tally.steady) is not None:
        lines.append(f"speed      {format_amount(steady.tokens)} tokens/s after the first step")
        if peak is not None:
            sparse = steady.dense_flops != steady.flops
            whole = f"; {steady.dense_flops / peak.flops:.1%} if weights that are off counted too" if sparse else ""
            lines.append(f"MFU        {steady.flops / peak.flops:.1%} of {peak.what}")
            lines.append(f"           FLOPs of live weights, as counted{whole}")
    if memory:
        lines.append(f"memory     {format_size(memory)} at most")
    return lines


def describe_run(
    run: TrainState,
    memory: int | None,
    tally: Tally,
    folder: RunFolder,
    saved: str | None,
    stop: int,
    mode: str,
    events: str | None,
    peak: Peak | None = None,
) -> str:
    """The closing summary: what was done and written, and what to run next.

    Args:
        memory: peak bytes used on the device; None where it is unknown.
        mode: the command's `-m`, for the line that resumes an interrupted run.
        events: the folder of TensorBoard's files, if the run writes any.
        peak: what the devices can do at most; None: unknown.
    """
    ended = run.step >= stop
    lines = [
        f"{'done' if ended else 'interrupted'}: steps {tally.begun} to {run.step} in {format_duration(tally.seconds)}, "
        f"waiting for data {tally.waiting_share:.1%} of it; {run.tokens:,} tokens in all"
    ]
    lines += [f"validation {describe_score(found)}" for found in tally.scores]
    if masked := run.sparsity.parameters:
        live, total = sum(p.live for p in masked), sum(p.shape.numel() for p in masked)
        lines.append(f"sparsity   {live:,} of {total:,} weights under masks live ({1 - live / total:.4%} off)")
    if run.skipped:
        lines.append(f"skipped    {run.skipped} steps whose loss or gradient was not finite")
    lines += describe_cost(tally, memory, peak)
    files = [os.path.basename(p) for p in (folder.metrics, folder.timing, folder.config) if os.path.isfile(p)]
    if files:
        lines.append(f"wrote      {folder.path}: {', '.join(files)}")
    if events and os.path.dirname(events) == folder.tensorboard:
        events = folder.tensorboard
    lines += [f"           {path}" for path in (events, saved) if path and os.path.isdir(path)]
    command = lambda mode: shlex.join(["python", "run.py", "-p", folder.config, "-m", mode, "-o", folder.path])
    if ended:
        lines.append(f"next       {command('eval')}")
        if events and os.path.isdir(events):
            lines.append(f"           tensorboard --logdir {shlex.quote(events)}")
    else:
        lines.append(f"go on      {command(mode)}")
        lines.append(f"           (it resumes exactly at step {run.step} of {stop})")
    return "\n".join(lines)


def describe_arithmetic_change(now: Arithmetic, run: TrainState) -> str | None:
    """A line for a resumed run whose steps so far were computed in another arithmetic; None for all others."""
    before = run.dtype_before
    if before in (None, now.dtype) or not run.step:
        return None
    return f"arithmetic {before} until step {run.step}, {now.dtype} from here: {now.reason}"
