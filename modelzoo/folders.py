"""What a folder is, by the files in it, and what takes it: for whoever named another one than a command needs.

Imports nothing of ours. What cannot be looked into is nothing of ours, too: the message is about something else.
"""

import glob
import os

SHARD_SUFFIXES = (".h5", ".hdf5")
JOB = "job.json"  # of a preprocessing job's output
EMPTY = "it is empty"
VOCABULARIES = ("tokenizer.json", "encoder.json", "vocab.json", "vocab.txt", "tokenizer.model")


def is_run(path: str) -> bool:
    """Whether a folder is a run's: its config, and what its training writes."""
    return _has(path, "config.yaml") and any(_has(path, n) for n in ("checkpoints", "best", "launches.jsonl"))


def find_runs(path: str) -> list[str]:
    """The runs one to three folders below `path`, as of fine-tuning (fold_0/seed_1) or a study (runs/NAME), sorted."""
    levels = (glob.glob(os.path.join(glob.escape(path), *"*" * depth, "config.yaml")) for depth in (1, 2, 3))
    return [folder for found in levels for file in sorted(found) if is_run(folder := os.path.dirname(file))]


def describe_folder(path: str) -> str | None:
    """What a folder is and what takes it, as the second half of a message; None where it is nothing of ours."""
    try:
        return _describe(path) if os.path.isdir(path) else None
    except OSError:  # it cannot be looked into, which whoever needs it finds out
        return None


def _describe(path: str) -> str | None:
    above = os.path.normpath(os.path.join(path, os.pardir))
    if is_run(path):
        return "it is a run: compare, report, export, generate, prune and --checkpoint_path take it"
    if runs := find_runs(path):
        return f"it holds the run {runs[0]}" if len(runs) == 1 else f"it holds {len(runs)} runs: {_list_some(runs)}"
    if _has(path, "state.json"):
        return f"it is a checkpoint, of the run {os.path.normpath(os.path.join(above, os.pardir))}"
    if _has(path, "results.json") and is_run(above):
        return f"it holds scores of {above}, which is the run"
    if _has(path, "config.json"):
        return f"it is an exported model: generate and -m score take it, `run.py import {path} RUN` makes it a run"
    names = sorted(n for n in os.listdir(path) if not n.startswith("."))
    if data := next((d for d in (path, os.path.join(path, "train")) if _holds_shards(d)), None):
        of = f" of the output {above}" if _has(above, JOB) else ""
        return f"it holds training data{of}, which trainer.fit.train_dataloader.data_dir takes: {data}"
    if whole := _find_whole(path):
        return f"it is a part of {whole}"
    if any(n in VOCABULARIES for n in names):
        return "it holds a tokenizer: trainer.init.tokenizer and --tokenizer take it"
    return None if names else EMPTY


def _find_whole(path: str) -> str | None:
    """The run, or the output of a preprocessing job, that a folder lies in, up to three folders above."""
    for depth in (1, 2, 3):
        above = os.path.normpath(os.path.join(path, *[os.pardir] * depth))
        if is_run(above):
            return f"the run {above}"
        if _has(above, JOB):
            return f"the output {above}"
    return None


def add_kind(message: str, path: str) -> str:
    """A message about the folder `path`, with what it is where that is known."""
    found = describe_folder(path)
    return message if found is None else f"{message}; {found}"


def _has(path: str, name: str) -> bool:
    return os.path.exists(os.path.join(path, name))


def _holds_shards(path: str) -> bool:
    return os.path.isdir(path) and any(n.endswith(SHARD_SUFFIXES) for n in os.listdir(path))


def _list_some(runs: list[str]) -> str:
    return " ".join(runs[:3]) + (" ..." if len(runs) > 3 else "")
