"""Where a model comes from, by its run folder: data and licences, commands, scores, and the run before it.

Every record here may be another's or damaged: it is read through a schema, what does not fit is left out and named, and
nothing of it becomes markup.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import Field

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.data.folder import read_manifest
from modelzoo.interop.cards.markdown import code, escape
from modelzoo.reading import exists
from modelzoo.records import Record, check_record, read_record
from modelzoo.redact import hide_cluster, redact_text
from modelzoo.training.logs.launches import Launch, read_launches
from modelzoo.training.runs.folder import RunFolder

REPORT = "report.json"  # what preprocessing leaves next to the splits
TOP = 6  # licences and reasons named; the rest is summed


class Filters(Record):
    decontaminate: list[str] | None = None
    decontaminate_ngram: int | None = None


class DataJob(Record):
    source: str | None = None
    filters: Filters = Filters()


class DataCounts(Record):
    records: int = 0
    data_sha256: str | None = None
    reasons: dict[str, int] = Field(default={})


class DataReport(Record):
    """What preprocessing recorded."""

    manifest: DataCounts = DataCounts()
    job: DataJob = DataJob()
    inputs: dict[str, Any] = Field(default={})
    languages: dict[str, int] = Field(default={})
    licences: dict[str, int] = Field(default={})


class TaskCounts(Record):
    examples: int


class TaskData(Record):
    """The manifest of a task's training examples."""

    task: str
    fold: int
    counts: TaskCounts


class SplitScores(Record):
    split: str = ""
    n: int | None = None
    metrics: dict[str, float | None]  # None: undefined, as a correlation with one value is
    intervals: dict[str, list[float | None]] = Field(default={})
    majority: dict[str, float | None] | None = None  # of fine-tuning
    baseline: dict[str, float | None] | None = None  # of -m score


class TuningResult(Record):
    """result.json of a fine-tuning run."""

    task: str
    start: str | None = None
    scores: dict[str, SplitScores] = Field(default={})


class TaskResults(Record):
    """evaluation/results.json."""

    tasks: dict[str, list[SplitScores]] = Field(default={})


Kind = TypeVar("Kind", bound=Record)
Note = Callable[[str], None]  # is called with a line about a record that is left out


def describe_provenance(config: Config, run: str | None, note: Note) -> list[str]:
    """Markdown sections: training data, how it was made, evaluation. What is not on record is marked so.

    Args:
        note: is called with a line about each record that is there and cannot be read; the card has it, too.
    """
    parts = ["## Training data", *_data(config, note), "", "## How it was made", *_making(config, run, note)]
    return [*parts, "", "## Evaluation", *_scores(run, note)]


def _leave_out(error: UserError, note: Note) -> str:
    """The card's line for a record that cannot be read."""
    text = redact_text(str(error))
    note(text)
    return f"- not readable, and left out: {escape(text)}"


def _read(path: str, schema: type[Kind], problems: list[str], note: Note) -> Kind | None:
    """A JSON file, or None: a card is made of what there is. A line about one that is damaged goes to `problems`."""
    if not exists(path):
        return None
    try:
        return read_record(path, schema, "is missing", "is damaged", undefined=True)
    except UserError as e:
        problems.append(_leave_out(e, note))
        return None


def _data(config: Config, note: Note) -> list[str]:
    fit = config.trainer.fit
    folders = manifest.list_folders(fit.train_dataloader) if fit is not None else []
    found: list[str] = []
    for folder in folders:
        try:
            facts = read_manifest(folder)
        except UserError as e:
            found.append(_leave_out(e, note))
            continue
        counts = [
            f"{facts[key]:,} {what}"
            for key, what in (("documents", "documents"), ("tokens", "tokens"), ("n_examples", "examples"))
            if isinstance(facts.get(key), int)
        ]
        if "task" in facts:
            counts = [_task_data(facts, folder)]
        found.append(
            f"- {code(redact_text(folder))}: {', '.join(counts) or 'no manifest: its content is not on record'}"
        )
        report = _read(os.path.join(os.path.dirname(os.path.abspath(folder)), REPORT), DataReport, found, note)
        if report is not None:
            found += _report(report)
    return found or ["Not on record here."]


def _task_data(facts: Mapping[str, Any], folder: str) -> str:
    try:
        data = check_record(facts, TaskData, folder, "its content is not on record")
    except UserError:
        return "a manifest of another form: its content is not on record"
    return f"{data.counts.examples} examples of {escape(data.task)} (fold {data.fold})"


