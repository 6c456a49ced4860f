"""A preprocessing job runs: the steps of its plan that are still to be done, here or as one share of several.

    OUT/job.json      what this folder is made from; another config or input is refused
    OUT/tokenizer.json, OUT/{train,val}/{*.h5,data_params.json,manifest.json}, OUT/documents/*.tsv.gz
    OUT/manifest.json hashes of all of that, counts by reason; equal for equal inputs, however it was computed
    OUT/report.html, OUT/report.json
    OUT/work/         between steps; deleted at the end but for the small markers

Steps: extract (per unit), keys, texts, near (per hash bucket), groups, tokenizer, encode (per unit), finish. Each call
is a pure function of what the steps before it left on disk, and its marker is written last.
"""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable

from data_preprocessing.inputs import streams
from data_preprocessing.jobs import engine
from data_preprocessing.jobs.plan import STEPS, Plan, anything_done, tasks
from data_preprocessing.steps import drops, encode, parts, store
from data_preprocessing.steps.sorting import MEMORY
from modelzoo.config.errors import UserError
from modelzoo.files import naming, remove_temporaries
from modelzoo.lock import lock_folder
from modelzoo.reading import exists


@dataclasses.dataclass(frozen=True)
class How:
    """How to run, none of which may change what comes out."""

    workers: int = 1
    engine: str = "local"
    shard: tuple[int, int] = (0, 1)  # this process's share of every step: number i of n
    step: str | None = None  # this step alone
    memory: int = MEMORY  # bytes that a call may sort with
    wait_seconds: float = 3600.0  # how long a share waits for the others to finish a step


def run_job(plan: Plan, how: How, report: Callable[[str, int, int, dict | None], None] = lambda *_: None) -> dict:
    """Run what is still to be done; returns the finish marker. `report(step, done, of, marker)` sees every call end."""
    os.makedirs(plan.work, exist_ok=True)
    with _alone(plan, how):
        remove_leftovers(plan, alone=how.shard[1] == 1)
        if how.shard == (0, 1) or how.step in (None, "extract"):
            _check_inputs(plan, how)
        _check_parts(plan, how)
        for step in STEPS if how.step is None else (how.step,):
            if how.step is not None:
                _require_before(plan, step)
            _run_step(plan, step, how, report)
        if how.step not in (None, "finish") or how.shard[0] != 0:
            return {}
        result = store.read_marker(plan.work, "finish", 0)
        clean(plan)
        return result


def _run_step(plan: Plan, step: str, how: How, report) -> None:
    numbers = tasks(plan, step)
    i, n = how.shard
    finished = store.marker(plan.work, "finish", 0) is not None
    todo = [k for k in numbers if not finished and k % n == i and store.marker(plan.work, step, k) is None]
    done = len(numbers) - len(todo)
    report(step, done, len(numbers), None)
    if todo:
        _merge_drops(plan, step, how.memory)
    calls = [(plan.part(step, k, how.memory),) for k in todo]
    answers = engine.run(parts.call, calls, how.workers, how.engine, lambda call: parts.describe(call[0]))
    with contextlib.closing(answers):  # workers end with what is raised here, not with the garbage collection after it
        for _, result in answers:
            done += 1
            report(step, done, len(numbers), result)
    if how.step is None and n > 1:
        _wait(plan, step, numbers, how)


def _merge_drops(plan: Plan, step: str, memory: int) -> None:
    """Make what the calls of a step read of the drops before it, once for all of them."""
    from data_preprocessing.steps import minhash

    before = {"texts": ("keys",), "near": minhash.steps_before(plan.job)}
    before |= dict.fromkeys(("tokenizer", "encode"), encode.steps_before(plan.job))
    if step in before:
        drops.merge(plan.work, before[step], plan.buckets, memory)


def _wait(plan: Plan, step: str, numbers: list[int], how: How) -> None:
    """Until the other shares have finished the step too: one look at its folder at a time, and ever less often."""
    end, pause, missing = time.monotonic() + how.wait_seconds, 0.1, numbers
    while missing := _find_missing(plan, step, missing):
        if store.marker(plan.work, "finish", 0) is not None:
            return
        if time.monotonic() > end:
            raise UserError(
                f"step '{step}': {len(missing)} parts of other shares are still missing after "
                f"{how.wait_seconds:g} s; start those shares, or run steps one at a time with --step"
            )
        time.sleep(pause)
        pause = min(1.2 * pause, 5.0)


