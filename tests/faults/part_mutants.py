"""Mutants that know the format: exit 0 or one clear line that names the file, and every undamaged neighbour kept."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.faults import kinds_config, kinds_data, kinds_model
from tests.faults.part import Verdict
from tests.faults.world import World

NAME = "mutants"
INPUTS = {**kinds_data.KINDS, **kinds_model.KINDS, **kinds_config.KINDS}


class Case(NamedTuple):
    """One mutant: the kind of input, and the seed that makes it."""

    kind: str
    seed: int


def cases(world: World, n: int, seed: int) -> Iterator[Case]:
    """`n` mutants of each kind of input."""
    for number in range(n):
        for kind in INPUTS:
            yield Case(kind, seed * 1_000_003 + number)


def run_case(world: World, case: Case, scratch: Path) -> Verdict:
    return INPUTS[case.kind](world, scratch, Random(f"{case.kind} {case.seed}"))
