"""The training loop: it logs, displays, assesses and saves. Every task that trains uses this one."""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

from modelzoo.backends.base import Backend
from modelzoo.backends.step import settle
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data.hdf5 import Shards
from modelzoo.entry import explain_os_error, lacks_memory
from modelzoo.progress import Progress
from modelzoo.train_state import Step, Timed, TrainState
from modelzoo.training import console
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints.background import Files, Writer
from modelzoo.training.checkpoints.snapshot import snapshot
from modelzoo.training.checkpoints.state_json import LogFacts
from modelzoo.training.logs import trackers
from modelzoo.training.logs.tensorboard import events_folder
from modelzoo.training.logs.writing import Logs, NoLogs
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.runs.length import count_micro_batches
from modelzoo.training.shortage import explain_shortage
from modelzoo.training.signals import catch_interrupts

READ_EVERY = 1.0  # seconds after which a step is read from the device for the live line alone
READ_STEPS = 10  # steps after which it is, where several processes train


class Fitted(NamedTuple):
    """How a run went: its totals, its newest checkpoint, and the signal that interrupted it, if one did."""

    tally: console.Tally
    saved: str | None
    interrupted: int | None


def fit(
    backend: Backend,
    run: TrainState,
    config: Config,
    folder: RunFolder,
    shards: Shards,
    fingerprint: str,
    stop: int,
    out: Progress,
    every: int | None = None,
    assess: Callable[[Logs, console.Tally], bool] | None = None,
) -> Fitted:
    """Train until step `stop`, calling `assess` each `every` steps and at the end; if it says so, the run ends there.

    Whatever ends a run early (a log, the data, a validation, a loss that is not finite) leaves a checkpoint first,
    wherever the run is between two steps.

    Args:
        fingerprint: of the data, for the checkpoints.

    Raises:
        UserError: a log cannot be written, the data cannot be read, a step is not finite, or a checkpoint cannot be
            written.
    """
    init = run.init
    tally, events = console.Tally(run.step), events_folder(init, folder.path)
    ranks, run.churn_shown = backend.ranks, run.churn
    logs = Logs(folder, run.step, events, trackers.open_all(init, folder.path), out.note) if ranks.first else NoLogs()
    saves = _Saves(backend, run, config, folder, fingerprint, logs, out)

    def is_due(step: int) -> bool:
        return step == stop or any(n and step % n == 0 for n in (init.logging.log_steps, every, init.checkpoint.steps))

    def assess_due() -> bool:
        """Make the validation that is due; whether the run ends with it."""
        saves.facts = logs.facts
        enough = assess is not None and assess(logs, tally)
        run.unassessed, saves.facts = False, None
        return enough

    since: Timed | None = None  # the last record
    try:
        with catch_interrupts() as interrupted:
            if init.checkpoint.save_initial_checkpoint and run.step == 0:
                saves.save(wait=True)  # processes that read data are started after it
            if run.unassessed and (assess_due() or run.step >= stop):
                saves.save(wait=True)
                return Fitted(tally, saves.path, None)
            for timed in iterate_steps(backend, run, shards, stop, count_micro_batches(config), is_due):
                saves.check()
                tally.add(timed, run.ledger)
                since = timed if since is None else since.join(timed)
                run.unassessed = assess is not None and bool(every) and (run.step == stop or run.step % every == 0)
                if run.step == stop or run.step % init.logging.log_steps == 0:
                    metrics = _metrics(run, timed.step)
                    run.churn, run.churn_shown = 0, run.churn_shown - run.churn
                    logs.write(run.step, "train", metrics, _timing(since))
                    since = None
                if out.update(run.step, console.describe_step(run, timed, tally)):
                    run.churn_shown = run.churn
                enough = run.unassessed and assess_due()
                last = run.step == stop or enough or ranks.any(bool(interrupted))
                if last or (init.checkpoint.steps and run.step % init.checkpoint.steps == 0):
                    saves.save(wait=last)
                if last:
                    break
            saves.finish()
            # while signals are still caught: the last rank to get one must not be gone before the others ask it
            number = next((n for n in ranks.gather(interrupted[:1]) if n), [])
    except Exception as e:
        saves.save_before(explain_shortage(e, backend, run, config) if lacks_memory(e) else e)
        raise
    finally:
        saves.writer.give_up()  # only where neither of the ways above has waited: Ctrl-C twice
        out.close()
        logs.close()
    return Fitted(tally, saves.path, number[0] if number else None)


