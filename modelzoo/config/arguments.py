"""What every command line here shares: errors of one line, and numbers that are checked where they are given."""

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from modelzoo.config.errors import UserError
from modelzoo.config.values.scalars import MOST, PERCENT, is_number, parse_number, respell_number

DEVICES = ("CSX", "GPU", "CPU", "auto")


def device(text: str) -> str:
    """A device as it is spelled here, for argparse: `cpu` is CPU. Another word stays, for `choices` to refuse."""
    return {name.lower(): name for name in DEVICES}.get(text.lower(), text)


def _require_words(action: argparse.Action, values: object) -> None:
    """Refuse an empty word, which `-o "$RUN"` is where no RUN is set: it would count as a flag that is not there."""
    if values == "" or isinstance(values, list) and "" in values:
        raise argparse.ArgumentError(action, "is empty; a shell's variable that is not set gives that")


class _Once(argparse._StoreAction):
    """Stores a flag's value, and refuses a second one: argparse would keep the last in silence. None is empty."""

    filled: argparse.Namespace | None = None  # by the last parse that met the flag

    def __call__(self, parser, namespace, values, option_string=None):
        _require_words(self, values)
        before = getattr(namespace, self.dest, None)
        if self.option_strings and self.filled is namespace and values != before:
            raise argparse.ArgumentError(self, f"given twice, as {_show(before)} and as {_show(values)}; give it once")
        self.filled = namespace
        super().__call__(parser, namespace, values, option_string)


class _Extend(argparse._ExtendAction):
    """Adds a flag's values to those before. None is empty."""

    def __call__(self, parser, namespace, values, option_string=None):
        _require_words(self, values)
        super().__call__(parser, namespace, values, option_string)


class Settings(argparse._AppendAction):
    """Collects KEY=VALUE, and refuses a key that was given before with another value."""

    def __call__(self, parser, namespace, values, option_string=None):
        key, equals, _ = str(values).partition("=")
        for other in getattr(namespace, self.dest) or ():
            if equals and other != values and other.partition("=")[0].strip() == key.strip():
                raise argparse.ArgumentError(self, f"{key.strip()} is given twice, with other values; give it once")
        super().__call__(parser, namespace, values, option_string)


def _show(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


class Parser(argparse.ArgumentParser):
    """argparse, but what it refuses is one line with exit code 2, and of a flag's two values none is dropped.

    A flag of one value that is given twice is refused. Flags of many take `action="extend"`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _Once)
        self.register("action", "extend", _Extend)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _number(named: str, low: float, above: bool = False, most: int = MOST, below: float = math.inf) -> Callable:
    """A parser of what a config takes for a number, from `low` on, or `above` it; an integer where `low` is one."""
    kind = type(low)

    def parse(text: str):
        if not is_number(text) or not isinstance(value := parse_number(text), kind | int):
            plain = respell_number(text, kind is int)
            raise argparse.ArgumentTypeError(
                f"takes {named}, got {text[:40]!r}" + (f"; write {plain}" if plain else "")
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"takes a finite number, got {text!r}")
        if value < low or (above and value == low):
            raise argparse.ArgumentTypeError(f"must be {'above' if above else 'at least'} {low:g}, got {text[:40]}")
        if value >= below or value > most:
            limit = f"below {below:g}" if value >= below else f"at most {most}"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {text[:40]}")
        return kind(value)

    return parse


def integer(low: int, high: int) -> Callable:
    """Parses an integer of at least `low` and at most `high`."""
    return _number("an integer", low, most=high)


positive_int = _number("an integer", 0, above=True)
count = _number("an integer", 0)
nonnegative_float = _number("a number", 0.0)
positive_float = _number("a number", 0.0, above=True)
share = _number("a share of 1", 0.0, below=1)


def sparsity(text: str) -> float:
    """Parses the share of weights that is off as a config writes it: 0.75, or 75%."""
    percent = PERCENT.fullmatch(text)
    return share(str(float(percent[1]) / 100) if percent else text)


def parse_block(text: str) -> list[int]:
    """Parses 32,32 as rows and columns."""
    return _parse_pair(text, ",", "ROWS,COLUMNS, for example 32,32")


def parse_nm(text: str) -> list[int]:
    """Parses 2:4 as two of every four."""
    n, m = _parse_pair(text, ":", "N:M, for example 2:4")
    if n >= m:
        raise argparse.ArgumentTypeError(f"N must be below M, got {text[:40]}")
    return [n, m]


def _parse_pair(text: str, sign: str, form: str) -> list[int]:
    parts = text.split(sign)
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) < 10 and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(f"takes {form}, got {text[:40]!r}")
    return [int(p) for p in parts]
