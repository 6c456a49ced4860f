"""What a command that trains settles and checks before its first step, and what it checks after its last one."""

import os
import shutil
from collections.abc import Mapping

import torch

from modelzoo import version
from modelzoo.backends.reduction import decide_reduction
from modelzoo.backends.select import Choice
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import dump
from modelzoo.config.trainer import Config
from modelzoo.distributed import Ranks
from modelzoo.progress import LiveLine, format_size
from modelzoo.reading import exists
from modelzoo.train_state import Reduction, TrainState
from modelzoo.training.runs.folder import RunFolder


def compare_ranks(ranks: Ranks, config: Config, others: Mapping[str, str]) -> None:
    """Refuse to run where ranks have other configs, code or data than rank 0.

    Args:
        others: what else must be the same: what it is, and its hash.

    Raises:
        UserError: names what differs, and the ranks.
    """
    facts = {
        "the config": dump(config),
        "the trainer's version": version.describe(),
        "torch's version": torch.__version__,
        **others,
    }
    ranks.require_same(facts, "start all ranks with the same command, code and files")


def settle_reduction(
    run: TrainState, choice: Choice, batch_size: int, key: str, before: Reduction | None, out: LiveLine
) -> None:
    """Decide how a run sums from here on, and note it where it is not as one process alone sums.

    Args:
        batch_size: of the config's key `key`.
        before: how it has summed so far, if it has.

    Raises:
        UserError: the batch cannot be shared out among the ranks.
    """
    ranks = choice.backend.ranks
    run.reduction = decide_reduction(run.init.backend, choice.backend.kind, batch_size, ranks.size, before, key)
    if run.reduction.threads is not None:
        torch.set_num_threads(run.reduction.threads)
    if ranks.size > 1 or run.reduction.exact or (before is not None and before != run.reduction):
        was = f", until step {run.step} {before.describe()}" if run.step and before not in (None, run.reduction) else ""
        out.note(f"gradients  {ranks.size} x {batch_size // ranks.size} rows, added up {run.reduction.describe()}{was}")


def check_space(run: TrainState, root: str) -> None:
    """Check that a checkpoint fits on the disk: better before the first step than after the first hour.

    Raises:
        UserError: less is free under `root` than one checkpoint takes.
    """
    need = sum(run.shape(p).numel() * 12 for p in run.parameters.values())
    folder = os.path.abspath(root)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{folder}: {format_size(free)} free, but one checkpoint takes about {format_size(need)}; "
            "free some space or give another -o"
        )


def check_written(ranks: Ranks, folder: RunFolder, saved: str | None, interrupted: int | None) -> None:
    """Check that what a run wrote is there still. All ranks must call it.

    Args:
        saved: its newest checkpoint. interrupted: the signal that ended it: other ranks may be gone, and none waits.

    Raises:
        UserError: something was removed while the run went on; names it.
    """
    if not interrupted:
        ranks.first_does(lambda: _require_written(folder, saved))
    elif ranks.first:
        _require_written(folder, saved)


def _require_written(folder: RunFolder, saved: str | None) -> None:
    files = [folder.config, folder.launches, folder.metrics, folder.timing, *([saved] if saved else [])]
    if gone := [path for path in files if not exists(path)]:
        names = ", ".join(os.path.relpath(path, folder.path) for path in gone)
        raise UserError(f"{folder.path}: {names} {'was' if len(gone) == 1 else 'were'} removed during the run")
