"""`make faults`: every part of the harness, on all cores, in pieces that a killed run goes on from.

The parts are the modules part_*.py of this folder. Every case is one line of JSON in the state folder once it is done,
by part, seed and version of the code, so that the same command skips it. At the end comes a table, and
docs/reliability.md is written anew unless only some parts were asked for.
"""

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import itertools
import json
import math
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path.insert(0, str(REPO))

from tests.faults import child, known, page, shim, world  # noqa: E402 - the path above is theirs
from tests.faults.part import FAULTS, Verdict  # noqa: E402

EXAMPLE = """example:
  make faults                    2,000 cases of each input, about an hour on two cores
  make faults N=10000            as long as it takes; interrupt it, and the same command goes on
  make faults FAULTS="--minutes 60"   one of each part in turn, until the hour is over
  python -m tests.faults.run --parts kills,signals -n 500 --seed 3
  python -m tests.faults.run --case operations:117 --seed 0   one case again, with what it did
"""
QUICK = 16  # cases of each part in a quick sample
SHOWN = 30  # faults of each part on the screen; the state folder has all
EVERY = 2.0, 60.0  # seconds between looks at the workers: on a terminal, in a log
NO_RANDOMIZE = 0x0040000


class Task(NamedTuple):
    """A part, its cases that are not done yet by their numbers, and the verdicts of those that are."""

    part: ModuleType
    name: str
    todo: list[tuple[int, Any]]
    done: dict[int, Verdict]


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(
        prog="python -m tests.faults.run", description="Break every input and every operation, and count what happens.",
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("-n", type=int, default=2000, metavar="N", help="cases of each kind of input (2000); 0: all of them")
    p.add_argument("--parts", metavar="A,B", help=f"some of {', '.join(find_parts())} (default: all)")
    p.add_argument("--commands", metavar="A,B", help="of the parts that run commands, only these (default: all)")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="of what is drawn (0)")
    p.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="stop after so long (never)")
    p.add_argument("--quick", action="store_true", help=f"{QUICK} cases of each part; known faults do not count")
    p.add_argument("--case", metavar="PART:NUMBER", help="run one case again and print its verdict")
    p.add_argument("--state", type=Path, default=REPO / "build/faults", help="where done cases are kept (build/faults)")
    p.add_argument("--scratch", type=Path, default=None, help="where cases run (in /dev/shm); a --case is kept")
    p.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (one per core)")
    return p.parse_args()


def find_parts() -> list[str]:
    """The names of the parts, by their files."""
    return sorted(p.stem.removeprefix("part_") for p in HERE.glob("part_*.py"))