class NotFinite(UserError):
    """A step's loss or gradient is not finite, and the run stops with its weights as they were."""


class _Saves:
    """The checkpoints of a run under way: written from a copy while training goes on, where memory holds one."""

    def __init__(
        self,
        backend: Backend,
        run: TrainState,
        config: Config,
        folder: RunFolder,
        fingerprint: str,
        logs: Logs,
        out: Progress,
    ):
        self.backend, self.run, self.config, self.folder = backend, run, config, folder
        self.fingerprint, self.logs, self.out = fingerprint, logs, out
        self.path: str | None = None  # the newest of this launch
        self.step = run.step  # which is on disk
        self.facts: Mapping[str, LogFacts] | None = None  # of the logs before the validation that is under way
        self.writer = Writer(config.trainer.init.checkpoint.background, out.note)

    def save(self, finite_only: bool = False, wait: bool = False) -> str | None:
        """Save the run as it is, after the checkpoint that is being written, if one is.

        Args:
            finite_only: save finite weights alone.
            wait: until it is written; else it may be written while training goes on.

        Returns:
            Its path if it was waited for; None where it cannot be had from the device, or is not finite.

        Raises:
            NotWritten: this one or the one before it.
        """
        run = self.run
        if not self.backend.ranks.first and run.shares is None:
            return None
        self.finish()
        if not self.backend.fetch(run):
            self.out.note(
                f"no checkpoint at step {run.step}: the CS-2 gives its weights at multiples of checkpoint.steps"
            )
            return None
        if self.path is not None and not os.path.isdir(self.path):
            self.out.note(f"missing    {self.path}: it was removed during the run")
        facts = self.logs.facts if self.facts is None else self.facts  # what it has logged so far is made anew
        files, found = snapshot(run, self.fingerprint, facts)
        if (finite_only and not found["finite"]) or not self.backend.ranks.first:
            return None
        root, step, keep = self.folder.checkpoints, run.step, self.config.keep_checkpoints

        def write(files: Files, placing: AbstractContextManager | None = None) -> tuple[str, int]:
            return saving.save(root, step, files, found, keep, placing), step

        if not wait and self.writer.start(files, run, self.backend.ranks.size, write):
            return None
        self.path, self.step = write(files)
        return self.path

    def check(self) -> None:
        """Raise what went wrong with the checkpoint that was being written, if it has ended.

        Raises:
            NotWritten: it cannot be written.
        """
        if not self.writer.writing:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written; errors as in `check`."""
        if (saved := self.writer.finish()) is not None:
            self.path, self.step = saved

    def save_before(self, error: Exception) -> None:
        """Save a run that `error` ends, if it is between two steps.

        Raises:
            UserError: `error` in one line, with what became of the run; other errors are left to the caller to raise.
        """
        outcome = self._try_save(error)
        if isinstance(error, UserError):
            error.args = (f"{error}; {outcome}" if outcome else str(error),)
            raise error from None
        if isinstance(error, OSError) and (error.filename is not None or error.errno):
            raise UserError(f"{explain_os_error(error)}; {outcome}" if outcome else explain_os_error(error)) from None
        if outcome:
            self.out.note(f"note       {outcome}")

    def _try_save(self, error: Exception) -> str:
        """The outcome in words; empty where there is nothing to add."""
        run, failed = self.run, ""
        try:
            self.finish()
        except Exception as e:
            failed = " ".join(str(e).split())
        shared = run.shares is not None  # their ranks can save together alone
        if isinstance(error, saving.NotWritten) or not (self.backend.ranks.first or shared):
            return ""
        if shared and not isinstance(error, NotFinite):  # which all of them meet with at the same step
            shares = "each rank holds a share, so the last checkpoint is where the run resumes" if self.step else ""
            return failed or shares
        if run.stepping and not (isinstance(error, NotFinite) and run.take_back_failed()):
            inside = "it happened inside a step, so the last checkpoint is where the run resumes" if self.step else ""
            return failed or inside
        try:
            settle(run)
            saved_now = run.step == self.step and not run.unassessed
            if run.shares.ranks.any(saved_now) if run.shares is not None else saved_now:  # rank 0 knows
                return f"step {run.step} is saved" if self.path else ""
            saved = self.save(finite_only=True, wait=True)
        except Exception as e:  # the first error is the one to report; whatever becomes of this one goes with it
            return " ".join(str(e).split())
        if saved is None:
            return f"step {run.step} is not saved: its weights are not finite, or not at hand"
        late = ", its records with it" if any(f.unwritten for f in self.logs.facts.values()) else ""
        return f"step {run.step} is saved in {saved}{late}"


def iterate_steps(
    backend: Backend,
    run: TrainState,
    shards: Shards,
    stop: int,
    micro_batches: int,
    is_due: Callable[[int], bool] = lambda step: True,
) -> Iterator[Timed]:
    """Train until `stop`, yielding after each step that was read. The caller decides what follows (log, validate).

    A CPU's steps are all read. A GPU's are read when they are due and about once a second: until then it works
    through its queue, and the host does not wait.

    Args:
        is_due: whether the caller has something to do after a step, by the number of steps taken then.
    """
    begin = ready = time.perf_counter()
    many = backend.ranks.size > 1
    last_read, waiting, taken, tokens = -math.inf, 0.0, run.step, run.tokens
    for batch in shards.holding.watch(backend.batches(run, shards, stop)):
        fetched = time.perf_counter()
        waiting += fetched - ready
        avoidable = run.loss_scale.can_fall  # read before the step, which lowers the scale if it overflows
        queued = run.tokens - tokens
        run.stepping = True
        # ranks' clocks differ, and all must read at the same step
        wanted = run.step % READ_STEPS == 0 if many else fetched - last_read >= READ_EVERY
        if is_due(run.step + 1) or wanted:
            last_read, step = fetched, backend.train_step(run, batch, micro_batches)
        else:
            step = backend.queue_step(run, batch, micro_batches)
        ready = time.perf_counter()
        if step is not None and step.skipped and not avoidable:
            run.unavoidable += 1
            _check_nonfinite(run, step)
        run.stepping = False
        if step is None:
            continue
        yield Timed(step, ready - begin, waiting, queued + step.tokens, run.step - taken)
        begin = ready = time.perf_counter()
        waiting, taken, tokens = 0.0, run.step, run.tokens


def _check_nonfinite(run: TrainState, step: Step) -> None:
    loop = run.init.loop
    what = f"step {run.step}: loss {step.loss}, gradient norm {step.grad_norm}"
    if loop.on_nonfinite == "stop":
        raise NotFinite(
            f"{what}: not finite, so the run stops with its weights as they were; lower the learning rate or "
            "set max_gradient_norm, or skip such steps with trainer.init.loop.on_nonfinite: skip"
        )
    if run.unavoidable > loop.max_skipped_steps:
        raise NotFinite(
            f"{what}: not finite, and loop.max_skipped_steps {loop.max_skipped_steps} are used up; "
            "lower the learning rate"
        )


def _metrics(run: TrainState, step: Step) -> dict[str, float]:
    metrics = {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm, "tokens": run.tokens}
    metrics |= {"flops": run.ledger.sparse, "dense_flops": run.ledger.dense}
    if run.sparsity.parameters:
        metrics["sparsity_target"] = run.sparsity.target(run.optimizer_step)
        metrics["sparsity"] = run.sparsity.actual()
        metrics["churn"] = run.churn
        if (share := run.sparsity.explored.share()) is not None:
            metrics["ever_active"] = share
    if run.loss_scale.dynamic or run.init.precision.log_loss_scale:
        metrics["loss_scale"] = run.loss_scale.scale
    if run.skipped:
        metrics["skipped"] = run.skipped
    return metrics


def _timing(timed: Timed) -> dict[str, float]:
    """Speed and seconds of one step: the means over all since the last record."""
    n = timed.steps
    return {"tokens_per_second": timed.speed, "seconds": timed.seconds / n, "waiting": timed.waiting / n}
