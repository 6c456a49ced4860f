"""YAML 1.2 (core schema) with a source position for every key: what PyYAML alone gets wrong for configs.

PyYAML reads YAML 1.1: `6e-4` becomes a string, `no` becomes False and a repeated key silently wins. Here `6e-4` is a
float, `no` is a string, and a repeated key is a problem with both line numbers.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import yaml

from modelzoo.config.errors import UserError
from modelzoo.config.values.scalars import CORE, parse_scalar

Path = tuple[str | int, ...]
MAX_NODES = 100_000  # a config has hundreds of nodes; more means aliases that expand without end
MAX_DEPTH = 64  # levels of nesting; a config has a dozen
MAX_CHARS = 2**20  # of a file; a config has thousands
SHORT = 20_000  # characters: the nodes of so short a text are kept for when it is parsed again


@dataclass(frozen=True)
class Mark:
    """Where a key was written: `file` and 1-based `line` (None for values from the command line)."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


NOWHERE = "config"  # in place of the file of what no file holds


@dataclass(frozen=True)
class Repeat:
    """A key that one mapping gives twice; the value on `last` is the one in the data, as with PyYAML."""

    path: Path
    first: Mark
    last: Mark
    equal: bool  # both lines give the same value

    def __str__(self) -> str:
        dotted = ".".join(map(str, self.path))
        return f"{self.last}: duplicate key '{dotted}' (first on line {self.first.line}); remove one of them"


class Note(NamedTuple):
    """One thing done to a file as it was read. `kind`: moved, changed, assumed or idle (no effect here)."""

    kind: str
    text: str


class Marks(dict[Path, Mark]):
    """The mark of each path. Knows which paths are below another, so that forgetting them costs their number alone."""

    def __init__(self) -> None:
        super().__init__()
        self._below: dict[Path, set[Path]] = {}  # by path, the marked or passed ones that are one key longer

    def __setitem__(self, path: Path, mark: Mark) -> None:
        if path not in self:
            super().__setitem__(path, mark)
            while path:  # up to the first that is known
                below = self._below.setdefault(path[:-1], set())
                if path in below:
                    break
                below.add(path)
                path = path[:-1]
        else:
            super().__setitem__(path, mark)

    def setdefault(self, path: Path, default: Mark) -> Mark:  # type: ignore[override] a mark is never None
        if path not in self:
            self[path] = default
        return self[path]

    def update(self, other: dict[Path, Mark]) -> None:  # type: ignore[override]
        for path, mark in other.items():
            self[path] = mark

    def at_or_below(self, path: Path) -> list[Path]:
        """`path`, where it has a mark, and the marked paths that begin with it."""
        found, waiting = [], [path]
        while waiting:
            here = waiting.pop()
            found += [here] if here in self else []
            waiting += self._below.get(here, ())
        return found