def _find_missing(plan: Plan, step: str, numbers: list[int]) -> list[int]:
    """Those of a step's calls that have not finished."""
    folder = os.path.join(plan.work, step)
    there = set(os.listdir(folder)) if exists(folder) else set()
    name = lambda k: os.path.basename(store.unit_path(plan.work, step, k, ".json"))
    return [k for k in numbers if name(k) not in there or store.marker(plan.work, step, k) is None]


def _require_before(plan: Plan, step: str) -> None:
    for before in STEPS[: STEPS.index(step)]:
        missing = [k for k in tasks(plan, before) if store.marker(plan.work, before, k) is None]
        if missing:
            raise UserError(f"--step {step}: {len(missing)} parts of step '{before}' are not finished; run it first")


def _check_inputs(plan: Plan, how: How) -> None:
    """Units whose files have changed since they were read are read again, as long as nothing was made of them.

    Raises:
        UserError: a later step has begun, so that old and new would be mixed.
    """
    i, n = how.shard
    changed: dict[int, str] = {}  # the first changed file of each unit
    calls, unit_of = [], {}
    for index in store.finished(plan.work, "extract"):
        if index % n != i or (before := store.marker(plan.work, "extract", index)) is None:
            continue
        unit = plan.units[index] if index < len(plan.units) else []
        if before["files"].keys() == {file["name"] for file in unit}:
            calls += [(file["path"], before["files"][file["name"]]["sha256"]) for file in unit]
            unit_of |= {file["path"]: index for file in unit}
        else:
            changed[index] = ", ".join(before["files"])
    with contextlib.closing(engine.run(_same, calls, how.workers, describe=lambda c: c[0])) as answers:
        for (path, _), now in answers:
            if not now:
                changed.setdefault(unit_of[path], path)
    if changed and anything_done(plan, STEPS[1:]):
        first = changed[min(changed)]
        raise UserError(f"{first}: has changed since {plan.out} was begun; give another --output, or delete this one")
    for index in changed:
        store.discard(plan.work, "extract", index)
    if changed:
        print(f"{plan.out}: {len(changed)} of its units are read again, since their files changed", file=sys.stderr)


def _check_parts(plan: Plan, how: How) -> None:
    """What earlier calls left must still be as they left it; each share holds its own part."""
    if store.marker(plan.work, "finish", 0) is not None:  # they are deleted
        return
    i, n = how.shard
    done = [(step, k) for step in store.LEFT for k in tasks(plan, step) if k % n == i]
    calls = [(plan.work, step, k) for step, k in done if os.path.exists(store.unit_path(plan.work, step, k, ".json"))]
    try:
        with contextlib.closing(engine.run(store.check_left, calls, how.workers)) as answers:
            for _ in answers:
                pass
    except UserError:
        if store.marker(plan.work, "finish", 0) is None:  # else another share finished meanwhile, and deleted them
            raise


def _same(path: str, sha: str) -> bool:
    with naming(path):
        return streams.sha256_file(path) == sha


@contextlib.contextmanager
def _alone(plan: Plan, how: How):
    """Two local runs must not write one folder at the same time; shares of one job may."""
    with lock_folder(plan.work, shared=how.shard[1] > 1):
        yield


def clean(plan: Plan) -> None:
    """Delete what only the steps needed, and what killed runs left half-written; markers stay."""
    for step in STEPS:
        folder = os.path.join(plan.work, step)
        for entry in os.scandir(folder) if os.path.isdir(folder) else ():
            if not entry.name.endswith(".json") and not entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(entry.path)
    remove_leftovers(plan, alone=True)  # every share has finished every step


def remove_leftovers(plan: Plan, alone: bool) -> None:
    """Remove what killed runs left half-written; `alone` as in `files.remove_temporaries`."""
    steps = (os.path.join("work", step) for step in STEPS)
    for folder in (plan.out, *(os.path.join(plan.out, name) for name in (*encode.SPLITS, "documents", *steps))):
        if os.path.isdir(folder):
            remove_temporaries(folder, alone)
