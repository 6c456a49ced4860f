"""A preprocessing job: plan it, refuse to mix it with another, run its steps, and write manifests and report.

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
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from data_preprocessing import limits
from data_preprocessing.config import Job
from data_preprocessing.inputs import listing, streams
from data_preprocessing.jobs import engine
from data_preprocessing.steps import drops, encode, parts, store
from data_preprocessing.steps.parts import OfJob, Part
from data_preprocessing.steps.sorting import MEMORY
from data_preprocessing.tokens import shards
from modelzoo.config.errors import UserError
from modelzoo.config.merge import merge
from modelzoo.files import naming, remove_temporaries
from modelzoo.lock import lock_folder
from modelzoo.reading import MAX_TEXT, exists
from modelzoo.records import read_json

JOB_FORMAT = 1
UNITS_A_BUCKET, MANY_BUCKETS = 16, 64  # where the job names no number: each bucket opens every unit
ENTRY = 170  # bytes of an input in a manifest, without its name
STEPS = ("extract", "keys", "texts", "near", "groups", "tokenizer", "encode", "finish")


@dataclasses.dataclass(frozen=True)
class Plan(OfJob):
    """A job bound to its inputs."""

    units: list[list[dict]]
    passed: dict[str, int] = dataclasses.field(default_factory=dict)  # files in the inputs that are not read, by kind

    def part(self, step: str, index: int, memory: int = MEMORY) -> Part:
        """One call of one step."""
        files = self.units[index] if step in ("extract", "encode") else []
        bare = self.job.model_copy(update={"input": ()})
        passed = self.passed if step == "finish" else {}
        return Part(bare, step, index, files, len(self.units), memory, passed)


@dataclasses.dataclass(frozen=True)
class How:
    """How to run, none of which may change what comes out."""

    workers: int = 1
    engine: str = "local"
    shard: tuple[int, int] = (0, 1)  # this process's share of every step: number i of n
    step: str | None = None  # this step alone
    memory: int = MEMORY  # bytes that a call may sort with
    wait_seconds: float = 3600.0  # how long a share waits for the others to finish a step


def make_plan(job: Job) -> Plan:
    """Find the inputs, and check them and the config against what OUT was begun with."""
    passed: Counter[str] = Counter()
    files = listing.find(job.input, job.source, passed)
    units = listing.units(files, job.unit_megabytes)
    job = job.model_copy(update={"buckets": _choose_buckets(job, len(units))})
    plan = Plan(job, units, dict(passed))
    tokenizer = None if job.tokenizer.path == "train" else _sha(parts.read_given(job.tokenizer.path))
    settings = _settings(job)
    settings["filters"]["decontaminate"] = [streams.sha256_file(p) for p in job.filters.decontaminate]
    record = {
        "format": JOB_FORMAT,
        "config": settings,
        "tokenizer_sha256": tokenizer,
        "inputs": [[{"name": f["name"], "bytes": f["bytes"]} for f in unit] for unit in units],
    }
    _check_listable(files, job)
    path = os.path.join(job.output, "job.json")
    if exists(path):
        difference = _difference(_add_defaults(read_json(path, "missing")), record)
        if difference and not _anything_done(plan):
            shards.write_json(path, record)  # nothing was done yet, so there is nothing to mix
        elif difference:
            raise UserError(f"{job.output}: was begun with {difference}; give another --output, or delete this one")
    else:
        if exists(job.output) and any(not n.startswith(".") for n in os.listdir(job.output)):
            raise UserError(f"{job.output}: is not empty and was not begun by this command; give another --output")
        shards.write_json(path, record)
    return plan


def _choose_buckets(job: Job, units: int) -> int:
    """Those of the job or of the folder that was begun; else as many as cores can use: 8, and more for many units."""
    path = os.path.join(job.output, "job.json")
    if "buckets" in job.model_fields_set:
        return job.buckets
    if exists(path):
        begun = read_json(path, "missing")
        config = begun.get("config") if isinstance(begun, dict) else None
        known = config.get("buckets") if isinstance(config, dict) else None
        if isinstance(known, int) and 1 <= known <= limits.BUCKETS:
            return known
    return min(max(job.buckets, 2 ** (units // UNITS_A_BUCKET).bit_length()), MANY_BUCKETS)


def _check_listable(files: list[dict], job: Job) -> None:
    """Refuse more files than a manifest that can be read again lists."""
    size = sum(len(file["name"].encode()) + ENTRY for file in files)
    if size > MAX_TEXT:
        raise UserError(
            f"{job.input[0]}: {len(files):,} input files are more than a manifest can list (about "
            f"{MAX_TEXT * len(files) // size:,}); put small files together: articles into tar archives, lines into one"
        )


def _settings(job: Job) -> dict[str, Any]:
    """The settings that decide what comes out."""
    settings = job.model_dump(mode="json", exclude={"input", "output"})
    settings["tokenizer"].pop("path")
    settings["tokenizer"].pop("encoder")
    return settings


def _add_defaults(record: dict[str, Any]) -> dict[str, Any]:
    """A job.json with the defaults of settings that there were not when it was written."""
    defaults = _settings(Job(source="pubmed", input=("-",), output="-"))
    config = record.get("config")
    return record | {"config": merge(defaults, config)} if isinstance(config, dict) else record


def _anything_done(plan: Plan) -> bool:
    """Whether any step has left a marker."""
    folders = (os.path.join(plan.work, step) for step in STEPS)
    found = (name for folder in folders if exists(folder) for name in os.listdir(folder))
    return any(name.endswith(".json") and not name.startswith(".") for name in found)


def _sha(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def _difference(old: Any, new: Any, name: str = "") -> str | None:
    """The first place where two records differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if found := _difference(old.get(key), new.get(key), f"{name}.{key}" if name else key):
                return found
        return None
    if old == new:
        return None
    if name == "inputs":
        before, after = _sizes(old), _sizes(new)
        changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
        return f"other inputs ({', '.join(changed[:3]) or 'in other units'}{', ...' if len(changed) > 3 else ''})"
    return f"{name.removeprefix('config.')} = {repr(old)[:80]}, now {repr(new)[:80]}"


