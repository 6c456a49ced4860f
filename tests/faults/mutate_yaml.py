"""Configs as a tired or an ill-meaning person writes them: line by line, so that comments and order stay."""

import re
from random import Random

# {fifo}, {folder}, {circle}, {missing}, {zero}: paths that whoever runs the mutant makes
VALUES = (
    "", "~", "null", "true", "no", "0", "-1", "1", "1.5", "1e3", "1e308", "1e999", ".nan", ".inf", "-.inf",
    "2147483648",
    "4294967296", "1000000000000", "99999999999999999999999999", "9" * 5000, "0x1F", "0o17", "1_000", "1:30", "'1'",
    '"x"',
    "x", "[]", "{}", "[1, 2]", "[[[]]]", "{a: 1}", "{a: {b: {c: []}}}", "- 1", "|\n  text", ">\n  text", "!!str 1",
    "!!python/object/apply:os.system [touch canary]", "!!python/name:os.system", "!!binary aGVq", "!!set {a, b}",
    "!!omap [a: 1]", "!custom 1", "&a [*a]", "*unknown", "&a", "@x", "`x`", "%x", "2024-01-01", "²", "１２", "١٢",
    "\u202e", "\ufeff", "é", "💥", "'", '"', "[", "{", "]", "a: b: c", "# x", "'\\x00'", '"\\x00"', '"\\ud800"',
    '"\\U0010FFFF"',
    "../../x", "/dev/zero", "/dev/null", "{fifo}", "{folder}", "{missing}", "$HOME", "${HOME}", "~/x", "x" * 3000,
    "[" * 300 + "]" * 300, "{a: " * 200 + "1" + "}" * 200, "[" + "1, " * 3000 + "1]",
)  # fmt: skip
BLOCKS = (
    "extends: {fifo}", "extends: {folder}", "extends: {circle}", "extends: {missing}", "extends: {zero}",
    "extends: [{missing}]",
    "extends: 1", "extends: {{}}", "extends: ''", "unknown_key: 1", "trainer: {{}}", "trainer: 1",
    "trainer:\n  init: []",
    "<<: {{a: 1}}", "<<: [1, 2]", "<<: *unknown", "base: &b {{x: 1}}\nuse:\n  <<: *b", "? [a, b]\n: 1",
    "? {{a: 1}}\n: 1",
    "---\nx: 1", "...\nx: 1", "%YAML 1.1\n---\nx: 1", "- x", "'': 1", "1: 2", "null: 1", "true: 1", "é: 1",
    "<script>: 1",
)  # fmt: skip
_KEY = re.compile(r"^(?P<indent>\s*(?:- )?)(?P<key>[\w.]+):(?P<rest>.*)$")


def _laughs(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


def _merges(levels: int = 200) -> str:
    lines = ["m0: &m0 {k0: 1}"]
    lines += [f"m{i}: &m{i}\n  <<: [{', '.join([f'*m{i - 1}'] * 5)}]\n  k{i}: 1" for i in range(1, levels)]
    return "\n".join(lines)


def mutate_yaml(data: bytes, draw: Random, paths: dict[str, str]) -> bytes:
    """A YAML text that differs from `data`.

    Args:
        paths: what `{fifo}`, `{folder}`, `{circle}`, `{missing}` and `{zero}` stand for.
    """
    for _ in range(100):
        found = _mutate(data, draw)
        for name, path in paths.items():
            found = found.replace(b"{%s}" % name.encode(), path.encode())
        if found != data:
            return found
    raise AssertionError("no mutant found")


def _mutate(data: bytes, draw: Random) -> bytes:
    lines = data.decode().splitlines()
    keyed = [(i, m) for i, line in enumerate(lines) if (m := _KEY.match(line))]
    kind = draw.randrange(12)
    if kind < 4 and keyed:  # a value of another type or size, in block or in flow
        at, m = draw.choice(keyed)
        value = draw.choice(VALUES)
        flow = re.findall(r"([\w.]+): ([^,{}\[\]]+)(?=[,}])", m["rest"])
        if flow and draw.random() < 0.7:
            key, old = draw.choice(flow)
            lines[at] = lines[at].replace(f"{key}: {old}", f"{key}: {value}", 1)
        else:
            lines[at] = f"{m['indent']}{m['key']}: {value}"
    elif kind == 4 and keyed:  # a key under another name
        at, m = draw.choice(keyed)
        keys = re.findall(r"([A-Za-z_]\w*):", lines[at])
        key = draw.choice(keys)
        name = draw.choice(
            (key[:-1], key + "s", key.upper(), key.replace("_", "-"), f"'{key} '", "é", "__init__", "*", key[::-1])
        )
        lines[at] = lines[at].replace(f"{key}:", f"{name}:", 1)
    elif kind == 5 and keyed:  # twice
        at, m = draw.choice(keyed)
        lines.insert(at, draw.choice((lines[at], f"{m['indent']}{m['key']}: {draw.choice(VALUES)}")))
    elif kind == 6:  # gone
        del lines[draw.randrange(len(lines))]
    elif kind == 7:  # indented otherwise
        at = draw.randrange(len(lines))
        lines[at] = draw.choice((" ", "\t", "   ", "\u00a0", "\u3000")) + lines[at]
    elif kind == 8:  # another block
        block = draw.choice((*BLOCKS, _laughs(), _merges())).replace("{{", "{").replace("}}", "}")
        lines = block.splitlines() + lines if draw.random() < 0.5 else lines + block.splitlines()
    elif kind == 9:  # lines in another order
        at, to = draw.randrange(len(lines)), draw.randrange(len(lines))
        lines[at], lines[to] = lines[to], lines[at]
    elif kind == 10:  # another encoding
        text = "\n".join(lines)
        return draw.choice(
            (
                text.encode("utf-16"),
                b"\xef\xbb\xbf" + text.encode(),
                text.encode() + b"\xff",
                text.encode() + b"\0",
                b"",
            )
        )
    else:  # a character
        text = "\n".join(lines) + "\n"
        at = draw.randrange(len(text))
        return (
            text[:at] + draw.choice(":{}[]#&*!|>'\"%@`,?-\t\x07\x85\u2028é") + text[at + draw.randrange(2) :]
        ).encode()
    return ("\n".join(lines) + "\n").encode()
