"""Old spellings of keys and values: each is taken for today's wherever a section is read, and reported with its line.

A section lists its own in `renamed`. Plain data (a checkpoint's state) is read through `take_new_names`; a file is
rewritten by `rename_old`, which notes each, so that what is dumped has today's spelling.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel

from modelzoo.config.loading.explain import format_value
from modelzoo.config.loading.merge import merge
from modelzoo.config.loading.walk import sections
from modelzoo.config.loading.yaml12 import Document, Note, Path


class Renamed(NamedTuple):
    """A key that was written `old`; `value` turns an old value to today's, and leaves today's as they are."""

    old: str
    new: str
    value: Callable[[Any], Any]


def take_new_names(data: dict, table: tuple[Renamed, ...]) -> dict:
    """`data` with today's keys and values.

    Raises:
        ValueError: a key under both its names, with two values.
    """
    for old, new, value in table:
        if old not in data:
            continue
        if old != new and data[old] is not None and data.get(new) not in (None, value(data[old])):
            raise ValueError(f"`{old}` is the old name of `{new}`; give one of them")
        found = data[old] if data[old] is not None else data.get(new)
        data = {**{k: v for k, v in data.items() if k != old}, new: value(found)}
    return data


def rename_old(doc: Document, schema: type[BaseModel], written: Path = ()) -> None:
    """Give the keys and values of `doc` today's names, in place, and note each with its line.

    Args:
        written: a path that was just written over the rest: under its old name it goes before the new one.
    """
    for path, model, data in sections(doc.data, schema):
        for old, new, value in getattr(model, "renamed", ()):
            if old not in data:
                continue
            before, after, was, now = data[old], value(data[old]), (*path, old), (*path, new)
            if old == new and before == after:
                continue
            if old != new and new in data:
                if written[: len(was)] == was:
                    after = merge(data[new], after)
                elif before is not None and data[new] not in (None, after):
                    continue  # one file gives both, and two values: validation refuses it
            mark = doc.mark(was)
            del data[old]
            data[new] = after
            for known in doc.marks.at_or_below(was):
                doc.marks[(*now, *known[len(was) :])] = doc.marks.pop(known)
            if before is not None:
                text = f"{mark}: {'.'.join(map(str, was))}: now written `{new}: {_plain(after)}`"
                doc.notes.append(Note("changed", text))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else format_value(value)
