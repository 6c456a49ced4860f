"""`report --scale`: what each step of a job cost, and what it would cost for as many documents as there are.

The model, in which every figure is this job's: CPU time and bytes grow with the documents, with n log n where a step
sorts; a step ends no sooner than its longest call; its calls are as many as the input has units, or `buckets`, or one.
"""

import html
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from data_preprocessing.jobs.plan import STEPS
from data_preprocessing.reports import report
from data_preprocessing.reports.page import make_page, make_table
from data_preprocessing.steps import drops, store
from data_preprocessing.tokens import shards
from modelzoo.config.errors import UserError
from modelzoo.progress import format_duration
from modelzoo.records import Record, check_record, read_json

CORES = (1, 32, 512)
TARGETS = {  # what there is, late in 2026
    "pubmed": {"PubMed citations": 38_000_000},
    "pmc": {"PMC articles": 7_800_000},
    "jsonl": {"documents, as many as PubMed has citations": 38_000_000, "documents, as many as PMC's": 7_800_000},
}
SHORT, FAR = 0.5, 100  # CPU seconds of a step that tell little, of a job so many times smaller
BY_UNIT, BY_BUCKET = ("extract", "encode"), ("keys", "texts", "near")
_ADVICE = {
    "drops": "one call, which merges what the buckets drop",
    "groups": "one call, which joins the pairs of all buckets",
    "tokenizer": "one call: train a tokenizer once (verb `tokenizer`), and give it with --tokenizer FILE",
    "finish": "one call, which reads what the units counted: fewer, larger units (unit_megabytes)",
}

_Size = Annotated[int, Field(ge=0, lt=2**63)]
_Seconds = Annotated[float, Field(ge=0, lt=1e12)]


class _Settings(Record):
    source: str
    buckets: Annotated[int, Field(ge=1, le=4096)]
    tokenizer: dict


class _Plan(Record):
    config: _Settings
    inputs: list[list[Any]]
    tokenizer_sha256: str | None


class _Cost(Record):
    wall_seconds: _Seconds
    cpu_seconds: _Seconds
    peak_bytes: _Size | None
    bytes_in: _Size
    bytes_out: _Size
    machine: Annotated[str, Field(max_length=1000)]


def run(out: str, documents: list[int] | None = None) -> int:
    """Print what a job cost and would cost, and write OUT/scale.html and OUT/scale.json; returns the exit code."""
    found = measure(out)
    found["estimates"] = [estimate(found, title, n) for title, n in _targets(found, documents).items()]
    target = os.path.join(out, "scale.html")
    shards.write_json(os.path.join(out, "scale.json"), found, sort=False)
    shards.write_bytes(target, page(found).encode())
    print(text(found))
    print(f"scale: {target}")
    return 0


def _targets(found: dict, documents: list[int] | None) -> dict[str, int]:
    return {f"records like these (n = {n:,})": n for n in documents} if documents else TARGETS[found["source"]]


def measure(out: str) -> dict:
    """What a finished job's markers have recorded, by step.

    Raises:
        UserError: the job is not finished, or an earlier version ran it, which recorded nothing.
    """
    facts = report.read_facts(os.path.join(out, "report.json"))
    path = os.path.join(out, "job.json")
    plan = check_record(read_json(path, "missing; it is written by a job"), _Plan, path, "is not a job of this version")
    if plan.config.source not in TARGETS:
        raise UserError(f"{path}: config.source: is none of {', '.join(TARGETS)}")
    work, units, buckets = os.path.join(out, "work"), len(plan.inputs), plan.config.buckets
    steps, machines = {}, Counter()
    for step in ("extract", "keys", "texts", "near", "groups", "drops", "tokenizer", "encode", "finish"):
        most = units if step in BY_UNIT else buckets if step in BY_BUCKET else 1
        costs = [c for c in (_read_cost(work, *at) for at in _markers(step, most)) if c is not None]
        machines.update(cost.machine for cost in costs)
        if costs:
            steps[step] = _add_up(costs, most if step != "drops" else len(costs))
    if not steps:
        raise UserError(f"{work}: no call recorded what it cost: another version made this; run it into a new folder")
    return {
        "source": plan.config.source,
        "records": facts["manifest"]["records"],
        "tokens": sum(split["tokens"] for split in facts["manifest"]["splits"].values()),
        "text_bytes": facts["text_bytes"],
        "units": units,
        "buckets": buckets,
        "trains_tokenizer_on": None if plan.tokenizer_sha256 else plan.config.tokenizer.get("train_megabytes"),
        "machines": dict(machines),
        "steps": steps,
    }


