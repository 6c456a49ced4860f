"""Config files to typed objects: `extends:`, `key=value` overrides, and every problem at once with its line.

    config = load("configs/quickstart/s75.yaml", Config, ["trainer.init.loop.max_steps=20"])

The schema is any pydantic model that refuses unknown keys; nothing here knows what a trainer is.
"""

import difflib
import functools
import os
import sys
import typing
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

from modelzoo.config.errors import UserError
from modelzoo.config.loading import explain, yaml12
from modelzoo.config.loading.merge import is_choice, put_over
from modelzoo.config.loading.renamed import rename_old
from modelzoo.config.loading.yaml12 import Document, Mark, Path
from modelzoo.folders import describe_folder, find_runs
from modelzoo.reading import is_number, read_text

Schema = typing.TypeVar("Schema", bound=BaseModel)
MAX_PARENTS = 50
LONGEST = 200  # characters of a setting in a message
_ABSENT = object()  # in place of the value of a key that is not there


def load(path: str | os.PathLike, schema: type[Schema], overrides: Sequence[str] = ()) -> Schema:
    """Read `path`, apply `overrides` ("a.b.0.c=value", the value in YAML), validate against `schema`.

    Raises:
        UserError: one line per problem, each naming the file, the line and the key.
    """
    return validate(resolve(path, schema, overrides), schema)


def resolve(path: str | os.PathLike, schema: type[BaseModel], overrides: Sequence[str] = ()) -> Document:
    """`path` in today's form with `overrides` applied, not yet validated.

    A schema may read older dialects of itself: `schema.upgrade(doc, child)` turns `doc` into today's form (unless
    `child`, about to be merged over it, is in the older dialect too), and overrides may be in the file's own dialect.
    """
    upgrade = getattr(schema, "upgrade", None)
    doc = read(path, schema)
    if upgrade is not None:
        own = doc.data.keys() - schema.model_fields.keys()
        older = [o for o in overrides if o.partition("=")[0].strip().split(".")[0] in own]
        for override in older:
            _override(doc, override)
        overrides = [o for o in overrides if o not in older]
        upgrade(doc)
        rename_old(doc, schema)
    for override in overrides:
        _override(doc, override, schema)
    return doc


def read(path: str | os.PathLike, schema: type[BaseModel] | None = None, _seen: tuple[str, ...] = ()) -> Document:
    """Parse one file and merge it over the parent that its top-level `extends:` names (relative to the file).

    With a schema, both are given its current names before they are merged.
    """
    file = find_config(path)
    if os.path.realpath(file) in _seen:
        raise UserError(f"{file}: `extends:` goes round in a circle")
    if len(_seen) > MAX_PARENTS:
        raise UserError(f"{file}: is the {len(_seen)}th parent by `extends:`; a config has at most {MAX_PARENTS}")
    try:
        doc = yaml12.parse(read_text(file, 4 * yaml12.MAX_CHARS), file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such config file{_near(file)}") from None
    except IsADirectoryError:
        own = next((c for d in (file, *find_runs(file)) if os.path.isfile(c := os.path.join(d, "config.yaml"))), None)
        meant = f"did you mean {own}?" if own else describe_folder(file) or "name a YAML file in it"
        raise UserError(f"{file}: is a folder, and a config is a YAML file; {meant}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text; a config is a YAML file") from None
    except OSError as e:
        raise UserError(f"{file}: cannot be read: {e.strerror}; a config is a YAML file") from None
    if not isinstance(doc.data, dict):
        found = "is empty" if doc.data is None else f"holds a {type(doc.data).__name__}"
        raise UserError(f"{file}: {found}; a config is a mapping of keys to values")
    if schema is not None:
        rename_old(doc, schema)
    if "extends" not in doc.data:
        return doc
    parent, where = doc.data.pop("extends"), doc.mark(("extends",))
    if not isinstance(parent, str):
        raise UserError(f"{where}: extends takes one file name, got {parent!r}")
    parent = find_config(parent, os.path.dirname(file))
    if not os.path.exists(parent):
        raise UserError(f"{where}: extends {parent}, which is not there{_near(parent)}")
    base = read(parent, schema, (*_seen, os.path.realpath(file)))
    if (upgrade := getattr(schema, "upgrade", None)) is not None:
        upgrade(base, doc)
    base.data = put_over(base, doc.data, doc)
    base.marks.update(doc.marks)
    base.problems.extend(doc.problems)
    base.repeats.extend(doc.repeats)
    base.notes.extend(doc.notes)
    return base


def find_config(path: str | os.PathLike, folder: str = "") -> str:
    """The file that `path` names in `folder`, or else among the packaged configs, which a line on stderr then reports.

    Packaged ones go by `configs/quickstart/s75.yaml` and `quickstart/s75.yaml`. A name that is in neither place comes
    back as a path in `folder`, for its reader to refuse.
    """
    file = os.path.join(folder, path)
    packaged = os.path.join(packaged_configs(), _bare(path))
    outside = os.path.isabs(path) or _bare(path).startswith(os.pardir)
    if os.path.lexists(file) or outside or not os.path.isfile(packaged):
        return file
    _report_packaged(file, packaged)
    return packaged


def packaged_configs() -> str:
    """The folder of the configs that come with the trainer: inside an installed package, at the top of a checkout."""
    package = os.path.abspath(os.path.join(os.path.dirname(__file__), os.pardir, os.pardir))
    installed = os.path.join(package, "configs")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(package), "configs")


