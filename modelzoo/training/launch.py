"""Checks and records at the beginning of a command that trains."""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping

import torch

from modelzoo import version
from modelzoo.backends.arithmetic import Arithmetic
from modelzoo.backends.select import Choice
from modelzoo.config.errors import UserError
from modelzoo.config.load import dump
from modelzoo.config.trainer import Config
from modelzoo.files import write_guarded
from modelzoo.progress import format_size
from modelzoo.redact import redact_text, redact_values
from modelzoo.train_state import TrainState
from modelzoo.training import console, resume
from modelzoo.training.resume import Start
from modelzoo.training.run_folder import RunFolder


def check_space(run: TrainState, root: str) -> None:
    """Check that a checkpoint fits on the disk: better before the first step than after the first hour.

    Raises:
        UserError: less is free under `root` than one checkpoint takes.
    """
    need = sum(run.sparsity.shape(p).numel() * 12 for p in run.model.parameters())
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
    keys = [f"changed    from here on: {resume.name_changes(changes)}"] if changes else []
    return keys + ([change] if change else [])


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

    Args:
        changes: config keys that the resumed run changes from here on; the former config.yaml is kept too.

    Raises:
        UserError: the folder cannot be written.
    """
    change = console.describe_arithmetic_change(choice.backend.arithmetic, run)
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
    }
    if not start.own:  # what the run first started from is on its first line
        line["start"] = {"path": start.path, "states": list(start.states)} if start.path is not None else None
    if changes:
        line["changes"] = {k: list(v) for k, v in changes.items()}
    try:
        os.makedirs(folder.path, exist_ok=True)
        if changes:
            resume.keep_history(folder, run.step)
        write_guarded(folder.config, dump(config, f"resolved config of `{redact_text(command)}`"))
        with open(folder.launches, "a", encoding="utf-8") as file:
            file.write(json.dumps(redact_values(line)) + "\n")
    except OSError as e:
        raise UserError(f"{folder.path}: cannot be written ({e.strerror}); give another -o") from None
