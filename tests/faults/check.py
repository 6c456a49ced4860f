"""How a case is run and looked at: in a fork with limits, its inputs and the folders around it compared after it."""

import hashlib
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.faults import child
from tests.faults.child import Outcome
from tests.faults.part import Verdict, classify

SECONDS = 60.0  # of wall time: whoever waits for a FIFO; a busy machine is no hang
PROCESSOR_SECONDS = 30  # a case takes less than one
MEMORY = 3 << 30
EMPTY = "holds no example to train on"  # a job of which no record is left: its report names files and reasons


def run_function(body: Callable[[], object], folder: Path, seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Run a function in a fork as a command's body is run: it ends as commands end, and what it prints is kept."""

    def run() -> None:
        from modelzoo.entry import run_command

        def whole() -> None:
            body()

        _limit_processor()
        sys.exit(run_command(whole, ["tests.faults"], "nothing was begun"))

    return child.run("modelzoo", [], folder, seconds, memory, run)


def run_main(program: str, words: Sequence[object], folder: Path, seconds: float = SECONDS) -> Outcome:
    """Run a whole command in a fork, within the limits of a case."""
    return child.run(program, words, folder, seconds, MEMORY, _limit_processor)


def _limit_processor() -> None:
    """End this process when it has computed for too long: first by SIGXCPU, which a run may take as a wish to stop."""
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS + 5))


def weigh(outcome: Outcome, names: Iterable[str] = ()) -> Verdict:
    """The verdict of a command's end alone.

    Args:
        names: words of which a refusal must hold one: the names of the files (or keys) that are at fault.
    """
    if outcome.signal in (signal.SIGXCPU, signal.SIGKILL):
        return Verdict("hang", f"killed after {outcome.seconds:.0f} s, at most {PROCESSOR_SECONDS} of them computing")
    verdict = classify(outcome)
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    if verdict.kind == "traceback" and outcome.code == 2 and errors:  # a config's mistakes are named all at once
        verdict = Verdict("refused", errors[0])
    names = [*names, EMPTY] if names else names
    if verdict.kind == "refused" and names and not any(n in line for n in names for line in errors):
        return Verdict("traceback", f"the refusal names no file: {verdict.detail}")
    return verdict


def snapshot(folder: Path) -> dict[str, str]:
    """What is under a folder: a line for each entry, by its path; links are not followed."""
    found = {}
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(here, name)
            key = os.path.relpath(path, folder)
            if os.path.islink(path):
                found[key] = f"-> {os.readlink(path)}"
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    found[key] = hashlib.sha256(file.read()).hexdigest()
            else:
                found[key] = "folder" if os.path.isdir(path) else "special"
    return found


def strayed(before: dict[str, str], after: dict[str, str], outputs: Iterable[str]) -> str:
    """The first path that changed outside `outputs` (paths relative to the folder); "" if there is none."""
    allowed = tuple(outputs)
    for path in sorted(before.keys() | after.keys()):
        inside = any(path == o or path.startswith(f"{o}/") for o in allowed)
        if before.get(path) != after.get(path) and not inside:
            return path
    return ""


def hash_files(folder: Path, pattern: str) -> str:
    """SHA-256 of the files under `folder` that a pattern matches, with their names."""
    sums = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        if path.is_file():
            sums.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes() + b"\n")
    return sums.hexdigest()


def remove(folder: Path) -> None:
    """Remove a case's folder, and the one next to it that its commands kept their temporary files in."""
    for path in (folder, folder.with_name(f"{folder.name}.tmp")):
        shutil.rmtree(path, ignore_errors=True)
