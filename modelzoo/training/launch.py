"""Checks and records at the beginning of a command that trains."""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping

import torch

from modelzoo import version
from modelzoo.backends import peaks
from modelzoo.backends.arithmetic import Arithmetic
from modelzoo.backends.base import Backend
from modelzoo.backends.peaks import Peak
from modelzoo.backends.reduction import decide_reduction
from modelzoo.backends.select import Choice
from modelzoo.config.errors import UserError
from modelzoo.config.load import dump
from modelzoo.config.trainer import Config
from modelzoo.distributed import Ranks
from modelzoo.files import write_guarded, write_text
from modelzoo.folders import EMPTY, describe_folder
from modelzoo.progress import LiveLine, format_size
from modelzoo.reading import exists
from modelzoo.redact import redact_text, redact_values
from modelzoo.train_state import Reduction, TrainState
from modelzoo.training import checkpoint, console, logs, resume, trackers
from modelzoo.training.appending import append_line, set_aside
from modelzoo.training.checkpoint_state import LogFacts
from modelzoo.training.config_changes import describe_changes as describe_keys
from modelzoo.training.loop import Fitted
from modelzoo.training.resume import Start
from modelzoo.training.run_folder import RunFolder, Speed


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


def describe_changes(run: TrainState, changes: Mapping[str, tuple[str, str]], arithmetic: Arithmetic) -> list[str]:
    """Lines about what a run does otherwise from here on: config keys, and the arithmetic of this machine."""
    change = console.describe_arithmetic_change(arithmetic, run)
    return describe_keys(changes) + ([change] if change else [])


def record(
    config: Config,
    command: str,
    folder: RunFolder,
    choice: Choice,
    run: TrainState,
    start: Start,
    changes: Mapping[str, tuple[str, str]],
) -> None:
    """Write config.yaml (the resolved config, reloadable) and a line of launches.jsonl, without secrets.

    A secret among the config's values stays in config.yaml, which must reload, and which its owner alone may read then.
    Logs are cut back to the step that the run is at, and the folder of checkpoints is made.

    Args:
        changes: config keys that the resumed run changes from here on; the former config.yaml is kept too.

    Raises:
        UserError: the folder cannot be written.
    """
    change = console.describe_arithmetic_change(choice.backend.arithmetic, run)
    trackers.require_packages(run.init)
    checkpoint.prepare(folder.checkpoints)
    run.origin = resume.find_origin(folder, config, run, start)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "asked": choice.asked,
        "device": choice.backend.describe(),
        "class": choice.backend.device_class,
        "dtype": choice.backend.arithmetic.dtype,
        "fallback": choice.fallback,
        "notes": [*choice.backend.notes, *run.sparsity.notes, *([change] if change else [])],
        "version": version.describe(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "from_step": run.step,
        "processes": choice.backend.ranks.size,
        "reduction": run.reduction.describe(),
        "run": run.origin,
    }
    if not start.own:  # what the run first started from is on its first line
        line["start"] = {"path": start.path, "states": list(start.states)} if start.path is not None else None
    if changes:
        line["changes"] = {k: list(v) for k, v in changes.items()}
    try:
        os.makedirs(folder.path, exist_ok=True)
        if (problem := logs.clear_launches(folder)) is not None:
            LiveLine().note(problem)
        append_line(folder.launches, json.dumps(redact_values(line)))
        if changes:
            resume.keep_history(folder, run)
        if os.path.isdir(folder.config) and not os.path.islink(folder.config):
            LiveLine().note(f"damaged    {folder.config}: is a folder; it is {set_aside(folder.config)} now")
        write_guarded(folder.config, dump(config, f"resolved config of `{redact_text(command)}`"))
        facts = run.resumed_from.get("logs", {}) if start.own else {}
        for problem in logs.cut_back(folder, run.step, {name: LogFacts(**of) for name, of in facts.items()}):
            LiveLine().note(problem)
    except OSError as e:
        raise UserError(f"{e.filename or folder.path}: cannot be written ({e.strerror}); give another -o") from None


def note_place(folder: RunFolder, out: LiveLine) -> None:
    """Report that the folder of a run that begins is something else already, next to which the run is written."""
    found = None if folder.holds_a_run else describe_folder(folder.path)
    if found not in (None, EMPTY):
        out.note(f"note       {folder.path}: {found}; the run is written next to it")


def record_speed(folder: RunFolder, step: int, tally: console.Tally, memory: int | None, peak: Peak | None) -> None:
    """Write speed.json: what the summary has on speed and memory. Where it cannot be written, a line says so.

    Args:
        step: at which this launch ended.
    """
    if (rates := tally.steady) is None:
        return
    found = Speed(
        step=step,
        tokens_per_second=rates.tokens,
        flops_per_second=rates.flops,
        dense_flops_per_second=rates.dense_flops,
        memory_bytes=memory,
        peak_flops_per_second=None if peak is None else peak.flops,
        peak=None if peak is None else peak.what,
    )
    try:
        write_text(folder.speed, json.dumps(found.model_dump(), indent=1) + "\n")
    except OSError as e:
        LiveLine().note(f"note       {folder.speed} cannot be written ({e.strerror}); the summary has its numbers")


def measure_speed(backend: Backend, folder: RunFolder, step: int, done: Fitted) -> tuple[int | None, Peak | None]:
    """The most memory that was held, and what the devices can do, where known; writes speed.json. All ranks call it.

    Args:
        step: at which this launch ended, as `done` says how.
    """
    memory = backend.memory()
    peak = peaks.find_peak(backend, done.tally.seconds, leaving=bool(done.interrupted))
    if backend.ranks.first:
        record_speed(folder, step, done.tally, memory, peak)
    return memory, peak


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
