"""No regular expression of ours takes a time that grows with the square of its input, or worse."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.regex_steps import Steps, TooManyStepsError, attacks, is_unbounded

REPO = Path(__file__).resolve().parents[1]
FILES = sorted([*(REPO / "modelzoo").rglob("*.py"), *(REPO / "data_preprocessing").rglob("*.py")])
SCANS = ("search", "sub", "subn", "split", "findall", "finditer")
SMALL, LARGE, GROWTH, HEADS = 5, 20, 6, 4


def find_patterns() -> dict[str, tuple[re.Pattern, str]]:
    """{"file:name": (pattern, how it is used)} of every pattern of a module, and of those inside of functions."""
    texts = {path: path.read_text(encoding="utf-8") for path in FILES}
    everything = "\n".join(texts.values())
    found: dict[str, tuple[re.Pattern, str]] = {}
    for path, text in texts.items():
        if not re.search(r"\bre\b", text):  # neither makes a pattern nor is one handed in by name
            continue
        tree, names = ast.parse(text), {"re": re}
        where = str(path.relative_to(REPO))
        for node in tree.body:
            if isinstance(node, ast.Assign):
                try:  # constants, and what is made of them: no import is run
                    exec(compile(ast.Module([node], []), where, "exec"), names)
                except Exception:
                    continue
        for name, value in names.items():
            for pattern in _within(value):
                found[f"{where}:{name}:{pattern.pattern!r:.30}"] = (
                    pattern,
                    _use(name, text if name[0] == "_" else everything),
                )
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func) in (f"re.{use}" for use in (*SCANS, "match", "fullmatch", "compile"))
                and isinstance(node.args[0], ast.Constant)
            ):
                use = node.func.attr
                flags = re.S if any("re.S" in ast.unparse(a) for a in node.args[1:]) else 0
                if use != "compile":
                    pattern = re.compile(node.args[0].value, flags)
                    found[f"{where}:{node.lineno}"] = pattern, use if "match" in use else "finditer"
    return found


def _within(value: object) -> list[re.Pattern]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [pattern for inner in value for pattern in _within(inner)]
    return [value] if isinstance(value, re.Pattern) else []


def _use(name: str, texts: str) -> str:
    """The most that is asked of a pattern: a search from every place, or a match at one."""
    uses = _list_uses(texts)
    if (name, "match(") in uses and not any((name, scan) in uses for scan in SCANS):
        return "match"
    return "fullmatch" if (name, "fullmatch(") in uses else "finditer"


@cache
def _list_uses(texts: str) -> set[tuple[str, str]]:
    """(name, method) of all `name.method` in a text, "match(" and "fullmatch(" where it is called."""
    found = re.findall(rf"\b(\w+)\.(match\(|fullmatch\(|(?:{'|'.join(SCANS)})\b)", texts)
    return {*found, *((name, "match(") for name in re.findall(r"match\((\w+)[,)]", texts))}


PATTERNS = find_patterns()


def growth(pattern: re.Pattern, use: str) -> tuple[float, str]:
    """The largest factor by which four times the repeats take more steps, and the text that shows it."""
    steps, whole = Steps(pattern, bound=2), Steps(pattern)
    worst = (0.0, "")
    if not is_unbounded(steps.nodes):
        return worst
    heads, pumps = attacks(steps.nodes)
    for head in sorted(heads, key=len)[:HEADS]:
        for pump in pumps:
            for tail in ("", "\0"):
                try:
                    counts = []
                    for n in (SMALL, LARGE):
                        steps.spans(head + pump * n + tail, use)
                        counts.append(steps.count)
                    factor = counts[1] / counts[0]
                except TooManyStepsError:
                    factor = float("inf")
                worst = max(worst, (factor, head + pump * SMALL + tail))
        text = head + "".join(pumps)
        assert whole.spans(text, use) == _spans(pattern, text, use), f"the counting matcher errs on {text!r}"
    return worst


def _spans(pattern: re.Pattern, text: str, use: str) -> list[tuple[int, int]]:
    given = text.encode("latin-1") if isinstance(pattern.pattern, bytes) else text
    if use == "finditer":
        return [found.span() for found in pattern.finditer(given)]
    found = getattr(pattern, use)(given)
    return [found.span()] if found else []


@pytest.mark.parametrize("name", PATTERNS)
def test_time_grows_with_the_input_and_no_faster(name):
    factor, text = growth(*PATTERNS[name])
    assert factor < GROWTH, f"{PATTERNS[name][0].pattern!r}: {factor:.3g} times the steps on 4 times {text!r}"


def test_all_patterns_are_found():
    assert len(PATTERNS) > 60 and sum(":_" in name for name in PATTERNS) > 30


@pytest.mark.parametrize(
    ("pattern", "use"),
    [
        (r"(a+)+$", "match"),
        (r"(?:\d+[a-z]?)*$", "match"),
        (r"(a|a)*b", "match"),
        (r"\s*x", "finditer"),
        (rb"<PMID\b([^>]*)>", "finditer"),
        (r"\[.*?\]x", "finditer"),
        (r"a*a*b", "match"),
        (r"(?=[^)]*x)\(", "finditer"),
    ],
)
def test_what_is_slow_is_found_to_be(pattern, use):
    assert growth(re.compile(pattern), use)[0] > GROWTH


@pytest.mark.parametrize(
    "pattern", [r"\s+x?", r"[ab]*+c?", r"<PMID[^>]{0,9}>", r"(?:ab?)*c?", r"x(?!y)", r"(?<=a)b|\bc"]
)
def test_what_is_not_slow_is_not(pattern):
    assert growth(re.compile(pattern), "finditer")[0] < GROWTH
