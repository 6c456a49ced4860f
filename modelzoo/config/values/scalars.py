"""What a number is, in a config as on a command line: plain scalars of YAML 1.2's core schema."""

import re
from typing import Any

MOST = 2**63 - 1  # of any integer: what a signed 64-bit one holds
PERCENT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)%")
CORE = {  # the core schema: how each type of plain scalar is written (https://yaml.org/spec/1.2.2/#1032-tag-resolution)
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),  # not in YAML 1.2, but what every reader of configs knows
}


def parse_scalar(kind: str, text: str) -> Any:
    """The value of a plain scalar of a core type. Raises ValueError where `text` is not written as that type is."""
    if kind == "str":
        return text
    if kind not in CORE or not re.fullmatch(CORE[kind][0], text):
        raise ValueError(f"{text!r} is not of type {kind}")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if text[:2] in ("0o", "0x") else int(text)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def parse_number(text: str) -> float:
    """The number that `text` is in a config. Python's own `int` and `float` take more: 1_000, " 5", "\u0663", nan.

    Raises:
        ValueError: it is none.
    """
    return parse_scalar("int" if re.fullmatch(CORE["int"][0], text) else "float", text)


def is_number(text: str) -> bool:
    """Whether `text` is written as a number."""
    try:
        parse_number(text)
    except ValueError:
        return False
    return True


def respell_number(value: str | float, integer: bool = True) -> str:
    """How a number is written where `value` is not one of the kind that is wanted: 1_000, 1,000 and 1e3 are 1000.

    Empty where `value` is none of these.
    """
    if isinstance(value, str):
        plain = value.strip().replace("_", "")
        if not integer and (percent := PERCENT.fullmatch(plain)):
            plain = f"{float(percent[1]) / 100:g}"
        if re.fullmatch(r"[-+]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]*)?", plain):
            plain = plain.replace(",", "")
        elif not integer:
            plain = plain.replace(",", ".")  # 0,75
        if not is_number(plain):
            return ""
        if not integer or isinstance(parse_number(plain), int):
            return plain
        value = parse_number(plain)
    value = float(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else ""
