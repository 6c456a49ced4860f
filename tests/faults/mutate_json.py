"""JSON that is well-formed and means something else, and JSON that is none."""

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

# Values that a reader may not expect where another is: of each type, and of each size.
ODD = (
    None, True, False, 0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**63, 10**12, -(10**12), 10**40, 0.5, -0.0, 1e308, 1e-320,
    "", " ", "x", "0", "-1", "1e999", "nan", "null", "²", "١٢", "٣.٥", "\u0000", "\ud800", "é", "a\nb", "a\r\nb",
    "../../x",
    "/dev/zero", "/etc/passwd", "$x^$", "<script>alert(1)</script>", "{0}", "%s%n", "x" * 5000, "\u202e\u200b", "💥",
    [], {}, [[]], [{}], {"": ""}, {"a": {"b": {}}}, [None], [1, 2, 3], [0] * 2000, {str(i): i for i in range(200)},
)  # fmt: skip
RAW = (  # spelled so, and not otherwise
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "01", "+1", "0x10", "1_000", ".5", "'x'", "undefined",
    "//x\n1",
    '"\\ud800"', '"\\udc00\\ud800"', "9" * 5000, "[" * 5000, "[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300,
    '"\\u0000"', '"a\tb"', "1 2", ",", "",
)  # fmt: skip
_MARK = "\x01MARK\x01"


def places(value: Any, above: tuple = ()) -> Iterator[tuple]:
    """The path of each value of a tree, the root's () first."""
    yield above
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*above, key))


def get_value(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def set_value(tree: Any, path: tuple, value: Any) -> Any:
    """`tree` with another value at `path`; it is changed in place, except at its root."""
    if not path:
        return value
    get_value(tree, path[:-1])[path[-1]] = value
    return tree


def mutate_tree(tree: Any, draw: Random) -> Any:
    """A copy of a tree of dicts, lists and values that differs in one place."""
    out = copy.deepcopy(tree)
    where = list(places(out))
    path = draw.choice(where[1:] or where)
    kind = draw.randrange(8)
    found = get_value(out, path)
    if kind == 0 and path:  # gone
        del get_value(out, path[:-1])[path[-1]]
        return out
    if kind == 1 and path and isinstance(path[-1], str):  # under another name
        above = get_value(out, path[:-1])
        name = draw.choice((path[-1].upper() + "_", path[-1] + " ", "", "x" * 300, path[-1][:-1], "ключ", "__class__"))
        above[name] = above.pop(path[-1])
        return out
    if kind == 2:  # another place's value
        return set_value(out, path, copy.deepcopy(get_value(tree, draw.choice(where))))
    if kind == 3:  # one level deeper
        return set_value(out, path, draw.choice(([found], {"value": found}, [found, found], str(found))))
    if kind == 4 and isinstance(found, int | float) and not isinstance(found, bool):  # near
        near = (-found, found + 1, found - 1, found * 2, found * 10**9, float(found) + 0.5, str(found), found % 7)
        return set_value(out, path, draw.choice(near))
    if kind == 5 and isinstance(found, str) and found:
        at = draw.randrange(len(found))
        near = (
            found[:at],
            found[:at] + "\ud800" + found[at:],
            found[:at] + chr(draw.randrange(1, 0x3000)) + found[at + 1 :],
        )
        return set_value(out, path, draw.choice((*near, found.upper(), found * 50, f"../{found}", found + "\0")))
    return set_value(out, path, copy.deepcopy(draw.choice(ODD)))


def mutate_json(data: bytes, draw: Random) -> bytes:
    """A JSON text that differs: in one value, in its spelling, or in being JSON at all. Never equal to `data`."""
    tree = json.loads(data)
    for _ in range(100):
        found = _mutate_text(tree, draw)
        if found != data:
            return found
    raise AssertionError("no mutant found")


def _dump(tree: Any) -> str:
    return json.dumps(tree, indent=1, ensure_ascii=True)


def _mutate_text(tree: Any, draw: Random) -> bytes:
    kind = draw.randrange(10)
    if kind < 6:
        return _dump(mutate_tree(tree, draw)).encode()
    where = list(places(tree))
    path = draw.choice(where[1:] or where)
    if kind == 6:  # a spelling that json.dumps does not write
        return _dump(set_value(copy.deepcopy(tree), path, _MARK)).replace(json.dumps(_MARK), draw.choice(RAW)).encode()
    if kind == 7 and path and isinstance(path[-1], str):  # a key twice, with another value
        text = _dump(tree)
        name = json.dumps(path[-1])
        return text.replace(f"{name}:", f"{name}: {json.dumps(draw.choice(ODD))}, {name}:", 1).encode()
    if kind == 8:  # not UTF-8, or another Unicode
        text = _dump(tree)
        return draw.choice((text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode(), b"\xff" + text.encode()[1:]))
    text = _dump(tree).encode()
    at = draw.randrange(len(text))
    return draw.choice(
        (text[:at], text + text, text[:at] + draw.choice((b",", b"}", b"]", b"\0", b'"')) + text[at:], b"", b" ")
    )


def mutate_json_lines(data: bytes, draw: Random) -> tuple[bytes, int]:
    """JSON Lines with one line mutated (at times into several), and the number of that line from 0."""
    lines = data.splitlines()
    at = draw.randrange(len(lines))
    tree = json.loads(lines[at])
    kind = draw.randrange(10)
    if kind < 7:
        new = json.dumps(mutate_tree(tree, draw)).encode()
    elif kind == 7:
        path = draw.choice([p for p in places(tree) if p] or [()])
        new = json.dumps(set_value(tree, path, _MARK)).replace(json.dumps(_MARK), draw.choice(RAW)).encode()
    elif kind == 8:
        new = draw.choice((b"\xff\xfe", b"\0" * 64, b"not json", b"[]", b"{}", b"null", b'"x"', b"1", b"{" * 100))
    else:
        new = lines[at][: draw.randrange(len(lines[at]))]
    new = new.replace(b"\n", b" ").replace(b"\r", b" ")
    if new == lines[at]:
        new = b"{}"
    return b"\n".join([*lines[:at], new, *lines[at + 1 :]]) + b"\n", at
