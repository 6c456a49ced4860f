"""Every `pip install` in code and pages names this package and an extra of setup.py, or a package that it asks for."""

import ast
import re

from tests.docs.pages import PAGES, REPO

TREE = ast.parse((REPO / "setup.py").read_text(encoding="utf-8"))
SETUP = {k.arg: k.value for n in ast.walk(TREE) if isinstance(n, ast.Call) for k in n.keywords}
NAME = ast.literal_eval(SETUP["name"])
EXTRAS = ast.literal_eval(SETUP["extras_require"])
WANTED = [r for rs in EXTRAS.values() for r in rs] + ast.literal_eval(SETUP["install_requires"])
KNOWN = {re.split(r"[>=;\[ ]", wanted)[0] for wanted in WANTED} | {"uv"}  # what scripts/lock.py runs
CODE = [f for room in ("modelzoo", "data_preprocessing", "scripts", "benchmarks") for f in (REPO / room).rglob("*.py")]


def hints() -> list[tuple[str, str]]:
    """What is installed, by file: `name`, `name[extra]`, `.` or `.[extra]`."""
    found = []
    for path in (*PAGES, *CODE):
        text = re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))  # a string over several lines
        for line in re.findall(r"pip install ([^\n`)]*)", text):
            words = re.sub(r"-c \S+|-r \S+|-e |--\S+|['\"(]", " ", line).split()
            if words or "-r " not in line:  # of a lock, whose names are no hints
                found.append((path.name, words[0].rstrip(".,;") or "."))
    return found


def test_there_are_hints():
    assert len(hints()) > 8 and {"engine.py", "trackers.py", "harness.py", "on_ray.py"} <= {f for f, _ in hints()}


def test_hints_name_what_there_is():
    for file, what in hints():
        name, _, extra = what.rstrip("]").partition("[")
        assert name in (NAME, ".", *KNOWN), (file, what)
        if extra and not extra.startswith(("{", "...")):  # the trackers' own table names its extras
            assert extra in EXTRAS, (file, what)


def test_the_trackers_extras_are_extras():
    from modelzoo.training.logs.trackers import KINDS

    assert {extra for extra, _ in KINDS.values()} <= EXTRAS.keys()