@dataclass
class Document:
    """A parsed file: plain dicts, lists and scalars, the mark of every path in it, and the problems found so far."""

    data: Any
    marks: Marks = field(default_factory=Marks)
    problems: list[str] = field(default_factory=list)
    repeats: list[Repeat] = field(default_factory=list)  # each is in `problems` too, until it is allowed
    notes: list[Note] = field(default_factory=list)  # what was done to old spellings and dialects, and what was lost

    def mark(self, path: Path) -> Mark:
        """The mark of `path`, or of its nearest ancestor that was written down."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, Mark(NOWHERE))

    def forget(self, path: Path) -> None:
        """Drop the marks of `path` and of all below it: another value takes its place."""
        if path in self.marks:
            for stale in self.marks.at_or_below(path):
                del self.marks[stale]


TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """A SafeLoader whose plain scalars resolve by the YAML 1.2 core schema."""


_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in CORE.items():
    _Loader.add_implicit_resolver(TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


class _Builder:
    """Turns a node tree into data, recording marks and problems on the way."""

    def __init__(self, file: str):
        self.doc = Document(None)
        self.file = file
        self.nodes = 0

    def build(self, node: yaml.Node, path: Path, open_nodes: tuple = ()):
        self._count(node, open_nodes)
        self.doc.marks.setdefault(path, Mark(self.file, node.start_mark.line + 1))
        if isinstance(node, yaml.CollectionNode) and node.tag not in (TAG + "map", TAG + "seq"):
            raise self._error(node, f"{node.tag.replace(TAG, '!!')} is no type of a config; leave the tag out")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*open_nodes, node))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i), (*open_nodes, node)) for i, item in enumerate(node.value)]
        try:
            return parse_scalar(node.tag.removeprefix(TAG), node.value)
        except ValueError:
            text = node.value if len(node.value) < 40 else node.value[:40] + "..."
            raise self._error(node, f"{text!r} is not of type {node.tag.removeprefix(TAG)}") from None

    def _mapping(self, node: yaml.MappingNode, path: Path, open_nodes: tuple) -> dict:
        merges = [(k, v) for k, v in node.value if k.tag == TAG + "merge"]
        result: dict = {}
        for key_node, value_node in merges:  # first, wherever they are written: the mapping's own keys win
            merged = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for parent in reversed(merged):
                if not isinstance(parent, yaml.MappingNode):
                    raise self._error(key_node, "'<<' merges mappings only")
                self._count(parent, open_nodes)
                result.update(self._mapping(parent, path, (*open_nodes, parent)))
        lines: dict[str, Mark] = {}
        for key_node, value_node in node.value:
            if key_node.tag == TAG + "merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key must be plain text")
            key = key_node.value  # always text: `1:` and `no:` are the keys "1" and "no"
            here, mark = (*path, key), Mark(self.file, key_node.start_mark.line + 1)
            self.doc.forget(here)
            self.doc.marks[here] = mark
            value = self.build(value_node, here, open_nodes)
            if key in lines:
                repeat = Repeat(here, lines[key], mark, value == result[key])
                self.doc.repeats.append(repeat)
                self.doc.problems.append(str(repeat))
            lines[key], result[key] = mark, value
        return result

    def _count(self, node: yaml.Node, open_nodes: tuple) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES or any(node is other for other in open_nodes):
            raise self._error(node, "aliases expand without end; write the values out")
        if len(open_nodes) > MAX_DEPTH:
            raise self._error(node, "nested too deeply for a config")

    def _error(self, node: yaml.Node, text: str) -> UserError:
        return UserError(f"{self.file}:{node.start_mark.line + 1}: {text}")


def parse(text: str, file: str) -> Document:
    """Parse YAML 1.2 `text`; `file` names it in messages.

    Raises:
        UserError: the text is not YAML, or holds more than one document.
    """
    builder = _Builder(file)
    if len(text) > MAX_CHARS:
        raise UserError(f"{file}: has {len(text):,} characters; a config has at most {MAX_CHARS:,}")
    try:
        node = _compose_short(text) if len(text) <= SHORT else yaml.compose(text, Loader=_Loader)
        builder.doc.data = None if node is None else builder.build(node, ())
    except yaml.MarkedYAMLError as e:
        line = e.problem_mark.line + 1 if e.problem_mark else "?"
        raise UserError(f"{file}:{line}: not valid YAML: {_explain(e, text)}") from None
    except yaml.YAMLError as e:
        raise UserError(f"{file}: not valid YAML: {' '.join(str(e).split())}") from None
    except RecursionError:
        raise UserError(f"{file}: nested too deeply for a config") from None
    return builder.doc


@lru_cache(maxsize=64)
def _compose_short(text: str) -> yaml.Node | None:
    """The nodes of a text, which are only read: a study's runs differ in a few values of one file."""
    return yaml.compose(text, Loader=_Loader)


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    """What the parser says, in words of the line at fault where the mistake is a usual one."""
    problem, mark = error.problem or str(error.context), error.problem_mark
    if "\\t" in problem:
        return f"{problem}; indent with spaces, not tabs"
    if mark is None or mark.line >= len(lines := text.split("\n")):
        return problem
    line, above = lines[mark.line], [x for x in lines[: mark.line] if x.strip() and not x.lstrip().startswith("#")]
    indent, words = len(line) - len(line.lstrip()), line.strip()[:80]
    if problem.startswith("mapping values are not allowed") and line.count(":") > 1:
        first = words.partition(":")[0]
        return f"`{words}` has two keys; write the second on a line of its own, further in than {first!r}"
    others = sorted({len(x) - len(x.lstrip()) for x in above})
    if "block end" in problem and others and indent not in others:
        known = ", ".join(map(str, others[:-1])) + (" or " if others[1:] else "") + str(others[-1])
        return f"`{words}` begins after {indent} spaces; the lines above it begin after {known}"
    return problem


class _Dumper(yaml.SafeDumper):
    """Writes what YAML 1.1 readers (PyYAML, and so Model Zoo) and `parse` read back to the same values."""

    def ignore_aliases(self, data):
        return True


# A string is quoted where either version would take it for something else.
for _name, (_pattern, _first) in CORE.items():
    _Dumper.add_implicit_resolver(TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


def _float(dumper: yaml.SafeDumper, value: float):
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # to YAML 1.1, 1e-05 is a string
    return dumper.represent_scalar(TAG + "float", text)


def _str(dumper: yaml.SafeDumper, value: str):
    # PyYAML folds Unicode's own line breaks as if they were spaces; in double quotes it escapes them.
    style = '"' if any(c in value for c in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(TAG + "str", value, style)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _str)


def dump(data: object) -> str:
    """`data` (dicts, lists, scalars) as YAML text, keys in their given order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
