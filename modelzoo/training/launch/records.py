"""What a command that trains records of itself in the run's folder: its launch, the config, how fast it was."""

import json
import os
import sys
import time
from collections.abc import Mapping

import torch

from modelzoo import version
from modelzoo.backends import peaks
from modelzoo.backends.arithmetic import Arithmetic
from modelzoo.backends.base import Backend
from modelzoo.backends.peaks import Peak
from modelzoo.backends.select import Choice
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import dump
from modelzoo.config.trainer import Config
from modelzoo.files import write_guarded, write_text
from modelzoo.folders import EMPTY, describe_folder
from modelzoo.progress import LiveLine
from modelzoo.redact import redact_text, redact_values
from modelzoo.train_state import TrainState
from modelzoo.training import console
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints.state_json import LogFacts
from modelzoo.training.launch import resume
from modelzoo.training.launch.resume import Start
from modelzoo.training.logs import trackers
from modelzoo.training.logs.appending import append_line, set_aside
from modelzoo.training.logs.cutting import cut_back
from modelzoo.training.logs.launches import clear_launches
from modelzoo.training.loop import Fitted
from modelzoo.training.runs.changes import describe_changes as describe_keys
from modelzoo.training.runs.folder import RunFolder, Speed


def describe_changes(run: TrainState, changes: Mapping[str, tuple[str, str]], arithmetic: Arithmetic) -> list[str]:
    """Lines about what a run does otherwise from here on: config keys, and the arithmetic of this machine."""
    change = console.describe_arithmetic_change(arithmetic, run)
    return describe_keys(changes) + ([change] if change else [])


def record_launch(
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
    saving.prepare(folder.checkpoints)
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
        if (problem := clear_launches(folder)) is not None:
            LiveLine().note(problem)
        append_line(folder.launches, json.dumps(redact_values(line)))
        if changes:
            resume.keep_history(folder, run)
        if os.path.isdir(folder.config) and not os.path.islink(folder.config):
            LiveLine().note(f"damaged    {folder.config}: is a folder; it is {set_aside(folder.config)} now")
        write_guarded(folder.config, dump(config, f"resolved config of `{redact_text(command)}`"))
        facts = run.resumed_from.get("logs", {}) if start.own else {}
        for problem in cut_back(folder, run.step, {name: LogFacts(**of) for name, of in facts.items()}):
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
