"""The plan of a preprocessing job: its inputs in units, its steps and their calls; a folder of another is refused."""

import dataclasses
import os
from collections import Counter
from typing import Any

from data_preprocessing import limits
from data_preprocessing.config import Job
from data_preprocessing.inputs import listing, streams
from data_preprocessing.steps import parts, store
from data_preprocessing.steps.parts import OfJob, Part
from data_preprocessing.steps.sorting import MEMORY
from data_preprocessing.tokens import shards
from modelzoo.config.errors import UserError
from modelzoo.config.loading.merge import merge
from modelzoo.data import format as fmt
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


def make_plan(job: Job) -> Plan:
    """Find the inputs, and check them and the config against what OUT was begun with."""
    passed: Counter[str] = Counter()
    if fmt.MANIFEST.endswith(listing.SUFFIXES[job.source]):  # what the job writes would be read when it goes on
        listing.refuse_inside(job.output, job.input)
    files = listing.find(job.input, job.source, passed)
    units = listing.units(files, job.unit_megabytes)
    job = job.model_copy(update={"buckets": _choose_buckets(job, len(units))})
    plan = Plan(job, units, dict(passed))
    tokenizer = None if job.tokenizer.path == "train" else _sha(parts.check_given(job))
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
        begun = _add_defaults(read_json(path, "missing"))
        difference = _difference(begun, record)
        if difference and _is_replaceable(plan, begun, record):
            shards.write_json(path, record)
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


def _is_replaceable(plan: Plan, begun: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether nothing would be mixed: no call has ended, or units alone are read, whose files may change (`run`)."""
    same = _difference(begun | {"inputs": None}, record | {"inputs": None}) is None
    return not anything_done(plan, STEPS[1:] if same else STEPS)


def anything_done(plan: Plan, steps: tuple[str, ...]) -> bool:
    """Whether any of these steps has left a marker."""
    return any(store.list_markers(plan.work, step) for step in steps)


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