def _report(report: DataReport) -> list[str]:
    """What preprocessing recorded: snapshot, drops, languages, licences, decontamination."""
    reasons = {k: v for k, v in report.manifest.reasons.items() if k != "written"}
    lines = [
        f"  - snapshot: {report.manifest.records:,} records of {len(report.inputs)} input files "
        f"(SHA-256 of each in the data's manifest.json); data {code(str(report.manifest.data_sha256)[:16])}",
        f"  - left out: {_top(reasons) or 'nothing'}",
        f"  - languages: {_top(report.languages) or 'not told'}",
        f"  - licences of the sources: {_top(report.licences) or 'not told'}"
        + ("; abstracts of PubMed stay under their publishers' rights" if report.job.source == "pubmed" else ""),
    ]
    filters = report.job.filters
    if against := filters.decontaminate:
        gone = sum(v for k, v in reasons.items() if k.startswith("benchmark"))
        names = escape(", ".join(os.path.basename(p) for p in against))
        gram = filters.decontaminate_ngram
        lines.append(f"  - decontamination: {gone:,} records left out that share an id or {gram} words with {names}")
    else:
        lines.append("  - decontamination: none was asked for; scores on public test sets may be flattered")
    return lines


def _top(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{escape(name)} {n:,}" for name, n in ranked[:TOP]]
    rest = sum(n for _, n in ranked[TOP:])
    return ", ".join(shown + ([f"others {rest:,}"] if rest else []))


def _making(config: Config, run: str | None, note: Note) -> list[str]:
    init, section = config.trainer.init, config.trainer.finetune
    found = [f"- seed {init.seed}"]
    if section is not None:
        result = _read(RunFolder(run).result, TuningResult, [], lambda line: None) if run else None  # `_scores` notes
        start = (result.start if result else None) or section.checkpoint or "the checkpoint named on the command line"
        masks = section.masks if isinstance(section.masks, str) else section.model_dump(mode="json")["masks"]
        what = f"its masks: {masks or 'as they were'}; optimizer: {section.optimizer}"
        found.append(f"- fine-tuned from {code(redact_text(start))}; {what}")
        found += [f"- soft prompt: {init.soft_prompt.tokens} vectors"] if init.soft_prompt is not None else []
        found += [f"- LoRA of rank {init.lora.r}"] if init.lora is not None else []
        before = RunFolder.containing(start).path
        try:
            parent = RunFolder(before).read_config()  # None: moved or removed since
        except UserError as e:
            found.append(_leave_out(e, note))
            parent = None
        if parent is not None:
            found += ["- pre-trained on:", *(f"  {line}" for line in _data(parent, note))]
            found += [f"  {line}" for line in _commands(before, note, "by ")]
    commands = _commands(run, note) if run else []
    return found + (commands or ["- the commands are not on record here"])


def _commands(run: str, note: Note, before: str = "") -> list[str]:
    """The commands that made a run, each once, with the device and the torch they ran on; no secret, no cluster."""
    found = []
    try:
        launches = read_launches(RunFolder(run))
    except UserError as e:
        return [_leave_out(e, note)]
    if launches.note is not None:
        note(launches.note)
    for launch in map(Launch.model_validate, launches.records):
        command = code(hide_cluster(launch.command), most=2000) if launch.command else "a command that is not on record"
        device = escape(redact_text(launch.device)) or "an unknown device"
        found.append(f"- {before}{command} on {device}" + (f", torch {code(launch.torch)}" if launch.torch else ""))
    return list(dict.fromkeys(found))


def _scores(run: str | None, note: Note) -> list[str]:
    rows: list[str] = []
    problems: list[str] = []
    if run is not None:
        result = _read(RunFolder(run).result, TuningResult, problems, note)
        if result is not None:
            rows += [_row(result.task, n, s, s.majority or {}, m) for n, s in result.scores.items() for m in s.metrics]
        evaluated = _read(RunFolder(run).task_scores, TaskResults, problems, note)
        for task, runs in (evaluated.tasks if evaluated else {}).items():
            rows += [_row(task, s.split, s, s.baseline or {}, m) for s in runs for m in s.metrics]
    if not rows:
        return ["No scores are on record for this run (`run.py -m score` makes them).", *problems]
    head = "| task | split | n | metric | score | 95 % (bootstrap) | best constant answer |"
    caveat = "Dev scores are those of the weights that were chosen by them, and so a little flattered."
    return [head, "|---|---|---|---|---|---|---|", *rows, "", *problems, caveat]


def _row(task: str, split: str, s: SplitScores, base: Mapping[str, float | None], metric: str) -> str:
    around = [x for x in s.intervals.get(metric, ()) if x is not None]
    value, constant = s.metrics[metric], base.get(metric)
    cells = [
        *(escape(task), escape(split), "" if s.n is None else str(s.n), escape(metric)),
        "undefined" if value is None else f"{value:.4f}",
        f"{around[0]:.4f} to {around[1]:.4f}" if len(around) == 2 else "",
        "" if constant is None else f"{constant:.4f}",
    ]
    return f"| {' | '.join(cells)} |"
