"""What two runs differ in, for a person: their configs' keys, and their losses at the steps both logged. No torch."""

import os
from collections.abc import Mapping, Sequence

from modelzoo.config.differences import keys
from modelzoo.config.trainer import Config
from modelzoo.data import manifest


def format_differences(names: Sequence[str], configs: Sequence[Config]) -> str:
    """The differing keys, a line each."""
    found = keys(configs)
    if not found:
        return "configs    are the same"
    rows = [("key", *names), *((_tail(key.removeprefix("trainer.")), *values) for key, values in found.items())]
    widths = [max(len(_cut(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(_cut(c).ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _cut(value: str, most: int = 60) -> str:
    return value if len(value) <= most else value[: most - 1] + "…"


def _tail(key: str, most: int = 60) -> str:
    return key if len(key) <= most else "…" + key[1 - most :]


def list_gaps(first: Sequence[Mapping], other: Sequence[Mapping]) -> list[tuple[int, float]]:
    """(step, other's loss less the first's) at each step that both have a record of."""
    of = {r["step"]: r["loss"] for r in first}
    return [(r["step"], r["loss"] - of[r["step"]]) for r in other if r["step"] in of]


def explain_validation(first: Config, other: Config) -> str:
    """What makes validation losses of two runs hard to compare, in words: other examples or tokens; else nothing."""
    found = []
    for what, values in (("vocabulary", (c.trainer.init.model.vocab_size for c in (first, other))),
                         ("validation data", map(_list_validated, (first, other)))):  # fmt: skip
        ours, theirs = values
        if ours != theirs:
            found.append(what)
    return " and ".join(found)


def _list_validated(config: Config) -> tuple:
    """What decides which tokens a validation is over."""
    fit, steps = config.trainer.fit, config.trainer.init.loop.eval_steps
    loaders = fit.val_dataloader if fit is not None else ()
    taken = [(d.batch_size, steps) if steps else None for d in loaders]
    folders = [tuple(map(os.path.normpath, manifest.list_folders(d))) for d in loaders]
    return tuple((f, d.max_sequence_length, t) for f, d, t in zip(folders, loaders, taken, strict=True))
