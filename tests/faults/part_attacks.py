"""Named attacks, each a single case: nothing is run, followed, waited for, published or believed that should not be."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.faults import attacks_read, attacks_run
from tests.faults.part import Verdict
from tests.faults.world import World

NAME = "attacks"
ATTACKS = {**attacks_read.ATTACKS, **attacks_run.ATTACKS}


def cases(world: World, n: int, seed: int) -> Iterator[str]:
    """Every attack once, whatever `n`, in an order by the seed."""
    names = sorted(ATTACKS)
    Random(seed).shuffle(names)
    yield from names


def run_case(world: World, case: str, scratch: Path) -> Verdict:
    verdict = ATTACKS[case](world, scratch)
    return Verdict(verdict.kind, f"{case}: {verdict.detail}")
