"""What is wrong with a config, one line per problem: file, line, key, allowed values, and the nearest known name."""

import difflib
import itertools
import json
import typing
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from modelzoo.config.loading.walk import find_key, models
from modelzoo.config.loading.yaml12 import Document, Path
from modelzoo.config.values.scalars import PERCENT, is_number, respell_number

LONGEST = 200  # characters of a value in a message
# pydantic's error types whose own wording speaks of Python rather than of a config.
WORDING = {
    "model_type": "takes a mapping of keys to values",
    "model_attributes_type": "takes a mapping of keys to values",
    "dict_type": "takes a mapping of keys to values",
    "tuple_type": "takes a list",
    "list_type": "takes a list",
    "string_type": "takes text",
    "int_type": "takes an integer",
    "float_type": "takes a number",
    "bool_type": "takes true or false",
    "none_required": "takes null only",
    "finite_number": "takes a finite number",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_long": "takes at most {max_length} items, got {actual_length}",
    "too_short": "takes at least {min_length} items, got {actual_length}",
    "literal_error": "takes {expected}",
}


def problems(found: ValidationError, doc: Document, schema: type[BaseModel]) -> list[str]:
    """One line a problem, in the order of the file. What the branches of a union say of one key becomes one problem."""
    by_key: dict[tuple[Path, str, str], list[str]] = {}
    for error in found.errors(include_url=False):
        if _is_echo(error):
            continue
        path = _path_in_data(error["loc"], doc.data)
        before, text, after = _explain(error, path, schema)
        texts = by_key.setdefault((path, before, after), [])
        if text not in texts:
            texts.append(text)
    lines = [(doc.mark(key[0]), key[1] + " or ".join(texts) + key[2]) for key, texts in by_key.items()]
    lines.sort(key=lambda line: (line[0].file, line[0].line or 0))
    return [f"{mark}: {text}" for mark, text in lines]


def _is_echo(error: ErrorDetails) -> bool:
    """Whether a list is called too short because pydantic left out items that it refused, each with an error."""
    items, least = error.get("input"), error.get("ctx", {}).get("min_length", 0)
    return error["type"] == "too_short" and isinstance(items, list | tuple) and len(items) >= least


def _explain(error: ErrorDetails, path: Path, schema: type[BaseModel]) -> tuple[str, str, str]:
    """The key at fault, what is wrong with it, and what was found instead or may be meant."""
    kind, loc, value, ctx = error["type"], error["loc"], error.get("input"), error.get("ctx", {})
    dotted = ".".join(map(str, path)) or "config"
    if kind == "extra_forbidden":
        here, key = models_at(schema, loc[:-1]), str(loc[-1])
        if refused := next((why for m in here if (why := getattr(m, "refused", {}).get(key))), None):
            return f"{dotted}: ", f"{format_value(value)} asks for {refused}, which this trainer does not have", ""
        known = sorted({f.alias or n for m in here for n, f in m.model_fields.items()})
        if path and path[-1] == loc[-1]:
            there, near = _find_elsewhere(key, path, schema), did_you_mean(key, known)
            if there and near.endswith("?"):
                return "", f"unknown key '{dotted}'", f"{near[:-1]}, or {there}?"
            return "", f"unknown key '{dotted}'", f"; it is {there}" if there else near
        return f"{dotted}: ", f"unknown name '{key}'", did_you_mean(key, known)  # a bare one: `callbacks: [Foo]`
    if kind == "missing" and isinstance(loc[-1], int):
        return f"{'.'.join(map(str, path[:-1]))}: ", f"item {loc[-1]} (from 0) is missing", ""
    if kind == "missing":
        return "", f"missing key '{dotted}'", ""
    if kind == "union_tag_invalid":
        known = [tag.strip("' ") for tag in ctx["expected_tags"].split(",")]
        return (
            f"{dotted}: ",
            f"unknown {ctx['discriminator'].strip(chr(39))} '{ctx['tag']}'",
            did_you_mean(ctx["tag"], known),
        )
    limits = {k: f"{v:.15g}" if isinstance(v, float) else v for k, v in ctx.items()}
    text = WORDING[kind].format(**limits) if kind in WORDING else error["msg"].removeprefix("Value error, ")
    if kind in ("value_error", "too_long", "too_short"):
        return f"{dotted}: ", text, ""
    if kind == "literal_error":
        near = _nearest(value, ctx["expected"])
        if not near and str(value).lower() == "none" and _may_be_null(schema, loc):
            near = "; write null"
        return f"{dotted}: ", text, f", got {format_value(value)}{near}"
    return f"{dotted}: ", text, f", got {format_value(value)}{_hint(kind, value)}"