def _markers(step: str, calls: int) -> list[tuple[str, int | str]]:
    """(step, name) of the markers of a step's calls."""
    return [(s, drops.ALL) for s in STEPS] if step == "drops" else [(step, k) for k in range(calls)]


def _read_cost(work: str, step: str, index: int | str) -> _Cost | None:
    try:
        return _Cost.model_validate(store.read_cost(work, step, index))
    except ValidationError:
        return None


def _add_up(costs: list[_Cost], calls: int) -> dict:
    """A step's calls together; for those that recorded nothing, as the others were."""
    share = calls / len(costs)
    return {
        "calls": calls,
        "measured": len(costs),
        "cpu_seconds": share * sum(c.cpu_seconds for c in costs),
        "wall_seconds": share * sum(c.wall_seconds for c in costs),
        "longest_seconds": max(c.cpu_seconds for c in costs),
        "peak_bytes": max((c.peak_bytes or 0 for c in costs), default=0) or None,
        "bytes_in": round(share * sum(c.bytes_in for c in costs)),
        "bytes_out": round(share * sum(c.bytes_out for c in costs)),
    }


def estimate(found: dict, title: str, documents: int) -> dict:
    """What `documents` records like those of the job would take."""
    ratio = documents / max(found["records"], 1)
    sorting = ratio * math.log(max(documents, 2)) / math.log(max(found["records"], 2))
    steps = {}
    for step, cost in found["steps"].items():
        factor = {"tokenizer": _tokenizer_factor(found, ratio)}.get(step, sorting if step not in BY_UNIT else ratio)
        factor = ratio if step in ("finish", "drops") else factor
        cpu = factor * cost["cpu_seconds"]
        calls = cost["calls"] if step in BY_BUCKET else max(1, round(ratio * cost["calls"])) if step in BY_UNIT else 1
        # A unit stays as large as it is where there are more of them; a bucket grows.
        longest = cost["longest_seconds"] if step in BY_UNIT and ratio > 1 else factor * cost["longest_seconds"]
        seconds = {str(cores): max(cpu / min(cores, calls), longest) for cores in CORES}
        steps[step] = {"cpu_seconds": cpu, "calls": calls, "seconds": seconds}
    total = {cores: sum(step["seconds"][cores] for step in steps.values()) for cores in map(str, CORES)}
    serial = sum(step["cpu_seconds"] for step in steps.values() if step["calls"] == 1)
    size = lambda name, *of: ratio * sum(found["steps"][step][name] for step in of if step in found["steps"])
    return {
        "title": title,
        "documents": documents,
        "steps": steps,
        "seconds": total,
        "serial_share": serial / max(sum(step["cpu_seconds"] for step in steps.values()), 1e-9),
        "input_bytes": size("bytes_in", "extract"),
        "work_bytes": size("bytes_out", "extract", "keys", "texts", "near", "groups", "drops"),
        "output_bytes": size("bytes_out", "encode"),
        "tokens": ratio * found["tokens"],
        "limits": _limits(steps, total),
    }


def _tokenizer_factor(found: dict, ratio: float) -> float:
    """One that is given is read; one that is trained sees so many bytes of text, or all of it."""
    most = found["trains_tokenizer_on"]
    if not most:
        return 1.0
    return max(1.0, min(ratio, most * 1e6 / max(found["text_bytes"], 1)))


def _limits(steps: dict, total: Mapping[str, float]) -> dict[str, str]:
    """The steps that take a twentieth of the time on the most cores, and would not on more; what can be done."""
    cores, limits = CORES[-1], {}
    for step, found in steps.items():
        seconds = found["seconds"][str(cores)]
        if seconds < total[str(cores)] / 20 or seconds <= 1.5 * found["cpu_seconds"] / cores:
            continue
        if step in BY_BUCKET and found["calls"] < cores:
            limits[step] = f"{found['calls']:,} calls at most, as many as `buckets`: --set buckets={cores}"
        elif step in BY_UNIT:
            longest = format_duration(seconds)
            limits[step] = f"{found['calls']:,} calls, of which the longest takes {longest}: cut large input files"
        else:
            limits[step] = _ADVICE.get(step, "its calls differ in length")
    return limits


def _columns(found: dict) -> list[tuple[str, ...]]:
    """The cells of what was measured, a row a step."""
    records = max(found["records"], 1)
    rows: list[tuple[str, ...]] = [
        ("step", "calls", "CPU s", "wall s", "CPU us/record", "longest s", "peak MB", "MB in", "MB out")
    ]
    for step, c in found["steps"].items():
        peak = f"{c['peak_bytes'] / 1e6:,.0f}" if c["peak_bytes"] else "?"
        numbers = (c["cpu_seconds"], c["wall_seconds"], 1e6 * c["cpu_seconds"] / records, c["longest_seconds"])
        sizes = (f"{c[name] / 1e6:,.1f}" for name in ("bytes_in", "bytes_out"))
        rows.append((step, f"{c['calls']:,}", *(f"{n:,.2f}" for n in numbers), peak, *sizes))
    return rows


