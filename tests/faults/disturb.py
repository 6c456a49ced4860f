"""One command with one fault: what it did, whether anything was lost, and whether the same command goes on."""

import errno
import functools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults import commands, shim
from tests.faults.child import Outcome
from tests.faults.commands import COMMANDS
from tests.faults.part import FAULTS, Verdict, classify
from tests.faults.shim import Fault, Mode
from tests.faults.world import World

KILLS = (Mode.KILL_BEFORE, Mode.KILL_IN, Mode.KILL_AFTER)
REPORTED = re.compile(
    r"^(damaged|note) .*(cannot be read|left out|leaves it out|taking the one before).*", re.M
)  # done otherwise, and named
ONCE = (".h5", ".safetensors", ".mdl", ".gz", "tokenizer.json")  # what no command writes in several versions
MANY = ("study", "verify")  # they name each run that failed, each shard that is damaged
TEMPORARY = re.compile(r"(^|/)\.[^/]*tmp[^/]*|\.part$")


class Expected(NamedTuple):
    """An undisturbed run: what is written and printed, and the letters of the operations without and with stat."""

    tree: dict[str, str]
    out: str
    operations: str
    with_stats: str


@functools.cache
def expected(world: World, name: str) -> Expected:
    """The undisturbed run, made once for a world and kept next to it."""
    path = world.path.with_name(f"{world.path.name}-expected") / f"{name}.json"
    if path.exists():
        return Expected(*json.loads(path.read_text()))
    scratch = path.with_name(f"{name}-{os.getpid()}")
    kinds, found, out = [], {}, ""
    for stats in (True, False):
        shutil.rmtree(scratch, ignore_errors=True)
        outcome, seen = _run(world, name, Fault(stats=stats), scratch / "work")
        if outcome.code != 0 or outcome.outside:
            raise RuntimeError(f"{name}, undisturbed: {outcome}")
        kinds.append(seen.kinds)
        found, out = commands.tree(scratch / "work"), outcome.out
    shutil.rmtree(scratch)
    result = Expected(found, out, kinds[1], kinds[0])
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(result))
    temporary.replace(path)
    return result


def _run(
    world: World, name: str, fault: Fault, folder: Path, before: Callable[[], None] = lambda: None
) -> tuple[Outcome, shim.Report]:
    """The command in `folder`, which is begun if it is new. `before` is called in the fork."""
    command = COMMANDS[name]
    if not folder.exists():
        commands.begin(world, command, folder)
    own = commands.prepare(command)

    def prepare() -> None:
        own()
        before()

    return shim.run_with_fault(
        fault, command.program, commands.words(world, command), folder, [world.path], command.seconds, prepare
    )


def describe(name: str, fault: Fault, seen: shim.Report, folder: Path) -> str:
    """The command, the operation and the fault, in words."""
    what = {Mode.FAIL: errno.errorcode.get(fault.error, "")}.get(fault.mode, fault.mode.name)
    if fault.mode is Mode.SIGNAL:
        what = signal.Signals(fault.error).name + (f" and again at {fault.again}" if fault.again else "")
    where = seen.path.replace(f"{folder}/", "").replace(f"{folder.parent}/", "")
    return (
        f"{name}, operation {fault.number}{' (stats)' if fault.stats else ''} ({seen.operation} {where}), "
        f"{what}{' from there on' if fault.persistent else ''}"
    )


