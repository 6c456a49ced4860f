"""Flipped bits, cuts, lost and doubled sectors in every artefact: refused, or read as it was written."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.faults.artefacts import ARTEFACTS, Artefact, Read
from tests.faults.check import remove, weigh
from tests.faults.mutate_bytes import damage
from tests.faults.part import Verdict
from tests.faults.world import World

NAME = "damage"


class Case(NamedTuple):
    """One damage: the artefact's name, and the seed that chooses file and damage."""

    artefact: str
    seed: int


def cases(world: World, n: int, seed: int) -> Iterator[Case]:
    """`n` damages of each artefact, one artefact after the other's turn."""
    for number in range(n):
        for name in ARTEFACTS:
            yield Case(name, seed * 1_000_003 + number)


def run_case(world: World, case: Case, scratch: Path) -> Verdict:
    artefact = ARTEFACTS[case.artefact]
    undamaged = _undamaged(world, case.artefact, str(scratch.parent))
    _copy(world, artefact, scratch)
    draw = Random(f"{case.artefact} {case.seed}")
    files = sorted(p for p in scratch.glob(artefact.files) if p.is_file() and p.stat().st_size and p.name != ".lock")
    path = draw.choice(files)
    path.write_bytes(damage(path.read_bytes(), draw))
    found = artefact.read(world, scratch)
    name = path.relative_to(scratch)
    verdict = weigh(found.outcome, (path.name, str(name.parent), artefact.needs[0] if artefact.needs else "out"))
    where = f"{name}: "
    if verdict.kind != "ok":
        return Verdict(verdict.kind, where + verdict.detail)
    if not artefact.sealed or found.digest == undamaged.digest:
        return Verdict("ok")
    if artefact.says and _count(artefact.says, found) > _count(artefact.says, undamaged):
        return Verdict("ok", where + "named")
    return Verdict("silent", where + f"exit code 0, other content; {found.outcome.err.strip()[-200:]}")


def _count(word: str, read: Read) -> int:
    return (read.outcome.out + read.outcome.err).count(word)


def _copy(world: World, artefact: Artefact, to: Path) -> None:
    world.copy(*artefact.needs, to=to)
    artefact.prepare(world, to)


@functools.cache
def _undamaged(world: World, name: str, room: str) -> Read:
    """What comes of the artefact as it was written."""
    artefact = ARTEFACTS[name]
    folder = Path(room) / f"undamaged {name}".replace(" ", "_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        _copy(world, artefact, folder)
        found = artefact.read(world, folder)
        assert found.outcome.code == 0, f"{name}: {found.outcome.out}\n{found.outcome.err}"
        return found
    finally:
        remove(folder)
