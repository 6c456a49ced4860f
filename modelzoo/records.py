"""Files that others wrote, or that were damaged: read through a strict schema, with the key at fault in one line.

class State(Record):
    step: NonNegativeInt

state = read_record("step_300/state.json", State, "missing; not a checkpoint", "is not a checkpoint's state")
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from modelzoo.config.errors import UserError
from modelzoo.reading import MAX_TEXT, parse_json, read_bytes

SEAL = "self_sha256"  # the key of a value's hash of itself


class Record(BaseModel):
    """What a file must hold: values of exactly these types. Keys that it does not name are left as they are."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


Kind = TypeVar("Kind", bound=BaseModel)


def read_record(
    path: str, schema: type[Kind], if_missing: str, if_other: str, max_bytes: int = MAX_TEXT, undefined: bool = False
) -> Kind:
    """A JSON file as a `schema`.

    Args:
        if_missing: what to say, after the path, of a file that is not there; if_other: of one that is not of that form.
        undefined: as in `parse_json`.

    Raises:
        UserError: it is not there, cannot be read, is no JSON, or a key of it has no value that fits.
    """
    return check_record(read_json(path, if_missing, max_bytes, undefined), schema, path, if_other)


def check_record(value: Any, schema: type[Kind], where: str, if_other: str) -> Kind:
    """A parsed JSON value as a `schema`; `where` names the file, and the line of it if it has several.

    Raises:
        UserError: a key has no value that fits.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        key = ".".join(text if (text := str(part)[:80]).isprintable() else ascii(text) for part in first["loc"])
        raise UserError(f"{where}: {key + ': ' if key else ''}{_reason(first)}; {if_other}") from None


def read_json(path: str, if_missing: str, max_bytes: int = MAX_TEXT, undefined: bool = False) -> Any:
    """The value of a JSON file; `undefined` as in `parse_json`.

    Raises:
        UserError: it is not there, cannot be read, or is no JSON.
    """
    text = read_text(path, if_missing, max_bytes, "utf-8-sig")  # editors of Windows write a byte-order mark
    try:
        return parse_json(text, undefined=undefined)
    except ValueError as e:
        raise UserError(f"{path}: is not valid JSON ({' '.join(str(e).split())[:120]})") from None


def read_text(path: str, if_missing: str, max_bytes: int = MAX_TEXT, encoding: str = "utf-8") -> str:
    """The text of a file; `encoding` is a form of UTF-8.

    Raises:
        UserError: it is not there, cannot be read, is larger, or is not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode(encoding)
    except FileNotFoundError:
        raise UserError(f"{path}: {if_missing}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: is not UTF-8 text (byte {e.start})") from None


def hash_value(value: Any) -> str:
    """SHA-256 of a value as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal(value: Mapping[str, Any], key: str = SEAL) -> dict[str, Any]:
    """The value with the hash of itself under `key`, so that a changed digit in its file is found too."""
    return {**value, key: hash_value(value)}


def is_sealed(value: Any, key: str = SEAL) -> bool:
    """Whether a value read from a file is a mapping with the hash of `seal`, and that hash is right."""
    return isinstance(value, dict) and value.get(key) == hash_value({k: v for k, v in value.items() if k != key})


def is_inside(name: str) -> bool:
    """Whether a file name that a manifest gives stays in the manifest's folder: one part, relative, no `..`."""
    plain = name not in ("", os.curdir, os.pardir) and "\0" not in name
    return plain and os.path.basename(name) == name and not (os.altsep and os.altsep in name)


def _reason(error: Any) -> str:
    kind, message = error["type"], " ".join(error["msg"].removeprefix("Value error, ").split())
    return "is missing" if kind == "missing" else message[:1].lower() + message[1:]