def check(
    world: World,
    name: str,
    fault: Fault,
    scratch: Path,
    before: Callable[[], None] = lambda: None,
    left: list[str] | None = None,
) -> Verdict:
    """The verdict on a command with a fault, and on the same command after it.

    Args:
        before: is called in the fork just before the command begins.
        left: is filled with the names of the files that the disturbed command left.

    ok or refused: it ended as it should, no earlier file was lost, and the same command without a fault then wrote the
    same bytes as if there had been none.
    """
    folder = scratch / "work"
    commands.begin(world, COMMANDS[name], folder)
    start = commands.kept(folder, COMMANDS[name])
    outcome, seen = _run(world, name, fault, folder, before)
    if left is not None:
        left += commands.tree(folder)
    what = describe(name, fault, seen, folder)
    verdict = first_end(world, name, fault, folder, outcome, seen)
    if verdict.kind in FAULTS:
        return Verdict(verdict.kind, f"{what}: {verdict.detail}")
    if torn := find_torn(commands.tree(folder), expected(world, name).tree, start, verdict):
        return Verdict("silent", f"{what}: not whole, under its own name: {_brief(torn)}")
    lost = commands.differences(commands.kept(folder, COMMANDS[name]), start)
    if verdict.detail.startswith("reported: "):  # a run that went on from before a checkpoint writes it anew
        lost = [line for line in lost if not line.endswith(("state.json", "manifest.json"))]
    if lost:
        return Verdict("lost", f"{what}: {_brief(lost)}")
    whole = not commands.differences(commands.tree(folder), expected(world, name).tree)
    if whole or verdict.detail.startswith("reported: "):  # it had done all, which some commands do not do twice
        return Verdict(verdict.kind, f"{what}: {verdict.detail}")
    return second_end(world, name, folder, what, verdict)


def find_torn(found: dict[str, str], wanted: dict[str, str], start: dict[str, str], verdict: Verdict) -> list[str]:
    """Files that are written once, but are neither as they will be nor as they were."""
    if verdict.detail.startswith("reported: "):
        return []
    both = [name for name in sorted(found.keys() & wanted.keys()) if name.endswith(ONCE)]
    return [name for name in both if found[name] not in (wanted[name], start.get(name))]


def first_end(world: World, name: str, fault: Fault, folder: Path, outcome: Outcome, seen: shim.Report) -> Verdict:
    """The verdict on how the disturbed command ended; what it left is another matter, unless it reports success."""
    if outcome.outside:
        return Verdict("outside", outcome.outside)
    if seen.fired and outcome.signal is not None:
        if fault.mode in KILLS and outcome.signal == signal.SIGKILL and not outcome.timed_out:
            return Verdict("ok")
        if fault.mode is Mode.SIGNAL and outcome.signal == fault.error:
            return Verdict("ok")
    if fault.mode is Mode.SIGNAL and outcome.code == 128 + fault.error:
        outcome = outcome._replace(code=130)
    verdict = classify(outcome)
    if verdict.kind == "ok" and fault.mode is not Mode.SIGNAL:
        wanted = expected(world, name)
        wrong = commands.differences(commands.tree(folder), wanted.tree)
        if COMMANDS[name].prints and outcome.out != wanted.out:
            wrong.append("it prints something else")
        if any(not _is_temporary(line) for line in wrong):
            if named := REPORTED.search(outcome.err):
                return Verdict("ok", f"reported: {named[0]}")
            return Verdict("silent", f"exit code 0, but {_brief(wrong)}")
    errors = sum(line.startswith("error: ") for line in outcome.err.splitlines())
    if verdict.kind == "refused" and outcome.code == 2 and errors != 1 and name not in MANY:
        return Verdict("traceback", f"{errors} error lines: {outcome.err[-300:]}")
    return verdict


def second_end(world: World, name: str, folder: Path, what: str, verdict: Verdict) -> Verdict:
    """The verdict on the same command without a fault, run where the disturbed one ended."""
    outcome, _ = _run(world, name, Fault(), folder)
    again = classify(outcome)
    if again.kind != "ok":
        kind = again.kind if again.kind in FAULTS else "lost"
        return Verdict(kind, f"{what}; then the same command: {again.detail}")
    wrong = commands.differences(commands.tree(folder), expected(world, name).tree)
    if wrong:
        kind = "outside" if all(_is_temporary(line) for line in wrong) else "silent"
        return Verdict(kind, f"{what}; then the same command: {_brief(wrong)}")
    return Verdict(verdict.kind, f"{what}: {verdict.detail}")


def _is_temporary(line: str) -> bool:
    return line.startswith("left ") and bool(TEMPORARY.search(line.removeprefix("left ")))


def _brief(lines: list[str]) -> str:
    return "; ".join(lines[:4]) + (f"; {len(lines) - 4} more" if len(lines) > 4 else "")
