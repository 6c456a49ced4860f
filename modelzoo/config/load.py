"""Config files to typed objects: `extends:`, `key=value` overrides, and every problem at once with its line.

    config = load("configs/quickstart/s75.yaml", Config, ["trainer.init.loop.max_steps=20"])

The schema is any pydantic model that refuses unknown keys; nothing here knows what a trainer is.
"""

import difflib
import os
import types
import typing
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

from modelzoo.config import yaml12
from modelzoo.config.errors import UserError
from modelzoo.config.yaml12 import Document, Mark, Path

Schema = typing.TypeVar("Schema", bound=BaseModel)


def load(path: str | os.PathLike, schema: type[Schema], overrides: Sequence[str] = ()) -> Schema:
    """Read `path`, apply `overrides` ("a.b.0.c=value", the value in YAML), validate against `schema`.

    Raises:
        UserError: one line per problem, each naming the file, the line and the key.
    """
    doc = read(path)
    for override in overrides:
        _override(doc, override)
    return validate(doc, schema)


def read(path: str | os.PathLike, _seen: tuple[str, ...] = ()) -> Document:
    """Parse one file and merge it over the parent that its top-level `extends:` names (relative to the file)."""
    file = os.fspath(path)
    if os.path.realpath(file) in _seen:
        raise UserError(f"{file}: `extends:` goes round in a circle")
    try:
        with open(file, encoding="utf-8") as f:
            doc = yaml12.parse(f.read(), file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such config file{_near(file)}") from None
    except IsADirectoryError:
        raise UserError(f"{file}: is a folder; name a YAML file in it") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text; a config is a YAML file") from None
    except OSError as e:
        raise UserError(f"{file}: cannot be read: {e.strerror}") from None
    if not isinstance(doc.data, dict):
        found = "is empty" if doc.data is None else f"holds a {type(doc.data).__name__}"
        raise UserError(f"{file}: {found}; a config is a mapping of keys to values")
    if "extends" not in doc.data:
        return doc
    parent = doc.data.pop("extends")
    if not isinstance(parent, str):
        raise UserError(f"{doc.mark(('extends',))}: extends takes one file name, got {parent!r}")
    base = read(os.path.join(os.path.dirname(file), parent), (*_seen, os.path.realpath(file)))
    base.data = merge(base.data, doc.data)
    base.marks.update(doc.marks)
    base.problems.extend(doc.problems)
    return base


def merge(base: object, child: object) -> object:
    """`child` over `base`: mappings merge key by key, anything else replaces.

    `{AdamW: ...}` and `{SGD: ...}` name one choice each, so two one-key mappings with different class names
    (capitalised keys) replace rather than merge.
    """
    if not (isinstance(base, dict) and isinstance(child, dict)):
        return child
    if len(base) == 1 and len(child) == 1:
        (a,), (b,) = base, child
        if a != b and a[:1].isupper() and b[:1].isupper():
            return child
    return {**base, **{k: merge(base[k], v) if k in base else v for k, v in child.items()}}


def _override(doc: Document, text: str) -> None:
    key, eq, value = text.partition("=")
    mark = Mark(f"--set {text}")
    if not eq or not key.strip():
        raise UserError(f"{mark}: write key=value, for example trainer.init.loop.max_steps=20")
    path = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
    target = doc.data
    for i, part in enumerate(path):
        if isinstance(target, list):
            if not isinstance(part, int) or part >= len(target):
                where = ".".join(map(str, path[:i]))
                raise UserError(f"{mark}: {where} is a list of {len(target)}; name an item by number from 0")
        elif isinstance(target, dict):
            part = str(part)
        else:
            raise UserError(f"{mark}: {'.'.join(map(str, path[:i]))} is {target!r}, which has no keys")
        if i == len(path) - 1:
            target[part] = yaml12.parse(value, str(mark)).data
        elif isinstance(target, dict) and not isinstance(target.get(part), dict | list):
            target[part] = {}
        if i < len(path) - 1:
            target = target[part]
    for known in [p for p in doc.marks if p[: len(path)] == path]:
        del doc.marks[known]
    doc.marks[path] = mark


def validate(doc: Document, schema: type[Schema]) -> Schema:
    """Build the typed object, or raise one UserError that lists every problem."""
    try:
        config = schema.model_validate(doc.data)
    except ValidationError as e:
        lines = [_explain(error, doc, schema) for error in e.errors(include_url=False)]
        raise UserError("\n".join(dict.fromkeys(doc.problems + lines))) from None
    if doc.problems:
        raise UserError("\n".join(doc.problems))
    return config


def dump(config: BaseModel, comment: str = "") -> str:
    """The whole resolved config as YAML; `load` of it gives an equal object."""
    header = "".join(f"# {line}\n" for line in comment.splitlines())
    return header + yaml12.dump(config.model_dump(mode="json", by_alias=True))


def _explain(error: dict, doc: Document, schema: type[BaseModel]) -> str:
    path = _path_in_data(error["loc"], doc.data)
    dotted, mark = ".".join(map(str, path)), doc.mark(path)
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:] if message[1:2].islower() else message
    if kind == "extra_forbidden":
        known = _keys_at(schema, error["loc"][:-1])
        return f"{mark}: unknown key '{dotted}'{did_you_mean(str(path[-1]), known)}"
    if kind == "missing":
        return f"{mark}: missing key '{dotted}'"
    value = error.get("input")
    shown = f", got {value!r}" if isinstance(value, str | int | float | bool | None) and kind != "value_error" else ""
    return f"{mark}: {dotted or 'config'}: {message}{shown}{_type_hint(kind, value)}"


def _type_hint(kind: str, value: object) -> str:
    if kind.startswith("bool") and isinstance(value, str):
        return "; write true or false"
    if kind.startswith(("int", "float")) and isinstance(value, str):
        return "; write the number without quotes"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    return ""


def _path_in_data(loc: tuple, data: object) -> Path:
    """pydantic's `loc` less the union tags it adds: keys that the data has, plus a missing last key."""
    path: list = []
    for i, part in enumerate(loc):
        if isinstance(data, dict) and part in data or isinstance(data, list) and isinstance(part, int):
            data = data[part] if not isinstance(data, list) or part < len(data) else None
            path.append(part)
        elif i == len(loc) - 1 and isinstance(data, dict):
            path.append(part)
    return tuple(path)


def _keys_at(schema: type[BaseModel], loc: tuple) -> list[str]:
    """The keys that the model at `loc` (pydantic's path, union tags included) accepts."""
    candidates: list = [schema]
    for part in loc:
        fields = [f for m in candidates for n, f in m.model_fields.items() if part in (n, f.alias)]
        if fields:
            candidates = [m for f in fields for m in _models(f.annotation)]
        elif tagged := [m for m in candidates if "type" in m.model_fields and m.model_fields["type"].default == part]:
            candidates = tagged
    return sorted({f.alias or n for m in candidates for n, f in m.model_fields.items()})


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [m for arg in typing.get_args(annotation) for m in _models(arg)]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of `known`, else the list of what may stand there."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known keys: {', '.join(known)}" if known else ""


def _near(file: str) -> str:
    folder, name = os.path.split(file)
    try:
        names = [n for n in os.listdir(folder or ".") if n.endswith((".yaml", ".yml"))]
    except OSError:
        return f" (there is no folder {folder})"
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {os.path.join(folder, close[0])}?" if close else ""