def _sizes(listed: Any) -> dict[str, Any]:
    """Bytes by name of the inputs in a job.json; what has another form (a damaged file) is left out."""
    units = [unit for unit in listed if isinstance(unit, list)] if isinstance(listed, list) else []
    files = [file for unit in units for file in unit if isinstance(file, dict)]
    return {str(file.get("name")): file.get("bytes") for file in files}


def tasks(plan: Plan, step: str) -> list[int]:
    """Numbers of a step's calls."""
    filters = plan.job.filters
    per_bucket = {"keys": True, "texts": filters.exact_duplicates, "near": filters.near_duplicates is not None}
    if step in ("extract", "encode"):
        return list(range(len(plan.units)))
    if step in per_bucket:
        return list(range(plan.buckets)) if per_bucket[step] else []
    return [] if step == "groups" and filters.near_duplicates is None else [0]


def run(plan: Plan, how: How, report: Callable[[str, int, int, dict | None], None] = lambda *_: None) -> dict:
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
    """Files that were read before must still be the same, or old and new would be mixed."""
    calls = []
    for index, unit in enumerate(plan.units):
        if (before := store.marker(plan.work, "extract", index)) and index % how.shard[1] == how.shard[0]:
            calls += [(file["path"], before["files"][file["name"]]["sha256"]) for file in unit]
    with contextlib.closing(engine.run(_same, calls, how.workers, describe=lambda c: c[0])) as answers:
        for (path, _), now in answers:
            if not now:
                raise UserError(
                    f"{path}: has changed since {plan.out} was begun; give another --output, or delete this one"
                )


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