def _bare(path: str | os.PathLike) -> str:
    """A packaged config's name without the leading `configs/`."""
    name = os.path.normpath(path)
    return os.path.relpath(name, "configs") if name.split(os.sep)[0] == "configs" else name


@functools.cache  # a file that is read several times is reported once
def _report_packaged(file: str, packaged: str) -> None:
    print(f"config     {file} is not here; taken from the package: {packaged}", file=sys.stderr)


def _override(doc: Document, text: str, schema: type[BaseModel] | None = None) -> None:
    """Write `key=value` over `doc`, as a file that extends it would (see `merge`)."""
    key, eq, value = text.partition("=")
    mark = Mark(f"--set {text if len(text) <= LONGEST else f'{text[:LONGEST]}...'}")
    keys = key.strip().split(".")
    if not eq or not all(keys):
        raise UserError(f"{mark}: write key=value, for example trainer.init.loop.max_steps=20")
    parsed = yaml12.parse(value, str(mark))
    doc.problems.extend(parsed.problems)
    target, path = doc.data, ()
    for name in keys[:-1]:
        part, below = _child(target, name, path, mark)
        path = (*path, part)
        if not isinstance(below, dict | list):
            if isinstance(part, int):
                raise UserError(f"{mark}: {'.'.join(map(str, path))} is {below!r}, which has no keys")
            doc.forget(path)
            doc.marks[path] = mark
            target[part] = {below: {}} if is_choice(below) else {}
        target = target[part]
    part, below = _child(target, keys[-1], path, mark)
    path = (*path, part)
    target[part] = parsed.data if below is _ABSENT else put_over(doc, parsed.data, mark, path)
    doc.marks[path] = mark
    if schema is not None:
        rename_old(doc, schema, path)


def _child(target: dict | list, name: str, path: Path, mark: Mark) -> tuple[int | str, object]:
    """The key or index that `name` means in the mapping or list at `path`, and what is there now."""
    if isinstance(target, dict):
        return name, target.get(name, _ABSENT)
    if not is_number(name) or int(name) >= len(target):
        where = ".".join(map(str, path))
        raise UserError(f"{mark}: {where} is a list of {len(target)}; name an item by number from 0")
    return int(name), target[int(name)]


def validate(doc: Document, schema: type[Schema]) -> Schema:
    """Build the typed object, or raise one UserError that lists every problem."""
    problems, config = list(doc.problems), None
    try:
        config = schema.model_validate(doc.data)
    except ValidationError as e:
        problems += explain.problems(e, doc, schema)
    if problems or config is None:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return config


def dump(config: BaseModel, comment: str = "") -> str:
    """The whole resolved config as YAML; `load` of it gives an equal object."""
    header = "".join(f"# {line}\n" for line in comment.splitlines())
    return header + yaml12.dump(config.model_dump(mode="json", by_alias=True))


def _near(file: str) -> str:
    folder, name = os.path.split(file)
    places = [folder or "."] + ([] if os.path.isabs(file) else [os.path.join(packaged_configs(), _bare(folder))])
    names = [n for p in places if os.path.isdir(p) for n in os.listdir(p) if n.endswith((".yaml", ".yml"))]
    if close := difflib.get_close_matches(name, names, n=1):
        return f"; did you mean {os.path.join(folder, close[0])}?"
    return "" if os.path.isdir(places[0]) else f" (there is no folder {folder})"
