"""The keys in which two configs of one run differ, in words without secrets. No torch."""

import json
from collections.abc import Mapping

from modelzoo.config import differences
from modelzoo.config.idle import NO_EFFECT
from modelzoo.config.trainer import Config
from modelzoo.redact import redact_values


def config_changes(before: Config, now: Config) -> dict[str, tuple[str, str]]:
    """The keys that differ, with the values before and now as text, but for those that have no effect. No secrets."""
    idle = {key for keys in NO_EFFECT.values() for key in keys}
    found = {}
    for key, (a, b) in differences.keys([before, now]).items():
        a, b = _redact(key, a), _redact(key, b)
        if a != b and key.rpartition(".")[2] not in idle:
            found[key] = a, b
    return found


def _redact(key: str, text: str) -> str:
    """The JSON of a value (or "-" for none), without secrets: a checkpoint holds none either."""
    return text if text == "-" else json.dumps(redact_values(json.loads(text), key))


def describe_changes(changes: Mapping[str, tuple[str, str]]) -> list[str]:
    """A line for each key that a resumed run changes from here on."""
    return [f"changed    {key}: {a} -> {b}" for key, (a, b) in changes.items()]


def name_changes(changes: Mapping[str, tuple[str, str]], most: int = 6) -> str:
    """`key: before -> now`, for a line on screen."""
    shown = [f"{k.removeprefix('trainer.init.')}: {a} -> {b}" for k, (a, b) in list(changes.items())[:most]]
    return ", ".join(shown) + (f" and {len(changes) - most} more" if len(changes) > most else "")
