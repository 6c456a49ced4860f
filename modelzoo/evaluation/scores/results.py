"""What results hold next to their scores: what they were made from, by hashes, and no number that JSON has not."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from modelzoo.config.differences import ELSEWHERE, flat
from modelzoo.config.idle import NO_EFFECT
from modelzoo.config.trainer import Config
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.tasks.base import Task
from modelzoo.files import sha256
from modelzoo.reading import exists
from modelzoo.records import Record, hash_value, is_sealed, seal

CHECK = "sha256"  # the key under which a result holds the hash of its other keys


class Origin(Record):
    """What a result was made from. Parts of `data` that were not at hand are None."""

    config: str
    checkpoint: str
    data: dict[str, str | None]


def hash_config(config: Config) -> str:
    """Of the keys that act on what is learned, as far as they differ from the schema's defaults.

    So a later version that knows more keys gives the same hash.
    """
    idle = {key for keys in NO_EFFECT.values() for key in keys}
    table = flat(config.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    acting = {k: v for k, v in table.items() if not k.startswith(ELSEWHERE) and k.rpartition(".")[2] not in idle}
    return hash_value(acting)


def hash_checkpoint(path: str) -> str:
    """Of a step folder its manifest's hash, of an exported folder its weights', of a .mdl its own.

    Raises:
        OSError: it cannot be read.
    """
    if not os.path.isdir(path):
        return sha256(path)
    manifest = os.path.join(path, "manifest.json")
    if exists(manifest):
        return sha256(manifest)
    names = sorted(n for n in os.listdir(path) if n.endswith(".safetensors") or n == "config.json")
    return hash_value({n: sha256(os.path.join(path, n)) for n in names})


def hash_task(task: Task) -> str:
    """Of a task's settings and template, but not of where its files are."""
    own = task.config.model_dump(
        mode="json", exclude_defaults=True, exclude={"data_dir", "template", "published", "origin"}
    )
    template = task.template.model_dump(mode="json")
    later = {"description", "between"} - task.template.model_fields_set  # older results know nothing of these keys
    return hash_value([own, {k: v for k, v in template.items() if k not in later}])


def hash_examples(examples: Sequence[Example]) -> str:
    """Of their ids, fields and golds, in order."""
    return hash_value([[e.id, e.fields, e.gold] for e in examples])


def add_check(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with the hash of its values, so that a changed one is known."""
    return seal(result, CHECK)


def is_unchanged(result: Mapping[str, Any]) -> bool:
    """Whether a result's values are those that were written; older ones, which hold no hash, count as such."""
    return CHECK not in result or is_sealed(result, CHECK)


def leave_out_undefined(value: Any) -> Any:
    """`value` for JSON, which has no NaN and no infinities: undefined metrics and intervals are left out.

    In a list, where something has to be, None is in their place.
    """
    if isinstance(value, Mapping):
        return {k: leave_out_undefined(v) for k, v in value.items() if not _is_undefined(v)}
    if isinstance(value, list | tuple):
        return [leave_out_undefined(v) for v in value]
    return None if _is_undefined(value) else value


def _is_undefined(value: Any) -> bool:
    return any(isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, tuple) else (value,)))
