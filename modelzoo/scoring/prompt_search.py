"""`run.py prompt-search`: a task's templates and label words on dev, each against the task's own.

OUT/candidates/KEY.json   one scored candidate; a killed search resumes with those that are missing
OUT/results.json          all of them, best first
OUT/best.yaml             the best one as a template
"""

import math
import os
import sys
from functools import lru_cache
from typing import Any, NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import dump, load
from modelzoo.config.task import Template
from modelzoo.config.trainer import Config
from modelzoo.data.tokenizer import read_tokenizer
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.forms.load import FORMS, load_task
from modelzoo.evaluation.inference.exported_files import is_exported, read_index
from modelzoo.evaluation.scores.evaluate import evaluate_task
from modelzoo.evaluation.scores.results import CHECK, add_check, hash_examples, is_unchanged, leave_out_undefined
from modelzoo.evaluation.statistics import intervals
from modelzoo.evaluation.statistics.metrics import rank
from modelzoo.evaluation.tasks.base import Task
from modelzoo.evaluation.tasks.remarks import read_examples
from modelzoo.files import sha256, write_json, write_text
from modelzoo.planning import start_checkpoint
from modelzoo.progress import Progress
from modelzoo.reading import exists
from modelzoo.records import Record, check_record, hash_value, read_json
from modelzoo.scoring.load_model import LoadedModel, load_model
from modelzoo.training.build import Options
from modelzoo.training.runs.folder import RunFolder


class Request(NamedTuple):
    """What the command line asks for."""

    checkpoint: str
    task: str
    out: str | None = None
    templates: tuple[str, ...] = ()  # files or folders; default: the folder of the task's own
    params: str | None = None
    data_dir: str | None = None
    split: str = "dev"
    batch_size: int = 8
    target: str = "auto"


class Candidate(NamedTuple):
    """A template with one set of label words."""

    name: str
    task: Task


def search_prompts(request: Request) -> str:
    """Score every candidate, and compare each with the task's own template.

    Returns:
        The table and what was written.

    Raises:
        UserError: no candidate, or what evaluation refuses.
    """
    own = load_task(request.task, [f"data_dir={request.data_dir}"] if request.data_dir else [])
    found = list_candidates(own, request.templates)
    examples, remarks = read_examples(own, request.split)
    examples = own.labelled(examples, request.split)
    units = [own.find_unit(e.id) for e in examples]
    out = request.out or os.path.join("prompt_search", own.name)
    path, config = _checkpoint(request)
    model = load_model(path, config, Options(target=request.target))
    live = Progress(len(found))
    live.note(f"checkpoint {path}\n{model.choice.describe()}\ntask       {own.describe()}")
    live.note(f"candidates {len(found)}, on {len(examples)} {request.split} examples")
    for line in remarks.describe():
        live.note(f"           {line}")
    results: list[dict[str, Any]] = []
    for number, candidate in enumerate(found, 1):
        results.append(_score_candidate(candidate, examples, model, out, request))
        live.update(number, f"{candidate.name}: {own.main_metric} {_main(own, results[-1]):.4f}")
    live.close()
    _compare(own, results, units)
    ranked = sorted(results, key=lambda r: -rank(_main(own, r)))
    about = {"remarks": remarks.as_dict()} if remarks.as_dict() else {}
    shown = [{k: v for k, v in {**r, **about}.items() if k not in ("predictions", CHECK)} for r in ranked]
    write_json(os.path.join(out, "results.json"), leave_out_undefined(shown))
    best = next(c for c in found if c.name == ranked[0]["name"])
    text = dump(best.task.template, f"{best.name}: best of {len(found)} on {request.split} of {own.name}")
    try:
        write_text(os.path.join(out, "best.yaml"), text)
    except OSError as e:
        raise UserError(
            f"{out}: cannot be written ({e.strerror}); the same command goes on from what is there"
        ) from None
    over = f"{len(set(units))} documents" if len(set(units)) < len(units) else f"{len(examples)} examples"
    return _format_result(own, ranked, out, over, request)


def list_candidates(own: Task, named: tuple[str, ...]) -> list[Candidate]:
    """The task's own template first, then the others by name; each with its own words, then with its alternatives."""
    places = named or (os.path.dirname(own.template_path) or ".",)
    files = [own.template_path]
    for place in places:
        if os.path.isdir(place):
            files += [os.path.join(place, n) for n in sorted(os.listdir(place)) if n.endswith((".yaml", ".yml"))]
        else:
            files.append(place)
    found = []
    for file in dict.fromkeys(map(os.path.normpath, files)):
        template = load(file, Template)
        short = os.path.splitext(os.path.basename(file))[0]
        for number, words in enumerate(({}, *template.alternatives)):
            if unknown := [k for k in words if k not in template.labels]:
                raise UserError(f"{file}: alternatives: {unknown[0]!r} is no label of this template")
            chosen = template.model_copy(update={"labels": {**template.labels, **words}, "alternatives": ()})
            name = f"{short} ({', '.join(words.values())})" if number else short
            found.append(Candidate(name, FORMS[own.config.form](own.name, own.config, chosen, file)))
    names = [c.name for c in found]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UserError(f"prompt-search: two candidates are called {twice}; give their files different names")
    return found


