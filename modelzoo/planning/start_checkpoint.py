"""The checkpoint that a task starts from: a run folder, a step folder or a .mdl; its model, and its tokenizer."""

import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from modelzoo.config.errors import UserError
from modelzoo.config.loading.yaml12 import Document
from modelzoo.config.sections.adapters import LoRA, SoftPrompt
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.trainer import Init
from modelzoo.data.tokenizer_files import list_places, require_tokenizer
from modelzoo.folders import add_kind
from modelzoo.reading import exists
from modelzoo.records import Record, check_record, read_json
from modelzoo.training.runs.folder import STATE, RunFolder

Count = Annotated[int, Field(ge=0, lt=2**63)]


class SavedState(Record):
    """What is read here of a checkpoint's state: which model it is of, and how far it was trained."""

    model: GPTConfig
    lora: LoRA | None = None
    soft_prompt: SoftPrompt | None = None
    sparsity: list[dict[str, Any]] | None = None
    optimizer: str | None = None
    dataset: str = ""
    global_step: Count = 0
    skipped: Count = 0
    tokens: Count | None = 0
    flops: list[float] | None = None
    finite: bool = True


def check_state(state: Mapping[str, Any], path: str) -> SavedState:
    """The state of the checkpoint `path`, checked.

    Raises:
        UserError: its model is none of this trainer's, or a count is none; names the key.
    """
    where = path if path.endswith((".mdl", STATE)) else os.path.join(path, STATE)
    return check_record(state, SavedState, where, "does not describe a model of this trainer")


def find_checkpoint(path: str) -> str:
    """The step folder (or .mdl) that `path` means: itself, or the newest whole checkpoint of a run folder.

    A fine-tuned run's best checkpoint goes before its newest.

    Raises:
        UserError: nothing is there.
    """
    from modelzoo.training.checkpoints import checkpoint  # imports torch, which a plan does without

    if path.endswith(".mdl") or exists(os.path.join(path, STATE)):
        return path
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such checkpoint; name a run folder, a step folder or a .mdl file")
    run = RunFolder(path)
    roots = [run.best, run.checkpoints, path]
    if (config := run.read_config()) is not None and config.trainer.init.checkpoint.checkpoint_root is not None:
        roots.insert(1, RunFolder.of(config.trainer.init, path).checkpoints)
    for root in roots:
        found, damaged = checkpoint.newest(root)
        for problem in damaged:
            print(f"damaged    {problem}" + ("; taking the one before" if found else ""), file=sys.stderr)
        if found is not None:
            return found
    raise UserError(add_kind(f"{path}: holds no whole checkpoint; name a run folder or a step folder", path))


def complete_model(doc: Document, path: str | None) -> None:
    """Fill `trainer.init.model` of a config that leaves it (or parts of it) to the checkpoint it starts from."""
    trainer = doc.data.get("trainer")
    init = trainer.get("init") if isinstance(trainer, dict) else None
    if not isinstance(init, dict):
        return
    section = trainer.get("finetune")
    path = path or (section.get("checkpoint") if isinstance(section, dict) else None)
    if not isinstance(path, str) or path.endswith(".mdl"):
        return
    given = init.get("model")
    if given is not None and (not isinstance(given, dict) or "hidden_size" in given):
        return
    file = os.path.join(find_checkpoint(path), STATE)
    state = read_json(file, "missing; not a checkpoint of this trainer")
    check_state(state, file)
    init["model"] = {**state["model"], **(given or {})}


def find_tokenizer_path(init: Init, path: str) -> str:
    """The tokenizer that the checkpoint `path` was trained with, unless `trainer.init.tokenizer` names one.

    Raises:
        UserError: there is none next to the training data or the checkpoint.
    """
    return require_tokenizer(init, [] if init.tokenizer else list_tokenizer_places(path), path)


def list_tokenizer_places(path: str) -> list[str]:
    """Where the tokenizer that the checkpoint `path` was trained with may lie."""
    run = RunFolder.containing(path)
    config = run.read_config()
    places = list_places(config) if config is not None else []
    return [*places, run.path, os.path.dirname(os.path.abspath(path))]
