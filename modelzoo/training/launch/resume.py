"""The checkpoint that a training command starts from: its folder's own newest, one that it names, or none.

The same command given again resumes exactly, so the folder's own checkpoint has priority over one that the command
names. Whatever would abandon a run in the folder needs --restart, which moves that run aside.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from modelzoo.config import differences
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import ALL_STATES, Config, Init
from modelzoo.files import write_guarded
from modelzoo.reading import exists, read_bytes
from modelzoo.sparsity.schedules import held
from modelzoo.train_state import TrainState
from modelzoo.training.checkpoints import checkpoint, state_json
from modelzoo.training.logs.launches import clear_launches, read_launches
from modelzoo.training.runs.changes import config_changes, name_changes
from modelzoo.training.runs.folder import RunFolder

FREE = r"\.(update|drop_fraction|storage|max_sparsity)(\.|$)"  # of a sparsity group: a resumed run may change them
FIXED = ("trainer.init.sparsity", "trainer.init.seed", "trainer.init.soft_prompt", "trainer.init.lora")

NOT_OF_A_RUN = (  # keys that do not tell one run from another
    *differences.ELSEWHERE, "trainer.init.backend", "trainer.init.checkpoint", "trainer.init.device",
    "trainer.init.loop.max_steps", "trainer.init.loop.num_steps", "trainer.init.loop.num_epochs",
    "trainer.fit.ckpt_path",
)  # fmt: skip


class Start(NamedTuple):
    """The checkpoint that a run starts from."""

    path: str | None  # of the checkpoint; None: there is none
    states: tuple[str, ...]  # the parts of it to take
    own: bool = False  # the folder's own: the run resumes
    note: str | None = None  # a line to print about it

    @classmethod
    def of(cls, value: Sequence[Any]) -> "Start":
        """The same from its JSON."""
        path, states, own, note = value
        return cls(path, tuple(states), own, note)


def choose_start(
    folder: RunFolder, named: str | None, states: Sequence[str], autoload: bool, restart: bool, note: Callable
) -> Start:
    """The checkpoint that a command starts from.

    Args:
        named: the checkpoint that the command or the config names (a step folder or .mdl), or None.
        states: the parts of it that the command asks for.
        autoload: the config's checkpoint.autoload_last_checkpoint.
        restart: whether the command says --restart.
        note: is called with a line for each damaged checkpoint or log, and for a run that begins again.

    Raises:
        UserError: the folder holds a run that the command would abandon without --restart, or nothing but damaged
            checkpoints.
    """
    states, root = tuple(states), folder.checkpoints
    if restart:
        return Start(named, states)
    newest, damaged = checkpoint.newest(root)
    for problem in damaged:
        note(f"damaged    {problem}" + ("; taking the one before" if newest else ""))
    if newest is None:
        if damaged:
            raise UserError(
                f"{root}: every checkpoint here is damaged; put one back from a copy, or start again with --restart "
                f"(it moves this run aside)"
            )
        if os.path.isfile(folder.metrics) and os.path.getsize(folder.metrics):
            note(
                f"note       {folder.path}: has a log and no checkpoint (none was written yet, or they were removed); "
                "the run begins again, and its log with it"
            )
        return Start(named, states)
    if not autoload:
        raise UserError(
            f"{root}: holds checkpoints, and trainer.init.checkpoint.autoload_last_checkpoint is false; start again "
            "with --restart (it moves this run aside), or give another -o"
        )
    if (problem := clear_launches(folder)) is not None:
        note(problem)
    if named is not None and _same(named, newest):
        last = next((x for x in reversed(read_launches(folder).records) if "start" in x), None)
        repeated = last is None or (last["start"] or {}).get("states") == list(states)
        if states != ALL_STATES and not repeated:
            raise UserError(
                f"{newest}: is this folder's own; a new run that starts from it needs another -o, or --restart (it "
                "moves this run aside)"
            )
        return Start(named, states, own=states == ALL_STATES)
    if named is None and states != ALL_STATES:
        raise UserError(
            f"--load_checkpoint_states: {newest} is this folder's own, and a resumed run takes all of it; to "
            "start a new run from parts of it, name it with --checkpoint_path and give another -o, or --restart"
        )
    line = f"{folder.path} resumes; --restart would start again from {named}" if named is not None else None
    return Start(newest, ALL_STATES, own=True, note=line)


def _same(a: str, b: str) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def check_unbegun(folder: RunFolder, config: Config) -> None:
    """Refuse a folder with the log of another run that never wrote a checkpoint; the same run may begin again.

    Raises:
        UserError: names the keys that differ.
    """
    if exists(folder.metrics) and (before := folder.read_config()) is not None:
        changed = config_changes(before, config)
        if changed:
            raise UserError(
                f"{folder.path}: holds the log of a run with another config ({name_changes(changed)}); give another "
                "-o, or --restart (it moves that run aside)"
            )


def check_changes(folder: RunFolder, now: Config, run: TrainState) -> dict[str, tuple[str, str]]:
    """The config keys that a resumed run changes: before and now.

    They are held to the config in the checkpoint that it resumes. An older checkpoint has none; its folder's
    config.yaml, which may have been edited since, takes its place.

    Raises:
        UserError: a change that contradicts the checkpoint: its masks, its seed, its adapters; or the checkpoint is
            another run's.
    """
    saved, step = run.resumed_from, run.optimizer_step
    known = _last_origin(folder)
    if known is not None and saved.get("run") not in (None, known):
        raise UserError(
            f"{folder.checkpoints}: its newest checkpoint, step_{run.step}, is of another run than {folder.launches} "
            f"({saved['run']}, not {known}); remove it, or start a run from it: another -o with --checkpoint_path"
        )
    where = f"{folder.checkpoints}: step_{run.step}"
    before = state_json.read_config(where, saved) or folder.read_config()
    if before is None:
        _check_recorded(where, saved, now.trainer.init)
        return {}
    changes = config_changes(before, now)
    wrong = {k: v for k, v in changes.items() if k.startswith(FIXED) and not re.search(FREE, k)}
    if _same_levels(before.trainer.init, now.trainer.init, step):
        wrong = {k: v for k, v in wrong.items() if not re.search(r"^trainer\.init\.sparsity\.\d+\.sparsity(\.|$)", k)}
    if wrong:
        raise UserError(
            f"{folder.path}: was trained otherwise until step {step} ({name_changes(wrong)}); take its values "
            f"({folder.config}), or start another run from its weights: another -o with --checkpoint_path and "
            "--load_checkpoint_states model"
        )
    return changes


def _check_recorded(where: str, saved: Mapping[str, Any], now: Init) -> None:
    """Hold the seed and the algorithms to a checkpoint that holds no config, in a folder without one."""
    before = [saved["seed"], [g.get("algorithm") for g in saved["sparsity"]]]
    ours = [now.seed, [g.algorithm for g in now.sparsity]]
    for name, a, b in zip(("seed", "sparsity"), before, ours, strict=True):
        if a != b:
            raise UserError(f"{where}: was trained with trainer.init.{name} {a}, the config says {b}; take its value")


def find_origin(folder: RunFolder, config: Config, run: TrainState, start: Start) -> str:
    """Which run this is: the hash of what it began with, the same wherever and whenever the same run begins.

    Lengths, places and what is logged or saved are left out: they do not change what a step computes.
    """
    known = (run.resumed_from.get("run") or _last_origin(folder)) if start.own else None
    if known is not None:
        return known
    table = differences.flat(config.model_dump(mode="json", by_alias=True))
    facts = {k: v for k, v in table.items() if not k.startswith(NOT_OF_A_RUN)}
    begun = None
    if start.path is not None:
        file = os.path.join(start.path, checkpoint.MANIFEST)
        begun = hashlib.sha256(read_bytes(file)).hexdigest() if exists(file) else os.path.basename(start.path)
    text = json.dumps([facts, begun, list(start.states)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _last_origin(folder: RunFolder) -> str | None:
    found = (line.get("run") for line in reversed(read_launches(folder).records))
    return next((x for x in found if isinstance(x, str)), None)


def _same_levels(before: Init, now: Init, step: int) -> bool:
    """Whether two sparsity sections ask for the same share of weights off after `step` steps."""
    return len(before.sparsity) == len(now.sparsity) and all(
        held(a, step) == held(b, step) for a, b in zip(before.sparsity, now.sparsity, strict=True)
    )


def keep_history(folder: RunFolder, run: TrainState) -> None:
    """Keep the config that the run had until now, which is about to change, as config.until_<step>.yaml.

    Raises:
        OSError: it cannot be written.
    """
    text = run.resumed_from.get("config")
    if text is None:  # an older checkpoint's
        if not exists(folder.config):
            return
        text = read_bytes(folder.config).decode(errors="replace")
    name, number = os.path.join(folder.path, f"config.until_{run.step}"), 1
    target = f"{name}.yaml"
    while exists(target):
        if _holds(target, text):
            return  # a launch that ended before its first checkpoint kept it
        number += 1
        target = f"{name}_{number}.yaml"
    write_guarded(target, text)


def _holds(path: str, text: str) -> bool:
    """Whether the file at `path` can be read, and is `text`."""
    try:
        return read_bytes(path) == text.encode()
    except OSError:
        return False
