"""Part: the n-th file operation fails, once or from there on, in every command."""

import errno
import random
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from tests.faults import disturb, shim
from tests.faults.commands import COMMANDS
from tests.faults.part import Verdict
from tests.faults.shim import Fault, Mode
from tests.faults.world import World

NAME = "operations"
QUICK = ("train", "resume", "eval", "export", "import", "jsonl", "pack", "synthetic")
ERRORS = {  # by the letters of shim.c: what such an operation can really return
    "r": (errno.EIO, errno.EINTR), "w": (errno.ENOSPC, errno.EIO, errno.EINTR), "c": (errno.ENOSPC, errno.EIO), "x": (),
    "p": (errno.EACCES, errno.EIO, errno.EINTR), "m": (errno.ENOSPC, errno.EACCES, errno.EIO),
    "u": (errno.EACCES, errno.EIO),
}  # fmt: skip


class Case(NamedTuple):
    """A command and the fault in it."""

    command: str
    fault: Fault


def why_not() -> str:
    """Why this part cannot run here; empty if it can."""
    return "" if shim.is_loaded() else "no C compiler for the library that lets operations fail"


def faults(operations: str, with_stats: str) -> list[Fault]:
    """Every fault of a command with these file operations, and these with stat and its like.

    A call that is interrupted for ever is no fault of this world, so EINTR comes once.
    """
    found = []
    for n, kind in enumerate(operations, 1):
        for error in ERRORS[kind]:
            found += [
                Fault(Mode.FAIL, n, error, persistent) for persistent in (False, True)[: 2 - (error == errno.EINTR)]
            ]
        if kind in "rw":
            found.append(Fault(Mode.SHORT, n))
    looked_up = [n for n, kind in enumerate(with_stats, 1) if kind == "p"] if with_stats != operations else []
    return found + [Fault(Mode.FAIL, n, error, stats=True) for n in looked_up for error in (errno.EIO, errno.EACCES)]


def mix(seed: int, lists: dict[str, list]) -> Iterator[tuple[str, Fault]]:
    """(command, fault) of every list in a random order: one of each command in turn, until none is left."""
    draw = random.Random(seed)
    for found in lists.values():
        draw.shuffle(found)
    for row in zip_longest(*lists.values()):
        yield from ((name, fault) for name, fault in zip(lists, row) if fault is not None)


def cases(world: World, n: int, seed: int, names: tuple[str, ...] = tuple(COMMANDS)) -> Iterator[Case]:
    """`n` of all faults, as many of each command as there are; all of them if `n` is 0."""
    lists = {name: faults(*disturb.expected(world, name)[2:]) for name in names}
    for k, (name, fault) in enumerate(mix(seed, lists)):
        if n and k >= n:
            return
        yield Case(name, fault)


def case_fault(case: Case) -> Fault:
    """A case's fault, also where the case was read back from JSON."""
    mode, *rest = case.fault
    return Fault(Mode(mode), *rest)


def run_case(world: World, case: Case, scratch: Path) -> Verdict:
    """One command with one fault, and the same command again."""
    return disturb.check(world, case.command, case_fault(case), scratch)
