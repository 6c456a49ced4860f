"""docs/reference.md from the schema: every key of every YAML with its type, default and comment, and every flag.

python scripts/reference.py            # writes docs/reference.md
python scripts/reference.py --check    # reports whether it is up to date, and changes nothing
"""

import argparse
import ast
import inspect
import io
import sys
import textwrap
import tokenize
import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from data_preprocessing import cli as data_cli  # noqa: E402
from data_preprocessing.config import Job  # noqa: E402
from modelzoo import cli, entry, verbs  # noqa: E402
from modelzoo.config.sections.base import MOST, OneOf  # noqa: E402
from modelzoo.config.study import StudyFile  # noqa: E402
from modelzoo.config.task import Task, Template  # noqa: E402
from modelzoo.config.trainer import Config  # noqa: E402

TARGET = REPO / "docs" / "reference.md"
ROOTS = (
    ("Trainer configs", "`run.py -p CONFIG`; the top-level key is `trainer`.", Config),
    ("Study files", "`run.py -p STUDY -m study`; the top-level key is `study`.", StudyFile),
    ("Evaluation tasks", "`configs/eval/*.yaml`.", Task),
    ("Prompt templates", "`configs/prompt/**/*.yaml`.", Template),
    ("Preprocessing jobs", "`python -m data_preprocessing VERB --config FILE`.", Job),
)
HEAD = """# Reference

Generated from the schema by `make docs`; a test holds it up to date. A key without a default must be given. Steps are
optimizer steps, lengths are tokens, rates are per optimizer step, times are seconds, unless a line says otherwise.
Where a schedule (and `checkpoint.steps`, `log_steps`, `eval_frequency`) names steps, `75%` is that share of the run.
Unknown keys are refused with their line and the nearest known one.
"""
BASIC = {int: "integer", float: "number", str: "text", bool: "true or false", types.NoneType: "null"}


def comments(model: type[BaseModel]) -> dict[str, str]:
    """The comments next to or right above each field of `model` and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)) or cls.__module__.startswith("pydantic"):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(cls))
        except (OSError, TypeError):
            continue  # made at run time (one_of)
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        notes = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
        lines = source.splitlines()
        parsed = ast.parse(source).body[0]
        assert isinstance(parsed, ast.ClassDef)
        for node in parsed.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = [notes[n] for n in range(node.lineno, (node.end_lineno or node.lineno) + 1) if n in notes]
                if not text:
                    begin = node.lineno
                    while begin - 1 in notes and lines[begin - 2].lstrip().startswith("#"):
                        begin -= 1
                    text = [notes[n] for n in range(begin, node.lineno)]
                if text:
                    found[node.target.id] = " ".join(text)
    return found


def models(annotation: object) -> list[type[BaseModel]]:
    """The models that an annotation names, in order."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [m for arg in typing.get_args(annotation) for m in models(arg)]


def kind(annotation: object, metadata: tuple = ()) -> str:
    """An annotation in a config writer's words."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kind(args[0], (*args[1:], *metadata))
    if origin is typing.Literal:
        return " or ".join(f"`{str(a).lower() if isinstance(a, bool) else a}`" for a in args)
    if origin in (typing.Union, types.UnionType):
        parts = [kind(a, metadata if a is not types.NoneType else ()) for a in args]
        return " or ".join(dict.fromkeys(parts))
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"list of {kind(args[0])}"
        return "[" + ", ".join(kind(a) for a in args) + "]"
    if origin is dict:
        return f"mapping of {kind(args[0])} to {kind(args[1])}"
    if origin is list:
        return f"list of {kind(args[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{anchor(annotation)})"
    if annotation is typing.Any:
        return "anything"
    return BASIC.get(annotation, str(annotation)) + limits(metadata)


def limits(metadata: tuple) -> str:
    """` above 0, at most 1`, from a field's constraints; what every integer is limited to is not repeated."""
    parts = [p for item in metadata for p in (item.metadata if isinstance(item, FieldInfo) else (item,))]
    words = []
    for key, word, closest in (
        ("gt", "above", max),
        ("ge", "at least", max),
        ("lt", "below", min),
        ("le", "at most", min),
    ):
        values = [v for part in parts if (v := getattr(part, key, None)) is not None and abs(v) != MOST]
        words += [f"{word} {closest(values):{'g' if isinstance(closest(values), float) else ''}}"] if values else []
    return " " + ", ".join(words) if words else ""


