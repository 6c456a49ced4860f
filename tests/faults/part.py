"""What every part of the harness has in common: a verdict for each case, and how a command's end becomes one.

A part is a module with
    NAME                                   its name in the table
    cases(world, n, seed) -> iterator      about `n` small cases that can be pickled, the same ones for the same seed
    run_case(world, case, scratch)         runs one in `scratch`, an empty folder of its own, and returns a Verdict
and, where it needs something that a machine may lack,
    why_not() -> str                       the reason to pass it over, or ""
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.faults.child import Outcome
from tests.faults.world import World

# ok: the right result; refused: one clear line and exit code 2, 75 or 130; the rest are faults of ours.
KINDS = ("ok", "refused", "silent", "lost", "traceback", "hang", "fault70", "outside")
FAULTS = KINDS[2:]
REFUSALS = {2, 75, 130}


class Verdict(NamedTuple):
    """How one case ended: one of KINDS, and what happened where it is no ordinary end."""

    kind: str
    detail: str = ""


class Part(Protocol):
    """A module of cases."""

    NAME: str

    def cases(self, world: World, n: int, seed: int) -> Iterator[Any]: ...

    def run_case(self, world: World, case: Any, scratch: Path) -> Verdict: ...


def classify(outcome: Outcome) -> Verdict:
    """The verdict of a command's end alone: `ok` is exit code 0, and whoever asks still compares what was written."""
    last = (outcome.err.strip().splitlines() or outcome.out.strip().splitlines() or [""])[-1][:300]
    if outcome.timed_out:
        return Verdict("hang", f"no end after {outcome.seconds:.0f} s: {last}")
    if outcome.outside:
        return Verdict("outside", outcome.outside)
    if "Traceback (most recent call last)" in outcome.err + outcome.out:
        return Verdict("traceback", last)
    if outcome.signal is not None:
        return Verdict("traceback", f"died of signal {outcome.signal}: {last}")
    if outcome.code == 70:
        return Verdict("fault70", f"{last} | {outcome.fault}")
    if outcome.code == 0:
        return Verdict("ok")
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    if outcome.code not in REFUSALS:
        return Verdict("traceback", f"exit code {outcome.code}: {last}")
    if outcome.code == 2 and not errors:
        return Verdict("traceback", f"no error line with exit code 2: {last}")
    return Verdict("refused", errors[0] if errors else last)
