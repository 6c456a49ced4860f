"""What two runs differ in: the keys of their configs, and their losses at the steps that both logged. No torch."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modelzoo.config.trainer import Config
from modelzoo.redact import redact_values

ELSEWHERE = (
    "trainer.init.model_dir",
    "trainer.init.logging",
    "trainer.init.loggers",
)  # have no effect on what is learned


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted keys, as --set names them."""
    if isinstance(value, Mapping) and value:
        return {k: v for key, part in value.items() for k, v in flat(part, f"{path}.{key}" if path else key).items()}
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{path}.{i}").items()}
    return {path: value}


def keys(configs: Sequence[Config]) -> dict[str, list[str]]:
    """The keys in which configs differ, with each one's value as text ("-" where it has no such key).

    Secrets are compared, and hidden in what is returned: it is printed and stored.
    """
    tables = [flat(c.model_dump(mode="json", by_alias=True)) for c in configs]
    found = {}
    for key in dict.fromkeys(k for table in tables for k in table):
        values = [json.dumps(table[key]) if key in table else "-" for table in tables]
        given = set(values) - {"-", "null", "[]"}  # an absent key and an empty one are alike
        if given and len(set(values)) > 1 and not key.startswith(ELSEWHERE):
            found[key] = [
                v if v == "-" else json.dumps(redact_values(table.get(key), key))
                for v, table in zip(values, tables, strict=True)
            ]
    return found
