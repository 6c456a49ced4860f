"""Checkpoints of a run under way: at their steps, and before an error ends the run."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager

from modelzoo.backends.base import Backend
from modelzoo.backends.step import settle
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.entry import explain_os_error
from modelzoo.progress import Progress
from modelzoo.train_state import TrainState
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints.background import Files, Writer
from modelzoo.training.checkpoints.snapshot import snapshot
from modelzoo.training.checkpoints.state_json import LogFacts
from modelzoo.training.logs.writing import Logs
from modelzoo.training.nonfinite import NotFinite
from modelzoo.training.runs.folder import RunFolder


class Saves:
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