def code_version() -> str:
    """A hash of all code that a verdict depends on."""
    digest = hashlib.sha256()
    for folder in (REPO / "modelzoo", REPO / "data_preprocessing", HERE):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".c", ".cpp", ".h")):
            digest.update(str(path.relative_to(REPO)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def preload(state: Path) -> str:
    """Begin this process anew with the shim loaded, if it is not; returns why it cannot be, or ""."""
    if shim.is_loaded() or "FAULTS_NO_SHIM" in os.environ:
        return os.environ.get("FAULTS_NO_SHIM", "")
    from modelzoo.kernels.compiled.build import Unavailable

    try:
        library = shim.compile_shim(state)
        environment = {**os.environ, **child.PLAIN, "LD_PRELOAD": str(library)}
    except Unavailable as e:
        environment = {**os.environ, **child.PLAIN, "FAULTS_NO_SHIM": str(e)}
    with contextlib.suppress(AttributeError):  # the same addresses every time: some libraries order by them
        ctypes.CDLL(None).personality(NO_RANDOMIZE)
    os.execve(sys.executable, [sys.executable, "-m", "tests.faults.run", *sys.argv[1:]], environment)


def label(args: argparse.Namespace) -> str:
    """What else decides the cases of a part: the commands, the seed, and whether it is a quick sample."""
    chosen = f"{args.commands.replace(',', '+')}_" if args.commands else ""
    return f"{chosen}{'quick' if args.quick else 'seed'}_{args.seed}"


def read_done(state: Path, name: str, label: str) -> dict[int, Verdict]:
    """The verdicts of a part's cases so far; a half-written last line is left out."""
    found = {}
    for path in state.glob(f"{name}-{label}-*.jsonl"):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                found[row["case"]] = Verdict(row["kind"], row["detail"])
    return found


def plan(args: argparse.Namespace, state: Path, made: world.World) -> tuple[list[Task], dict[str, str]]:
    """What is to be done, and why parts were passed over."""
    tasks, passed = [], {}
    for name in args.parts.split(",") if args.parts else find_parts():
        part = importlib.import_module(f"tests.faults.part_{name}")
        if why := getattr(part, "why_not", lambda: "")():
            passed[name] = why
            continue
        numbered = list(enumerate(list_cases(part, made, args)))
        done = read_done(state, name, label(args))
        todo = [(k, case) for k, case in numbered if k not in done]
        tasks.append(Task(part, name, todo, done))
    return tasks, passed


def list_cases(part: ModuleType, made: world.World, args: argparse.Namespace) -> Iterator[Any]:
    """The cases of a part, in an order that a larger N only goes on with."""
    names = {}
    if hasattr(part, "QUICK") and (args.commands or args.quick):
        names = {"names": tuple(args.commands.split(",")) if args.commands else part.QUICK}
    if args.quick:
        return itertools.islice(part.cases(made, QUICK, args.seed, **names), QUICK)
    wanted = args.n and max(1, int(args.n * getattr(part, "SHARE", 1)))
    return part.cases(made, wanted, args.seed, **names)


def work(tasks: list[Task], made: world.World, state: Path, room: Path, args: argparse.Namespace, index: int) -> None:
    """One worker: every `jobs`-th case of every part, one of each part in turn, until the time is over."""
    shim.begin_worker()
    end = time.monotonic() + 60 * args.minutes
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(open(state / f"{t.name}-{label(args)}-{index}.jsonl", "a")) for t in tasks]
        for row in itertools.zip_longest(*(t.todo[index :: args.jobs] for t in tasks)):
            for task, file, chosen in zip(tasks, files, row, strict=True):
                if chosen is None:
                    continue
                if time.monotonic() > end:
                    return
                verdict = run_one(task.part, made, chosen[1], room / f"worker_{index}" / "case")
                file.write(json.dumps({"case": chosen[0], "kind": verdict.kind, "detail": verdict.detail}) + "\n")
                file.flush()


def run_one(part: ModuleType, made: world.World, case: Any, scratch: Path) -> Verdict:
    """A case in an empty folder of its own."""
    for path in (scratch, scratch.with_name(f"{scratch.name}.tmp")):
        shutil.rmtree(path, ignore_errors=True)
    scratch.mkdir(parents=True)
    return part.run_case(made, case, scratch)


def run_workers(tasks: list[Task], made: world.World, state: Path, room: Path, args: argparse.Namespace) -> bool:
    """All cases that are not done yet, on `args.jobs` forks of this process. False if one of them failed."""
    pids = []
    for index in range(args.jobs):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                work(tasks, made, state, room, args, index)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return follow(pids, tasks, state, label(args))


def follow(pids: list[int], tasks: list[Task], state: Path, label: str) -> bool:
    """Show how far the workers are until they have ended. False if one of them failed."""
    whole, begun, shown, total = True, time.monotonic(), 0.0, sum(len(t.todo) for t in tasks)
    try:
        while pids:
            for pid in list(pids):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    pids.remove(pid)
                    whole &= status == 0
            now = time.monotonic()
            if not pids or now - shown > EVERY[not sys.stderr.isatty()]:
                shown = now
                show_progress(tasks, state, label, total, now - begun)
            time.sleep(0.2 if pids else 0)
    finally:
        print(file=sys.stderr)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return whole


def show_progress(tasks: list[Task], state: Path, label: str, total: int, seconds: float) -> None:
    """Cases, rate, time left, and faults so far, on one line."""
    counts: Counter[str] = Counter()
    for task in tasks:
        fresh = read_done(state, task.name, label).items() - task.done.items()
        counts.update(verdict.kind for _, verdict in fresh)
    n = counts.total()
    rate = n / max(seconds, 1e-9)
    left = f"{(total - n) / rate / 60:.0f} min left" if n else ""
    faults = ", ".join(f"{counts[k]} {k}" for k in FAULTS if counts[k]) or "no fault"
    line = f"faults     {n:,} of {total:,}, {rate:.1f} a second, {left}: {faults}"
    print(f"\r{line:<110}", end="", file=sys.stderr, flush=True)


def repeat(args: argparse.Namespace, made: world.World, room: Path) -> int:
    """Run the one case that --case names, and print it and its verdict."""
    name, _, number = args.case.partition(":")
    part = importlib.import_module(f"tests.faults.part_{name}")
    case = next(itertools.islice(list_cases(part, made, args), int(number), None))
    verdict = run_one(part, made, case, room / "case")
    print(case, verdict, *([f"kept       {room}"] if args.scratch else []), sep="\n")
    return int(verdict.kind in FAULTS)


def report(tasks: list[Task], passed: dict[str, str], state: Path, args: argparse.Namespace, seconds: float) -> bool:
    """Print faults and the table, write the page after a whole run, and return whether there was no fault."""
    found = {t.name: read_done(state, t.name, label(args)) for t in tasks}
    done, planned = sum(map(len, found.values())), sum(len(t.todo) + len(t.done) for t in tasks)
    if args.quick:
        for name, verdicts in found.items():
            old = [k for k, v in verdicts.items() if known.is_known(name, v)]
            found[name] = {k: v for k, v in verdicts.items() if k not in old}
            print(f"{name}: {len(old)} known faults left out" if old else f"{name}: no known fault met")
    counts = {name: Counter(v.kind for v in verdicts.values()) for name, verdicts in found.items()}
    for name, verdicts in found.items():
        wrong = [(k, v) for k, v in sorted(verdicts.items()) if v.kind in FAULTS]
        for number, verdict in wrong[:SHOWN]:
            print(f"{name}:{number}  {verdict.kind}: {verdict.detail}")
        if len(wrong) > SHOWN:
            print(f"{name}: {len(wrong) - SHOWN} more in {state}")
    print("\n" + page.table(counts, passed))
    if not (args.quick or args.parts or args.commands):
        page.write(REPO / "docs/reliability.md", counts, passed, args.seed, seconds, planned)
        print("wrote      docs/reliability.md")
    if done < planned:
        print(f"stopped    after {done:,} of {planned:,} cases; the same command goes on from here")
    return not any(c[k] for c in counts.values() for k in FAULTS)


def main() -> int:
    args = parse()
    args.state = args.state.resolve()  # the compiler works elsewhere
    args.state.mkdir(parents=True, exist_ok=True)
    if why := preload(args.state):
        print(f"note       parts that fail operations are passed over: {why}", file=sys.stderr)
    state = args.state / code_version()
    state.mkdir(exist_ok=True)
    shm = Path("/dev/shm")
    room = args.scratch or ((shm if os.access(shm, os.W_OK) else state) / f"mediswift-faults-{os.getpid()}")
    child.warm_up()
    made, begun = world.build(state / "world"), time.monotonic()
    try:
        if args.case:
            return repeat(args, made, room)
        tasks, passed = plan(args, state, made)
        whole = run_workers(tasks, made, state, room, args)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    finally:
        if not (args.case and args.scratch):
            shutil.rmtree(room, ignore_errors=True)
    return 0 if report(tasks, passed, state, args, time.monotonic() - begun) and whole else 1


if __name__ == "__main__":
    sys.exit(main())