def _times(found: dict) -> list[tuple[str, ...]]:
    """The cells of an estimate, a row a step and one for all."""
    rows: list[tuple[str, ...]] = [
        ("step", "calls at most", "CPU hours", *(f"on {n:,} core{'s' * (n > 1)}" for n in CORES))
    ]
    for step, c in found["steps"].items():
        times = (format_duration(c["seconds"][str(n)]) for n in CORES)
        rows.append((step, f"{c['calls']:,}", f"{c['cpu_seconds'] / 3600:,.2f}", *times))
    hours = sum(c["cpu_seconds"] for c in found["steps"].values()) / 3600
    return [*rows, ("all", "", f"{hours:,.2f}", *(format_duration(found["seconds"][str(n)]) for n in CORES))]


def _notes(found: dict, estimate: dict) -> list[str]:
    """Disk, memory, and what does not scale, in words."""
    gigabytes = {k: f"{estimate[f'{k}_bytes'] / 1e9:,.1f} GB" for k in ("input", "work", "output")}
    peak = max((c["peak_bytes"] or 0 for c in found["steps"].values()), default=0)
    share = estimate["serial_share"]
    lines = [
        f"{estimate['tokens'] / 1e9:,.2f} G tokens; input {gigabytes['input']}, work folder {gigabytes['work']}, "
        f"shards and tables {gigabytes['output']}",
        f"memory: {peak / 1e6:,.0f} MB a process at most here; {peak * CORES[1] / 1e9:,.1f} GB for {CORES[1]} of them",
        f"steps of one call: {100 * share:.2f} % of the CPU time, so {1 / max(share, 1e-9):,.0f} times as fast at most",
    ]
    lines += [f"does not scale: {step}: {why}" for step, why in estimate["limits"].items()]
    short = [step for step, c in found["steps"].items() if c["cpu_seconds"] < SHORT and c["calls"] <= found["buckets"]]
    factor = estimate["documents"] / max(found["records"], 1)
    if factor > FAR and short:
        lines.append(
            f"{factor:,.0f} times the records of this job: {', '.join(short)} took less than {SHORT:g} s here, so "
            "theirs is an order of magnitude"
        )
    return lines


def _heading(found: dict) -> str:
    machines = "; ".join(f"{name} ({n:,} calls)" for name, n in found["machines"].items())
    return f"{found['records']:,} records of `{found['source']}`, {found['units']:,} units, measured on {machines}"


def text(found: dict) -> str:
    """What was measured and what follows, as tables for a terminal."""
    parts = [_heading(found), *_lines(_columns(found))]
    for e in found["estimates"]:
        parts += ["", f"{e['documents']:,} {e['title']}, extrapolated:", *_lines(_times(e)), *_notes(found, e)]
    return "\n".join(parts)


def _lines(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = lambda k, cell: cell.rjust(widths[k]) if k else cell.ljust(widths[k])
    return ["  ".join(pad(k, cell) for k, cell in enumerate(row)).rstrip() for row in rows]


_IN_WORDS = {
    "CPU s": "CPU time (seconds)", "wall s": "wall-clock time (seconds)", "CPU us/record": "CPU time a record (µs)",
    "longest s": "longest call (seconds)", "peak MB": "most memory of a process (MB)", "MB in": "read (MB)",
    "MB out": "written (MB)",
}  # fmt: skip


def page(found: dict) -> str:
    """The same as a page."""
    head, *rows = _columns(found)
    measured = _table([tuple(_IN_WORDS.get(cell, cell) for cell in head), *rows])
    body = ["<h1>What it costs</h1>", f"<p class=sub>{html.escape(_heading(found))}</p>", measured]
    for e in found["estimates"]:
        notes = "".join(f"<li>{html.escape(line)}" for line in _notes(found, e))
        title = html.escape(f"{e['documents']:,} {e['title']}, extrapolated")
        body += [f"<h2>{title}</h2>", _table(_times(e)), f"<ul>{notes}</ul>"]
    return make_page("What it costs", body)


def _table(rows: list[tuple[str, ...]]) -> str:
    cells = lambda row, tag: "".join(f"<{tag}{' class=n' * bool(k)}>{html.escape(cell)}" for k, cell in enumerate(row))
    lines = [f"<tr>{cells(row, 'td' if n else 'th')}" for n, row in enumerate(rows)]
    return make_table(lines)
