"""Format scores as tables: ours with their intervals, the baseline, and published figures kept apart."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.statistics import intervals
from modelzoo.evaluation.tasks.base import Task
from modelzoo.progress import format_amount

WIDTH = 38


def format_task(task: Task, notes: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    """One task's table, with notes on its data. `results` hold one entry a checkpoint."""
    first = results[0]
    names = list(first["metrics"])
    lines = [f"\n{task.name}: {first['protocol']}", f"  {_what(first)}"]
    if origin := task.config.origin:
        lines.append(f"  data: {origin.url}; {origin.licence}")
    lines += [f"  {note}" for note in notes]
    if first["counts"]["truncated"]:
        lines.append(f"  {_cut(first['counts'])}")
    if not names:
        return "\n".join([*lines, "  no gold answers: predictions were written, nothing was scored"])
    lines.append(_row("", names))
    for r in results:
        cells = [_cell(r["metrics"][n], r["intervals"].get(n)) for n in names]
        lines.append(_row(_name(r), cells))
        for name, g in r.get("groups", {}).items():
            cells = [_cell(g["metrics"][n], g["intervals"].get(n)) for n in names]
            lines.append(_row(f"  {name} ({g['n']})"[:WIDTH], cells))
    if len(results) > 1:
        lines.append(
            _row(f"mean of {len(results)} checkpoints", [_spread([r["metrics"][n] for r in results]) for n in names])
        )
    if first["baseline"] is not None:
        lines.append(_row("best constant answer, no model", [_number(first["baseline"][n]) for n in names]))
    over = f"{first['units']:,} documents" if first["units"] < first["n"] else "examples"
    lines.append(f"  [ ]: 95 % bootstrap over {over}; ( ): 95 % of the mean over checkpoints, by Student's t")
    if published := [p for p in task.config.published if p.metric in names]:
        lines.append(
            f"  published, for scale only: other models, far larger and otherwise trained; {_comparable(first)}"
        )
        lines += [f"    {p.name:<{WIDTH - 2}}  {p.metric} {p.score:.3f} on {p.split} ({p.source})" for p in published]
    lines.append(f"  test sets kept out of the training data: {_contamination(first.get('decontamination'))}")
    return "\n".join(lines)


def format_prompts(task: Task, examples: Sequence[Example], split: str) -> str:
    """Prompts as they are put to a model, before any cut, and the right answers."""
    lines = []
    for e, prompt in zip(examples, task.prompts(examples, split), strict=True):
        answer = "not known" if e.gold is None else repr(task.target(e))
        lines.append(f"\n{task.name}, {split}, example {e.id}; the answer: {answer}")
        lines += [f"  | {line}" for line in prompt.split("\n")]
    return "\n".join(lines)


def format_lm_eval(name: str, results: Sequence[Mapping[str, Any]]) -> str:
    """A task of lm-evaluation-harness: its metrics as it names them."""
    lines = [f"\n{name}"]
    for r in results:
        metrics = ", ".join(f"{k} {v:.4f}" for k, v in r["metrics"].items() if isinstance(v, float))
        lines.append(_row(_name(r), [metrics]))
    return "\n".join(lines)


def _name(r: Mapping[str, Any]) -> str:
    live = f"{format_amount(r['live'])} of " if "live" in r else ""
    return f"this model ({live}{format_amount(r['parameters'])} weights{' live' if live else ''})"


def _what(r: Mapping[str, Any]) -> str:
    normal = f", normalised: {r['normalize']}" if r["normalize"] != "none" else ""
    return f"{r['split']}: {r['n']} examples; template {r['template']}; by {r['decoding']}{normal}"


def _cut(counts: Mapping[str, Any]) -> str:
    of = f"{counts['truncated']} of {counts['examples']}"
    if (questions := counts.get("questions_cut")) is None:
        return f"{of} texts were cut to the context, questions never"
    return (
        f"{of} prompts exceed the context and lost their beginning, as lm-evaluation-harness cuts them "
        f"({counts['tokens_cut']:,} tokens), {questions} of them a part of the question too"
    )


def _comparable(r: Mapping[str, Any]) -> str:
    return "same split" if r["split"] == "test" else f"theirs is the test split, ours {r['split']}"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"  {name:<{WIDTH}}  " + "  ".join(f"{c:<24}" for c in cells).rstrip()


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4f}"


def _cell(value: float, around: Sequence[float] | None) -> str:
    if around is None or math.isnan(around[0]):
        return _number(value)
    return f"{_number(value)} [{around[0]:.3f}, {around[1]:.3f}]"


def _spread(values: Sequence[float]) -> str:
    found = intervals.measure_spread(values)
    return f"{_number(found.mean)} ({found.low:.3f}, {found.high:.3f})"


def _contamination(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not recorded in the data's manifest"
    dropped = found["dropped"]
    if unrecorded := found.get("unrecorded"):
        return f"not of all data: nothing is recorded for {', '.join(map(os.path.basename, unrecorded))}"
    return (
        f"{len(found['test_sets'])} files, {found['ngram']} words in a row; "
        f"{dropped['benchmark_pmid']} documents left out by id, {dropped['benchmark_overlap']} by shared words"
    )
