"""Part: kill -9 before, in and after each file operation; the same command then gives the same bytes."""

from collections.abc import Iterator
from pathlib import Path

from tests.faults import disturb
from tests.faults.part import Verdict
from tests.faults.part_operations import Case, case_fault, mix, why_not
from tests.faults.shim import Fault, Mode
from tests.faults.world import World

NAME = "kills"
SHARE = 0.25  # of the cases of each kind of input
QUICK = ("train", "resume", "export", "import", "jsonl", "pack")
COMMANDS = (
    "train", "resume", "finetune", "export", "export-mdl", "import", "import-mdl", "pubmed", "pubmed-trained", "pmc",
    "jsonl", "pairs", "pack", "synthetic", "tokenizer", "download", "download-pmc",
)  # fmt: skip

__all__ = ["COMMANDS", "NAME", "cases", "run_case", "why_not"]


def faults(operations: str) -> list[Fault]:
    """Every kill of a command with these file operations; a write can also be cut in half."""
    found = []
    for n, kind in enumerate(operations, 1):
        modes = [Mode.KILL_BEFORE, Mode.KILL_AFTER] + [Mode.KILL_IN] * (kind == "w")
        found += [Fault(mode, n) for mode in modes]
    return found


def cases(world: World, n: int, seed: int, names: tuple[str, ...] = COMMANDS) -> Iterator[Case]:
    """`n` of all kills, as many of each command as there are; all of them if `n` is 0."""
    lists = {name: faults(disturb.expected(world, name).operations) for name in names}
    for k, (name, fault) in enumerate(mix(seed, lists)):
        if n and k >= n:
            return
        yield Case(name, fault)


def run_case(world: World, case: Case, scratch: Path) -> Verdict:
    """One command that is killed, and the same command again."""
    return disturb.check(world, case.command, case_fault(case), scratch)