def _checkpoint(request: Request) -> tuple[str, Config]:
    if is_exported(request.checkpoint):
        if request.params is None:
            raise UserError(
                f"{request.checkpoint}: an exported folder needs -p CONFIG, which says device and precision"
            )
        return request.checkpoint, load(request.params, Config)
    path = start_checkpoint.find_checkpoint(request.checkpoint)
    own = RunFolder.containing(path).config
    if request.params is None and not exists(own):
        raise UserError(f"{path}: has no config.yaml in its run's folder; name the run's config with -p")
    return path, load(request.params or own, Config)


def _score_candidate(
    candidate: Candidate, examples: list[Example], model: LoadedModel, out: str, request: Request
) -> dict:
    """A candidate's scores: those on disk where model, task and examples are the same, else new ones."""
    task = candidate.task
    question = {
        "checkpoint": model.path,
        "step": model.facts.get("step"),
        "weights": _hash_weights(model.path),
        "task": task.config.model_dump(mode="json"),
        "template": task.template.model_dump(mode="json"),
        "split": request.split,
        "examples": hash_examples(examples),
        "tokenizer": hash_value(read_tokenizer(model.tokenizer.name)),
        "dtype": str(getattr(model.backend, "dtype", None)),
    }
    if shots := task.shot_pool():
        question["shots"] = hash_examples(shots)
    key = hash_value(question)[:16]
    path = os.path.join(out, "candidates", f"{key}.json")
    if (stored := _read_candidate(path, task, len(examples))) is not None:
        return {**stored, "name": candidate.name}
    scores = evaluate_task(
        model.model, model.backend, task, examples, model.tokenizer, model.length, model.soft, request.batch_size,
        split=request.split,
    )  # fmt: skip
    result = {
        "name": candidate.name,
        "template": task.template_path,
        "labels": dict(task.labels),
        "metrics": scores.metrics,
        "intervals": scores.intervals,
        "truncated": scores.counts.truncated,
        "golds": [p.gold for p in scores.predictions],
        "predictions": [p.prediction for p in scores.predictions],
    }
    result = add_check(leave_out_undefined({**result, "made_from": question}))  # its tuples have become lists
    write_json(path, result)
    return result


class StoredCandidate(Record):
    """A scored candidate on disk."""

    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    golds: list[Any]
    predictions: list[Any]


def _read_candidate(path: str, task: Task, n: int) -> dict[str, Any] | None:
    """The scores of a candidate that was scored before on `n` examples; None where it was not, or they are damaged."""
    if not exists(path):
        return None
    try:
        found = read_json(path, "is missing")
        stored = check_record(found, StoredCandidate, path, "it was changed")
        if not is_unchanged(found) or not len(stored.golds) == len(stored.predictions) <= n:
            raise UserError(f"{path}: its values are not those that were written")
    except UserError as e:
        print(f"damaged    {e}; this candidate of {task.name} is scored again", file=sys.stderr)
        return None
    return found


@lru_cache(maxsize=1)
def _hash_weights(path: str) -> str:
    """SHA-256 of the weights at `path` (a step folder, an exported folder or a .mdl)."""
    if not os.path.isdir(path):
        return sha256(path)
    names = sorted(set((read_index(path) or {"": "model.safetensors"}).values()))
    digests = [sha256(os.path.join(path, n)) for n in names]
    return digests[0] if len(digests) == 1 else hash_value(digests)


def _compare(task: Task, results: list[dict[str, Any]], units: list[str]) -> None:
    """Add each candidate's paired difference against the first; `units` as in `intervals.draw_weights`."""
    golds, first = (_hashable(results[0][k]) for k in ("golds", "predictions"))
    for r in results[1:]:
        r["difference"] = intervals.compare_paired(
            task.metrics, task.main_metric, golds, _hashable(r["predictions"]), first, units=units
        )


def _hashable(values: list[Any]) -> list[Any]:
    return [tuple(v) if isinstance(v, list) else v for v in values]


def _main(task: Task, result: dict[str, Any]) -> float:
    """The task's main metric; nan where it is undefined."""
    return result["metrics"].get(task.main_metric, math.nan)


def _format_result(task: Task, ranked: list[dict[str, Any]], out: str, over: str, request: Request) -> str:
    metric, width = task.main_metric, max(len(r["name"]) for r in ranked)
    lines = [f"{'template':<{width}}  {metric:<24}  against the task's own"]
    for r in ranked:
        low, high = r["intervals"].get(metric, (math.nan, math.nan))
        line = f"{r['name']:<{width}}  {_main(task, r):.4f} [{low:.3f}, {high:.3f}]"
        if "difference" in r:
            change, low, high = r["difference"]
            surely = "  better" if low > 0 else "  worse" if high < 0 else ""
            line = f"{line:<{width + 26}}  {change:+.4f} [{low:+.3f}, {high:+.3f}]{surely}"
        lines.append(line)
    lines += [
        f"[ ]: 95 % bootstrap over {over}, differences paired. The best of {len(ranked)} on {request.split} is",
        "flattered by having been picked there: score it once on examples that it was not picked on.",
        f"wrote      {out}: results.json, best.yaml, candidates/ (the same command again scores only what is new)",
        f"next       write `template: {os.path.abspath(os.path.join(out, 'best.yaml'))}` in a task that extends",
        f"           {request.task}, and run.py -m score --tasks with it",
    ]
    return "\n".join(lines)
