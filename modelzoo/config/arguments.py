"""What every command line here shares: errors of one line, and numbers that are checked where they are given."""

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from modelzoo.config.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse, but what it refuses is one line with exit code 2, as every other bad input is."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _number(kind: type, named: str, low: float, open_below: bool = False, below: float = math.inf) -> Callable:
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"takes {named}, got {text[:40]!r}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"takes a finite number, got {text!r}")
        if value < low or (open_below and value == low):
            raise argparse.ArgumentTypeError(f"must be {'above' if open_below else 'at least'} {low}, got {text[:40]}")
        if value >= below:
            raise argparse.ArgumentTypeError(f"must be below {below}, got {text[:40]}")
        return value

    return parse


def integer(low: int, high: int) -> Callable:
    """Parses an integer of at least `low` and at most `high`."""
    return _number(int, "an integer", low, below=high + 1)


positive_int = _number(int, "an integer", 0, open_below=True)
count = _number(int, "an integer", 0)
nonnegative_float = _number(float, "a number", 0)
positive_float = _number(float, "a number", 0, open_below=True)
share = _number(float, "a share of 1", 0, below=1)
