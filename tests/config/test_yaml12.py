"""YAML 1.2's core schema, lines for every key, and no way to run away."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12


def parse(text: str):
    return yaml12.parse(text, "f.yaml").data


def fails(text: str) -> str:
    with pytest.raises(UserError) as e:
        yaml12.parse(text, "f.yaml")
    assert "\n" not in str(e.value)
    return str(e.value)


# https://yaml.org/spec/1.2.2/#1032-tag-resolution, row by row, and YAML 1.1's words that are plain text in 1.2
SCALARS = [
    ("6e-4", 6e-4), ("1e-5", 1e-5), ("1E+3", 1e3), ("1e5", 1e5), ("12e03", 12e3), (".5", 0.5), ("1.", 1.0),
    ("-0.0", -0.0), ("-2E+05", -2e5), ("+12.3", 12.3),
    ("0", 0), ("-19", -19), ("+7", 7), ("007", 7), ("08", 8), ("0o17", 15), ("0x1F", 31), ("0xff", 255),
    (".inf", math.inf), ("-.Inf", -math.inf), ("+.INF", math.inf),
    ("~", None), ("null", None), ("Null", None), ("NULL", None), ("", None),
    ("true", True), ("True", True), ("TRUE", True), ("false", False), ("False", False), ("FALSE", False),
    ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("No", "No"), ("y", "y"), ("n", "n"), ("nUll", "nUll"),
    ("tRue", "tRue"), ("1_000", "1_000"), ("0b101", "0b101"), ("0o8", "0o8"), ("-0x1F", "-0x1F"), ("1:30", "1:30"),
    ("1e", "1e"), ("e3", "e3"), (".", "."), ("1e-5x", "1e-5x"), ("1.2.3", "1.2.3"), ("inf", "inf"), ("nan", "nan"),
    ("2024-01-02", "2024-01-02"), ("=", "="), ("'6e-4'", "6e-4"), ('"no"', "no"), ("'1'", "1"), ("!!str 5", "5"),
    ("!!float 1", 1.0), ("!!int 0x10", 16),
]  # fmt: skip


@pytest.mark.parametrize("text,value", SCALARS)
def test_core_schema(text, value):
    found = parse(f"k: {text}")["k"]
    assert found == value and type(found) is type(value)
    assert math.copysign(1, found) == math.copysign(1, value) if isinstance(value, float) else True


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_nan(text):
    assert math.isnan(parse(f"k: {text}")["k"])


def test_keys_are_text():
    assert parse("1: a\nno: b\ntrue: c\n~: d\n1e3: e") == {"1": "a", "no": "b", "true": "c", "~": "d", "1e3": "e"}


def test_agrees_with_pyyaml_where_the_versions_agree():
    text = "a: [1, 2.5, x, {b: true, c: null}]\nd: |\n  two\n  lines\ne: >-\n  folded\n  text\nf: &x {g: 1}\nh: *x\n"
    assert parse(text) == yaml.safe_load(text)


def test_anchors_and_merge_keys():
    text = "base: &b {x: 1, y: 2}\nother: &o {x: 9, z: 3}\nm: {<<: *b, y: 5}\nl: {<<: [*o, *b], w: 0}\n"
    found = parse(text)
    assert found["m"] == {"x": 1, "y": 5} == yaml.safe_load(text)["m"]
    assert found["l"] == {"x": 9, "y": 2, "z": 3, "w": 0} == yaml.safe_load(text)["l"]


def test_own_keys_beat_merged_ones_wherever_the_merge_stands():
    doc = yaml12.parse("base: &b\n  x: 1\n  y: {deep: 2}\nm:\n  x: 5\n  y: {}\n  <<: *b\n", "f.yaml")
    assert doc.data["m"] == {"x": 5, "y": {}}
    assert doc.mark(("m", "x")).line == 5
    assert doc.mark(("m", "y", "deep")).line == 6  # what the own key replaced left no mark behind


def test_aliased_values_are_separate_copies():
    found = parse("a: &x {k: [1]}\nb: *x\n")
    found["a"]["k"].append(2)
    assert found["b"] == {"k": [1]}


def test_every_key_has_its_line():
    doc = yaml12.parse("# comment\na:\n  b: 1\n  c:\n  - x\n  -\n    d: 2\n", "f.yaml")
    lines = {p: m.line for p, m in doc.marks.items()}
    assert lines[("a",)] == 2 and lines[("a", "b")] == 3 and lines[("a", "c")] == 4
    assert lines[("a", "c", 0)] == 5 and lines[("a", "c", 1, "d")] == 7
    assert str(doc.mark(("a", "missing", "deeper"))) == "f.yaml:2"  # the nearest that was written


def test_duplicate_keys_are_problems_with_both_lines():
    doc = yaml12.parse("a:\n  x: 1\n  y: 2\n  x: 3\na: 4\n", "f.yaml")
    assert len(doc.problems) == 2
    assert any(p.startswith("f.yaml:4:") and "'a.x'" in p and "line 2" in p for p in doc.problems)
    assert any(p.startswith("f.yaml:5:") and "'a'" in p and "line 1" in p for p in doc.problems)


BAD = [
    ("a: &x [*x]\n", 1, "without end"),
    ("a: &x {b: *x}\n", 1, "without end"),
    ("a: &x {<<: *x}\n", 1, "without end"),
    ("b: 1\na: &x\n  c: &y {<<: *x}\n", 2, "without end"),
    ("a:\n\tb: 1\n", 2, "spaces, not tabs"),
    ("a: [1, 2\n", 2, "not valid YAML"),
    ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
    ("a: *nowhere\n", 1, "alias"),
    ("a: 1\nb: {<<: 3}\n", 2, "merges mappings only"),
    ("? {a: 1}\n: 2\n", 1, "plain text"),
    ("a: 1\nb: !!int abc\n", 2, "not of type int"),
    ("b: !!float x\n", 1, "not of type float"),
    ("b: !!bool yes\n", 1, "not of type bool"),
    ("b: !!python/name:os.system x\n", 1, "not of type"),
    ("b: !!timestamp 2024-01-02\n", 1, "not of type"),
    ("b: !!binary aGk=\n", 1, "not of type"),
    ("a: 1\nb: " + "9" * 5000 + "\n", 2, "not of type int"),
]


@pytest.mark.parametrize("text,line,words", BAD, ids=[w for _, _, w in BAD])
def test_bad_yaml_is_one_line_with_its_line(text, line, words):
    message = fails(text)
    assert message.startswith(f"f.yaml:{line}: ") and words in message
    assert len(message) < 250


def test_no_tab_advice_where_tabs_are_not_the_fault():
    assert "tabs" not in fails('a: "x\ty"\nb: [1\n')


def test_nesting_without_end():
    assert "nested too deeply" in fails("[" * 20_000)


def bomb(item: str) -> str:
    """Each level holds ten of the one before: 10^9 values in ten lines."""
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, 10):
        lines.append(f"a{i}: &a{i} " + item.format(", ".join([f"*a{i - 1}"] * 10)))
    return "\n".join(lines)


@pytest.mark.parametrize("item", ["[{}]", "{{<<: [{}]}}"], ids=["lists", "merges"])
def test_alias_bombs(item):
    assert "without end" in fails(bomb(item))


def test_control_characters():
    assert fails("a: \x00\n").startswith("f.yaml: not valid YAML")


def test_empty_and_lists_parse_as_what_they_are():
    assert parse("") is None and parse("# nothing\n") is None and parse("- 1\n- 2\n") == [1, 2]


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
TRICKY = st.sampled_from(
    [
        "no",
        "6e-4",
        "1_000",
        "",
        "~",
        "null",
        "0o17",
        "<<",
        "a: b",
        "- x",
        "#c",
        " lead",
        "trail ",
        "\n",
        "é",
        "=",
        "!x",
        "\t",
    ]
)
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | TRICKY
DATA = st.recursive(
    LEAF, lambda d: st.lists(d, max_size=4) | st.dictionaries(TEXT | TRICKY, d, max_size=4), max_leaves=12
)


def typed(value):
    """A form in which 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return {k: typed(v) for k, v in value.items()}
    return [typed(v) for v in value] if isinstance(value, list) else (type(value).__name__, repr(value))


