"""result.json of a fine-tuning run that has ended: read, checked, and held to what the command asks for."""

from collections.abc import Callable, Mapping
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.config.required import require_finetune
from modelzoo.evaluation.scores.results import Origin, is_unchanged
from modelzoo.finetuning.job import Job
from modelzoo.reading import exists
from modelzoo.records import Record, check_record, read_json
from modelzoo.training.runs.changes import config_changes, name_changes

START = "trainer.finetune.checkpoint"
DERIVED = ("trainer.fit.", "trainer.init.sparsity")  # of a run's config: follows from its checkpoint and the task
OTHERWISE = "give another -o, or --restart (it moves that run aside)"
PARTS = {
    "task": "the task's settings or template",
    "tokenizer": "the tokenizer",
    "train": "the training examples",
    "dev": "the dev examples",
    "test": "the test examples",
}


class SplitResult(Record):
    n: int
    metrics: dict[str, float | None]
    intervals: dict[str, list[float | None]]
    majority: dict[str, float | None]


class StoredResult(Record):
    """A result; None among its numbers is what older ones hold as NaN."""

    task: str
    fold: int
    seed: int
    steps: int
    best_step: int
    best: str
    start: str | None = None
    made_from: Origin | None = None  # older ones have none
    scores: dict[str, SplitResult]
    dev: list[dict[str, float | str | None]]


def find_result(job: Job, origin: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any] | None:
    """The result of a run that has ended; None where there is none, or a damaged one, which is made again.

    Args:
        origin: what the command would make it from.
        note: is called with a line about a damaged one.

    Raises:
        UserError: it was made from another config, checkpoint or data; says what differs.
    """
    path = job.folder.result
    if not exists(path):
        return None
    found = _read(path, note)
    before = job.folder.read_config()
    changes = config_changes(before, job.config) if before is not None else {}
    section = require_finetune(job.config)
    start = None if found is None else found.get("start")
    if changes.get(START, ("",))[0] == "null" and start == section.checkpoint:
        del changes[START]  # older runs have it in their result alone
    derived = DERIVED[:1] if section.masks is None else DERIVED
    if wrong := {k: v for k, v in changes.items() if not k.startswith(derived)}:
        raise UserError(f"{job.folder.path}: holds the result of another config ({name_changes(wrong)}); {OTHERWISE}")
    if found is not None:
        _check_origin(job, found.get("made_from"), origin, before is not None)
    return found


def _read(path: str, note: Callable[[str], None]) -> dict[str, Any] | None:
    try:
        found = read_json(path, "is missing", undefined=True)
        check_record(found, StoredResult, path, "it was changed")
        if not is_unchanged(found):
            raise UserError(f"{path}: its values are not those that were written")
    except UserError as e:
        note(f"damaged    {e}; it is made again from the run's checkpoints")
        return None
    return found


def _check_origin(job: Job, made: Mapping[str, Any] | None, asked: Mapping[str, Any], has_config: bool) -> None:
    """Refuse a result that was made from something else than the command asks for."""
    if made is None:
        if not has_config:
            raise UserError(f"{job.folder.path}: does not say which config its result is of; {OTHERWISE}")
        return
    wrong = []
    if made["config"] != asked["config"]:
        wrong.append("the config, in a way that config.yaml does not show" if has_config else "the config")
    if made["checkpoint"] != asked["checkpoint"]:
        wrong.append("the content of the checkpoint that it started from")
    before, now = made["data"], asked["data"]
    # a split that was or is not at hand contradicts nothing
    wrong += [what for k, what in PARTS.items() if before.get(k) and now.get(k) and before[k] != now[k]]
    if wrong:
        raise UserError(f"{job.folder.path}: holds a result made from something else: {', '.join(wrong)}; {OTHERWISE}")
