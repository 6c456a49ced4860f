"""Part: words end no run. Standard output or standard error is full, closed, or a pipe that nobody reads."""

import itertools
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults import disturb
from tests.faults.commands import COMMANDS
from tests.faults.part import Verdict
from tests.faults.shim import Fault
from tests.faults.world import World

NAME = "output"
QUICK = ("train", "export", "jsonl", "pack", "synthetic")
WAYS = ("full", "closed", "no reader")


class Case(NamedTuple):
    """A command, the stream (1 or 2; 3 for both), and what is wrong with it."""

    command: str
    stream: int
    way: str


def cases(world: World, n: int, seed: int, names: tuple[str, ...] = tuple(COMMANDS)) -> Iterator[Case]:
    """`n` of all commands, streams and ways; all of them if `n` is 0."""
    found = [Case(*c) for c in itertools.product(names, (1, 2, 3), WAYS) if not COMMANDS[c[0]].prints]
    random.Random(seed).shuffle(found)
    yield from found[: n or None]


def spoil(stream: int, way: str) -> None:
    """Make standard output or error, or both, one that takes nothing, as a process finds it at its start."""
    for number in (1, 2) if stream == 3 else (stream,):
        if way == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        elif way == "closed":
            os.close(number)
        else:
            reader, writer = os.pipe()
            os.dup2(writer, number)
            os.close(reader)
        name = {1: "stdout", 2: "stderr"}[number]
        setattr(sys, name, None if way == "closed" else os.fdopen(number, "w", encoding="utf-8", closefd=False))


def run_case(world: World, case: Case, scratch: Path) -> Verdict:
    """One command with a spoiled stream: it does all that it would have done."""
    verdict = disturb.check(world, case.command, Fault(), scratch, lambda: spoil(case.stream, case.way))
    if verdict.kind == "refused":
        return Verdict("lost", f"{case.command}, stream {case.stream} {case.way}: {verdict.detail}")
    what = f"{case.command}, stream {case.stream} {case.way}"
    return verdict._replace(detail=verdict.detail and f"{what}: {verdict.detail}")
