"""The schema and a file, walked together: which section each mapping of plain data is. Nothing is validated."""

import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from modelzoo.config.loading.yaml12 import Path


@cache
def models(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The models that an annotation names, in order."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return (annotation,) if issubclass(annotation, BaseModel) else ()
    return tuple(m for arg in typing.get_args(annotation) for m in models(arg))


def find_key(schema: type[BaseModel], key: str) -> list[str]:
    """Where the schema has `key`: dotted paths, the shortest first. Items of lists have no part of their own."""
    found, todo, seen = [], [(schema, ())], set()
    while todo:
        model, path = todo.pop(0)
        if (model, path[-2:]) in seen:  # a section may hold its own kind
            continue
        seen.add((model, path[-2:]))
        for name, field in model.model_fields.items():
            below = (*path, field.alias or name)
            if key in (name, field.alias):
                found.append(".".join(below))
            todo += [(m, below) for m in models(field.annotation)]
    return found


def sections(data: Any, annotation: Any, path: Path = ()) -> Iterator[tuple[Path, type[BaseModel], dict]]:
    """Each mapping in `data` with each section of the schema that it may be, parents first.

    A bare name (`callbacks: [CheckLoss]`) counts as the mapping {name: {}}. A mapping under a key that its section does
    not know (Model Zoo's `groups` and `params`) is taken for that section.
    """
    if isinstance(data, list | tuple):
        for i, item in enumerate(data):
            yield from sections(item, annotation, (*path, i))
        return
    if isinstance(data, str) and data[:1].isupper():
        data = {data: {}}
    if not isinstance(data, dict):
        return
    by_name = _has_names(annotation)
    for model in models(annotation):
        fields = _list_fields(model)
        if by_name and not fields.keys() & data.keys():
            below = dict.fromkeys(data, model)
        else:
            yield path, model, data
            below = {key: fields.get(key, model) for key in data}
        for key, annotated in below.items():
            if key in data:  # the caller may rename keys during the walk
                yield from sections(data[key], annotated, (*path, key))


@cache
def _list_fields(model: type[BaseModel]) -> Mapping[str, Any]:
    """The annotation of each field by its name and by its alias."""
    return {name: f.annotation for n, f in model.model_fields.items() for name in {n, f.alias or n}}


@cache
def _has_names(annotation: Any) -> bool:
    """Whether an annotation allows a mapping of names to sections."""
    return typing.get_origin(annotation) is dict or any(_has_names(a) for a in typing.get_args(annotation))
