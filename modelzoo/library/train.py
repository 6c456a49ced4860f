"""A run of a config in a caller's own program: what `run.py -m train` does, by the same code, with the same bits."""

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelzoo import cli, entry
from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12
from modelzoo.config.loading.load import resolve
from modelzoo.config.trainer import Config

Path = str | os.PathLike[str]


def train(
    config: Path | Mapping[str, Any],
    set: Mapping[str, Any] | Sequence[str] = (),
    out: Path | None = None,
    *,
    evaluate: bool = False,
    target: str = "auto",
    start: Path | None = None,
    restart: bool = False,
    devices: int | None = None,
) -> str:
    """Train a run, or go on with the one that `out` holds, and return its folder, which `load` takes.

    It prints what the command prints; `{"trainer.init.logging.log_level": "error"}` leaves the summary alone. Ctrl-C
    ends it after the step at hand with a checkpoint, and raises KeyboardInterrupt then. The caller's logging, and
    torch's threads and random numbers on the CPU, are afterwards what they were.

    Args:
        config: a YAML file, or its content as a mapping.
        set: keys to override: {"trainer.init.loop.max_steps": 20}, or ["trainer.init.loop.max_steps=20"].
        out: the run's folder; default: the config's.
        evaluate: validate on the way too, as `-m train_and_eval` does.
        target: CSX, GPU, CPU, or auto.
        start: a run, checkpoint or `.mdl` whose weights to begin with, where `out` has no checkpoint of its own.
        restart: begin anew; the run that `out` holds is moved aside.
        devices: processes on this machine; default: one for each GPU, one on a CPU.

    Raises:
        UserError: one line for each thing that is wrong with the config, the data or the folder.
        KeyboardInterrupt: it was interrupted; a checkpoint is written.
    """
    if not isinstance(config, str | os.PathLike | Mapping):
        raise UserError(f"config: takes a YAML file or a mapping, got {type(config).__name__}")
    if target not in ("CSX", "GPU", "CPU", "auto"):
        raise UserError(f"target: takes CSX, GPU, CPU or auto, got {target!r}")
    with tempfile.TemporaryDirectory(prefix="mediswift-") as folder:
        path = _write_config(config, folder) if isinstance(config, Mapping) else os.fspath(config)
        settings = _list_settings(set)
        try:
            run = _find_folder(path, settings) if out is None else os.fspath(out)
            words = [target, "-p", path, "-m", "train_and_eval" if evaluate else "train", "-o", run]
            words += [w for setting in settings for w in ("--set", setting)] + ["--restart"] * restart
            words += [] if start is None else ["--checkpoint_path", os.fspath(start)]
            words += [] if devices is None else ["--devices", str(devices)]
            _run(words)
        except UserError as e:
            if isinstance(config, Mapping):
                e.args = (str(e).replace(path, "config"),)
            raise
    return run


def _find_folder(path: str, settings: Sequence[str]) -> str:
    """The run's folder as its config has it."""
    found = resolve(path, Config, settings).data
    for key in ("trainer", "init", "model_dir"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else "./model_dir"


def _run(words: list[str]) -> None:
    """Run the command line `words` to its end.

    Raises:
        UserError: as of `train`.
    """
    try:
        with _keeping_settings():
            code = cli.run_words(words)
        if code:
            raise UserError(f"the processes that trained ended with code {code}; the lines above say why")
    except SystemExit as e:
        if isinstance(e.code, int) and e.code > 128:  # by a signal, with a checkpoint
            raise KeyboardInterrupt from None
        raise UserError(f"the run ended with code {e.code}") from None
    except OSError as e:
        if e.filename is None:
            raise
        raise UserError(entry.explain_os_error(e)) from e


@contextlib.contextmanager
def _keeping_settings() -> Iterator[None]:
    """Put back what a run sets for the whole process: logging, torch's threads, random numbers and repeatability."""
    import torch

    root, own = logging.getLogger(), logging.getLogger("modelzoo")
    handlers, levels = root.handlers[:], (root.level, own.level)
    threads, repeatable = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    root.handlers.clear()  # a run that sets other ones would close them
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        own.setLevel(levels[1])
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(repeatable)


def _write_config(config: Mapping[str, Any], folder: str) -> str:
    """A mapping as a YAML file in `folder`; a parent that it names is found from where the caller is."""
    found = dict(config)
    if isinstance(parent := found.get("extends"), str | os.PathLike):
        found["extends"] = os.path.abspath(parent) if os.path.exists(parent) else os.fspath(parent)
    path = os.path.join(folder, "config.yaml")
    try:
        text = yaml12.dump(json.loads(json.dumps(found, default=_plain)))
    except (TypeError, ValueError) as e:
        raise UserError(f"config: holds what YAML does not ({e})") from None
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _list_settings(given: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """`key=value` for each override."""
    if isinstance(given, Mapping):
        try:
            return [f"{key}={json.dumps(value, default=_plain)}" for key, value in given.items()]
        except (TypeError, ValueError) as e:
            raise UserError(f"set: holds what YAML does not ({e})") from None
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(x, str) for x in given):
        raise UserError(f"set: takes a mapping of keys to values or a list of 'key=value', got {given!r:.80}")
    return list(given)


def _plain(value: Any) -> Any:
    """A path or a number of NumPy's as JSON has them."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a value of type {type(value).__name__}")