@given(DATA)
def test_dump_then_parse_gives_the_same(data):
    assert typed(parse(yaml12.dump(data))) == typed(data)


@given(DATA)
def test_yaml_1_1_readers_get_the_same_too(data):
    assert typed(yaml.safe_load(yaml12.dump(data))) == typed(data)


@given(st.floats(allow_nan=False) | st.integers())
def test_numbers_survive_exactly(number):
    found = parse(yaml12.dump({"k": number}))["k"]
    assert repr(found) == repr(number)


def test_dump_keeps_the_order_and_nan():
    text = yaml12.dump({"z": 1, "a": float("nan")})
    assert text.index("z") < text.index("a")
    assert math.isnan(parse(text)["a"])


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text):
    try:
        yaml12.parse(text, "f.yaml")
    except UserError as e:
        assert str(e).startswith("f.yaml")


@given(st.text(alphabet="abx: \n-[]{}&*<,?|>'\"#!~%\t019.eE+", max_size=40))
def test_any_yaml_like_text_parses_or_is_refused(text):
    try:
        yaml12.parse(text, "f.yaml")
    except UserError as e:
        assert str(e).startswith("f.yaml")


@pytest.mark.parametrize(
    "text,words",
    [
        ("a:\n  b:\n    c: 1\n   d: 2\n", "f:4: not valid YAML: `d: 2` begins after 3 spaces; the lines above"),
        ("a:\n  model: hidden_size: 64\n", "f:2: not valid YAML: `model: hidden_size: 64` has two keys; write the"),
        ("a:\n\tb: 1\n", "indent with spaces, not tabs"),
    ],
)  # fmt: skip
def test_a_slip_in_the_layout_is_named_in_the_lines_own_words(text, words):
    with pytest.raises(UserError) as e:
        yaml12.parse(text, "f")
    assert words in str(e.value)