def _find_elsewhere(key: str, path: Path, schema: type[BaseModel]) -> str:
    """The other places where the schema has the key, or those nearest to `path`; empty where there is none."""

    def shared(place: str) -> int:
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == str(pair[1]), zip(place.split("."), path)))

    places = [p for p in find_key(schema, key) if p != ".".join(map(str, path))]
    nearest = [p for p in places if shared(p) == max(map(shared, places))]
    nearest = [p for p in nearest if p.count(".") == nearest[0].count(".")]
    return " or ".join(nearest[:3])


def format_value(value: object) -> str:
    """A value as a config would write it."""
    if isinstance(value, str):
        text = repr(value)
    elif isinstance(value, dict | list | tuple):
        text = json.dumps(value, default=str)
    elif value is None or isinstance(value, bool):
        text = json.dumps(value)
    else:
        text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _hint(kind: str, value: object) -> str:
    if kind in ("int_type", "float_type") and isinstance(value, str) and PERCENT.fullmatch(value):
        return "; this key takes no share of the run"
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
        return f"; write {'true' if value.lower() in ('yes', 'on') else 'false'}"
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("true", "false"):
        return f"; write {value.lower()}, without quotes"
    if kind in ("int_type", "float_type") and isinstance(value, str) and is_number(value):
        return "; write the number without quotes"
    if kind in ("int_type", "float_type") and isinstance(value, str | float):
        return f"; write {plain}" if (plain := respell_number(value, kind == "int_type")) else ""
    return ""


def _may_be_null(schema: type[BaseModel], loc: tuple) -> bool:
    """Whether the key at `loc` takes null."""
    fields = [f for m in models_at(schema, loc[:-1]) for n, f in m.model_fields.items() if loc[-1] in (n, f.alias)]
    return any(type(None) in typing.get_args(f.annotation) for f in fields)


def _nearest(value: object, expected: str) -> str:
    """ "; did you mean 'x'?" for the nearest of the words in `expected`; empty where none is near."""
    words = [word[1:-1] for word in expected.replace(" or ", ", ").split(", ") if word[:1] == "'"]
    near = difflib.get_close_matches(value.lower(), words, n=1, cutoff=0.6) if isinstance(value, str) else []
    return f"; did you mean '{near[0]}'?" if near else ""


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


def models_at(schema: type[BaseModel], loc: tuple) -> list[type[BaseModel]]:
    """The models that `loc` may hold (pydantic's path, union tags included)."""
    candidates: list = [schema]
    for part in loc:
        fields = [f for m in candidates for n, f in m.model_fields.items() if part in (n, f.alias)]
        if fields:
            candidates = [m for f in fields for m in models(f.annotation)]
        elif tagged := [m for m in candidates if "type" in m.model_fields and m.model_fields["type"].default == part]:
            candidates = tagged
    return candidates


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """ "; did you mean 'x'?" for the nearest of `known`, else the list of known keys."""
    plain = {k.lower(): k for k in known}  # adamw is AdamW, not Adam
    close = difflib.get_close_matches(word.lower(), plain, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{plain[close[0]]}'?"
    return f"; known keys: {', '.join(known)}" if known else ""
