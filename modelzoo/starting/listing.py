"""`run.py list WHAT`: names that a config or a command line takes, with a line about each. No torch."""

import ast
import os
import re
from collections.abc import Callable, Iterator

from pydantic import BaseModel

from modelzoo.config.errors import UserError
from modelzoo.config.loading.explain import did_you_mean, models_at
from modelzoo.config.loading.load import packaged_configs
from modelzoo.config.loading.walk import models
from modelzoo.config.trainer import Config


def list_algorithms() -> Iterator[tuple[str, str]]:
    """Sparsity algorithms, with the first line of each class's docstring. Read, not imported: it needs torch."""
    file = os.path.join(os.path.dirname(os.path.dirname(__file__)), "sparsity", "algorithms.py")
    with open(file, encoding="utf-8") as f:
        tree = ast.parse(f.read())
    about = {n.name: (ast.get_docstring(n) or "").partition("\n")[0] for n in tree.body if isinstance(n, ast.ClassDef)}
    (table,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "ALGORITHMS")
    assert isinstance(table, ast.Dict)
    for key, cls in zip(table.keys, table.values, strict=True):
        assert key is not None
        yield ast.literal_eval(key), about[ast.unparse(cls)]


def _list_classes(place: str) -> Iterator[tuple[str, str]]:
    """The classes that a section of the config may name, with their keys."""
    for model in models_at(Config, tuple(place.split("."))):
        for name, field in model.model_fields.items():
            keys = [", ".join(m.model_fields) for m in models(field.annotation)]
            yield field.alias or name, keys[0] if keys else ""


def list_schedules() -> Iterator[tuple[str, str]]:
    """Learning-rate schedules, with their keys."""
    yield from _list_classes("trainer.init.schedulers")


def list_optimizers() -> Iterator[tuple[str, str]]:
    """Optimizers, with their keys."""
    yield from _list_classes("trainer.init.optimizer")


def _list_files(folder: str) -> Iterator[tuple[str, str]]:
    """Packaged YAMLs below `folder`, with the comment that each begins with."""
    top = os.path.join(packaged_configs(), folder)
    for path, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(n for n in names if n.endswith(".yaml")):
            file = os.path.join(path, name)
            with open(file, encoding="utf-8") as f:
                first = f.readline()
            about = first.lstrip("# ").strip() if first.startswith("#") else ""
            yield os.path.join("configs", os.path.relpath(file, packaged_configs())), about


def list_tasks() -> Iterator[tuple[str, str]]:
    """Evaluation tasks by their bare names, which --tasks takes."""
    for file, about in _list_files("eval"):
        yield os.path.basename(file).removesuffix(".yaml"), about


def list_configs() -> Iterator[tuple[str, str]]:
    """Configs that come with the trainer."""
    for folder in ("quickstart", "demo", "mediswift", "finetune", "study"):
        yield from _list_files(folder)


def list_keys() -> Iterator[tuple[str, str]]:
    """Every key of a trainer config by its dotted path, with its default; of a schedule's key, which types have it."""
    found: dict[str, dict[str, list[str]]] = {}  # by path and default, the types of schedules

    def walk(model: type[BaseModel], path: tuple[str, ...], above: tuple) -> None:
        kind = model.model_fields["type"].default if "type" in model.model_fields else None
        for name, field in model.model_fields.items():
            dotted, below = (*path, field.alias or name), models(field.annotation)
            default = "must be given" if field.is_required() else repr(field.get_default(call_default_factory=True))
            kinds = found.setdefault(".".join(dotted), {}).setdefault("" if below else default, [])
            kinds += [kind] if kind is not None and name != "type" and kind not in kinds else []
            for m in below:
                if m not in above:  # schedules of schedules
                    walk(m, dotted, (*above, m))

    walk(Config, (), (Config,))
    for path, defaults in found.items():
        yield path, ", ".join(f"{value} ({', '.join(kinds)})" if kinds else value for value, kinds in defaults.items())


LISTS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "algorithms": list_algorithms,
    "schedules": list_schedules,
    "optimizers": list_optimizers,
    "tasks": list_tasks,
    "configs": list_configs,
    "keys": list_keys,
}


def describe_list(what: str, pattern: str | None = None) -> list[str]:
    """The lines of a list, those alone that hold `pattern`, whatever its case.

    Raises:
        UserError: there is no such list, or nothing holds the pattern.
    """
    if what not in LISTS:
        near = did_you_mean(what, list(LISTS))
        others = near if near.endswith("?") else f"; there are {', '.join(LISTS)}"
        raise UserError(f"{what}: no such list{others}")
    found = list(LISTS[what]())
    kept = [x for x in found if pattern is None or re.search(re.escape(pattern), " ".join(x), re.IGNORECASE)]
    if not kept:
        raise UserError(f"{pattern}: none of the {len(found)} {what} has this in its line")
    width = min(48, max(len(name) for name, _ in kept))
    return [f"{name:<{width}}  {about}".rstrip() for name, about in kept]
