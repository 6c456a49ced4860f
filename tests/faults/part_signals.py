"""Part: signals at random file operations, once or twice; what was done is kept, and the same command goes on."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.faults import commands, disturb
from tests.faults.part import Verdict
from tests.faults.part_operations import Case, case_fault, why_not
from tests.faults.shim import Fault, Mode
from tests.faults.world import World

NAME = "signals"
SHARE = 0.1  # of the cases of each kind of input
QUICK = ("train", "resume", "jsonl")
COMMANDS = ("train", "resume", "finetune", "pubmed", "jsonl")
SIGNALS = tuple(
    signal.Signals[f"SIG{name}"] for name in ("TERM", "INT", "HUP", "USR1", "USR2", "XCPU", "QUIT")
)  # fmt: skip

__all__ = ["COMMANDS", "NAME", "cases", "run_case", "why_not"]


def cases(world: World, n: int, seed: int, names: tuple[str, ...] = COMMANDS) -> Iterator[Case]:
    """`n` signals (2,000 if `n` is 0), a third of them twice the same."""
    draw = random.Random(seed)
    for k in range(n or 2000):
        name = names[k % len(names)]
        last = len(disturb.expected(world, name).operations)
        first = draw.randint(1, last)
        again = draw.randint(first, last) if draw.random() < 1 / 3 else 0
        yield Case(name, Fault(Mode.SIGNAL, first, int(SIGNALS[k // len(names) % len(SIGNALS)]), again=again))


def run_case(world: World, case: Case, scratch: Path) -> Verdict:
    """One command that gets a signal, and the same command again.

    A training run that took a step and got one signal leaves a checkpoint.
    """
    fault = case_fault(case)
    left: list[str] = []
    verdict = disturb.check(world, case.command, fault, scratch, left=left)
    runs = [p for p in left if p.endswith("/metrics.jsonl")]
    if verdict.kind in ("ok", "refused") and runs and not fault.again:
        saved = any(commands.STEP.match(p) for p in left)
        if not saved:
            return Verdict("lost", f"{verdict.detail}: steps were taken, and no checkpoint is left")
    return verdict