def default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple | list):
        return "`[" + ", ".join(map(str, value)) + "]`"
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    return f"`{value}`" if value != "" else "empty text"


def anchor(model: type[BaseModel]) -> str:
    return model.__name__.lower()


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def section(model: type[BaseModel]) -> list[str]:
    """One model as a heading, its docstring and a table of its keys."""
    lines = [f"### {model.__name__}", ""]
    if model.__doc__ and model.__doc__ != BaseModel.__doc__ and "__doc__" in vars(model):
        lines += [" ".join(inspect.cleandoc(model.__doc__).split()), ""]
    if issubclass(model, OneOf):
        names = [f"[{n}](#{n.lower()})" for n in model.model_fields]
        return [*lines, f"A mapping with exactly one key, which names one of: {', '.join(names)}.", ""]
    if not model.model_fields:
        return [*lines, "No keys.", ""]
    notes = comments(model)
    lines += ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        what = kind(field.annotation, tuple(field.metadata))
        shown = (
            f"`{field.alias}` (or `{name}`)" if field.alias and not name.endswith("_") else f"`{field.alias or name}`"
        )
        lines.append(f"| {shown} | {cell(what)} | {cell(default(field))} | {cell(notes.get(name, ''))} |")
    return [*lines, ""]


def reachable(root: type[BaseModel], seen: list[type[BaseModel]]) -> list[type[BaseModel]]:
    """`root` and every model below it, each once, parents first."""
    if root in seen or root.__name__.startswith("_"):
        return seen
    seen.append(root)
    for field in root.model_fields.values():
        for model in models(field.annotation):
            reachable(model, seen)
    return seen


def flags(parser: argparse.ArgumentParser) -> list[str]:
    """An argument parser's flags as a table."""
    lines = ["| flag | |", "|---|---|"]
    for action in parser._actions:
        if action.help is argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(f"`{o}`" for o in action.option_strings) or f"`{action.metavar or action.dest}`"
        choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
        lines.append(f"| {name} | {cell((action.help or '').replace('%%', '%') + choices)} |")
    return [*lines, ""]


def text() -> str:
    """The whole page."""
    lines, done = [HEAD], []
    for title, how, root in ROOTS:
        lines += [f"## {title}", "", how, ""]
        fresh = [m for m in reachable(root, list(done)) if m not in done]
        done += fresh
        for model in fresh:
            lines += section(model)
    lines += ["## run.py", "", *flags(cli.parser())]
    for name, verb in verbs.VERBS.items():
        parser = argparse.ArgumentParser()
        verb.arguments(parser)
        lines += [
            f"### run.py {name}",
            "",
            verb.about,
            "",
            "```",
            *verb.example.splitlines(),
            "```",
            "",
            *flags(parser),
        ]
    lines = [line.strip() if line.startswith("  python") else line for line in lines]
    lines += ["## python -m data_preprocessing", ""]
    subparsers = next(a for a in data_cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in subparsers.choices.items():
        lines += [f"### data_preprocessing {name}", "", (parser.description or "").strip(), "", *flags(parser)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", action="store_true", help="exit code 1 if docs/reference.md is out of date")
    args = p.parse_args()
    made = text()
    if args.check:
        fresh = TARGET.exists() and TARGET.read_text(encoding="utf-8") == made
        print(f"{TARGET}: {'up to date' if fresh else 'out of date; run `make docs`'}")
        return 0 if fresh else 1
    TARGET.write_text(made, encoding="utf-8")
    keys = sum(line.startswith("| `") for line in made.splitlines())
    print(f"wrote      {TARGET} ({keys} keys and flags)")
    return 0


if __name__ == "__main__":
    sys.exit(entry.run_command(main, sys.argv[1:], "nothing was written"))
