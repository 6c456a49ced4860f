"""Where a model comes from, by its run folder: data and licences, commands, scores, and the run before it."""

import json
import os
from collections.abc import Mapping
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.data.folder import read_manifest
from modelzoo.training.run_folder import RunFolder

REPORT = "report.json"  # what preprocessing leaves next to the splits
TOP = 6  # licences and reasons named; the rest is summed


def describe_provenance(config: Config, run: str | None) -> list[str]:
    """Markdown sections: training data, how it was made, evaluation. What is not on record is marked so."""
    parts = ["## Training data", *_data(config), "", "## How it was made", *_making(config, run)]
    return [*parts, "", "## Evaluation", *_scores(run)]


def _read(path: str) -> Any:
    """A JSON file, or None: a card is made of what there is."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def _data(config: Config) -> list[str]:
    fit = config.trainer.fit
    folders = manifest.list_folders(fit.train_dataloader) if fit is not None else []
    found: list[str] = []
    for folder in folders:
        facts = read_manifest(folder, strict=False)
        counts = [
            f"{facts[key]:,} {what}"
            for key, what in (("documents", "documents"), ("tokens", "tokens"), ("n_examples", "examples"))
            if isinstance(facts.get(key), int)
        ]
        if "task" in facts:
            counts = [f"{facts['counts']['examples']} examples of {facts['task']} (fold {facts['fold']})"]
        found.append(f"- `{folder}`: {', '.join(counts) or 'no manifest: its content is not on record'}")
        report = _read(os.path.join(os.path.dirname(os.path.abspath(folder)), REPORT))
        if isinstance(report, dict):
            found += _report(report)
    return found or ["Not on record here."]


def _report(report: Mapping[str, Any]) -> list[str]:
    """What preprocessing recorded: snapshot, drops, languages, licences, decontamination."""
    manifest, job = report.get("manifest", {}), report.get("job", {})
    inputs = report.get("inputs", {})
    reasons = {k: v for k, v in manifest.get("reasons", {}).items() if k != "written"}
    lines = [
        f"  - snapshot: {manifest.get('records', 0):,} records of {len(inputs)} input files "
        f"(SHA-256 of each in the data's manifest.json); data `{str(manifest.get('data_sha256'))[:16]}`",
        f"  - left out: {_top(reasons) or 'nothing'}",
        f"  - languages: {_top(report.get('languages', {})) or 'not told'}",
        f"  - licences of the sources: {_top(report.get('licences', {})) or 'not told'}"
        + ("; abstracts of PubMed stay under their publishers' rights" if job.get("source") == "pubmed" else ""),
    ]
    filters = job.get("filters", {})
    against = filters.get("decontaminate") or []
    if against:
        gone = sum(v for k, v in reasons.items() if k.startswith("benchmark"))
        names = ", ".join(os.path.basename(p) for p in against)
        gram = filters.get("decontaminate_ngram")
        lines.append(f"  - decontamination: {gone:,} records left out that share an id or {gram} words with {names}")
    else:
        lines.append("  - decontamination: none was asked for; scores on public test sets may be flattered")
    return lines


def _top(counts: Mapping[str, int]) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{name} {n:,}" for name, n in ranked[:TOP]]
    rest = sum(n for _, n in ranked[TOP:])
    return ", ".join(shown + ([f"others {rest:,}"] if rest else []))


def _making(config: Config, run: str | None) -> list[str]:
    init, section = config.trainer.init, config.trainer.finetune
    found = [f"- seed {init.seed}"]
    if section is not None:
        result = _read(RunFolder(run).result) if run else None
        start = (result or {}).get("start") or section.checkpoint or "the checkpoint named on the command line"
        masks = section.masks if isinstance(section.masks, str) else section.model_dump(mode="json")["masks"]
        what = f"its masks: {masks or 'as they were'}; optimizer: {section.optimizer}"
        found.append(f"- fine-tuned from `{start}`; {what}")
        found += [f"- soft prompt: {init.soft_prompt.tokens} vectors"] if init.soft_prompt is not None else []
        found += [f"- LoRA of rank {init.lora.r}"] if init.lora is not None else []
        before = RunFolder.containing(str(start)).path
        if (parent := _read_config(before)) is not None:
            found += ["- pre-trained on:", *(f"  {line}" for line in _data(parent))]
            found += [f"  - by `{c}`" for c in _commands(before)]
    commands = _commands(run) if run else []
    return found + [f"- `{c}`" for c in commands] + ([] if commands else ["- the commands are not on record here"])


def _read_config(run: str) -> Config | None:
    try:
        return RunFolder(run).read_config()
    except UserError:  # moved or removed since: the card leaves it out
        return None


def _commands(run: str) -> list[str]:
    """The commands that made a run, each once, with the device and the torch they ran on."""
    launches = [r for r in RunFolder(run).read_launches() if {"command", "device", "torch"} <= r.keys()]
    return list(dict.fromkeys(f"{r['command']}` on {r['device']}, torch `{r['torch']}" for r in launches))


def _scores(run: str | None) -> list[str]:
    rows = []
    if run is not None:
        result = _read(RunFolder(run).result)
        for split, s in ((result or {}).get("scores") or {}).items():
            rows += [_row(result["task"], split, s, s["majority"], m) for m in s["metrics"]]
        evaluated = _read(RunFolder(run).task_scores)
        for task, runs in ((evaluated or {}).get("tasks") or {}).items():
            rows += [_row(task, s.get("split", ""), s, s.get("baseline") or {}, m) for s in runs for m in s["metrics"]]
    if not rows:
        return ["No scores are on record for this run (`run.py -m score` makes them)."]
    head = "| task | split | n | metric | score | 95 % (bootstrap) | best constant answer |"
    note = "Dev scores are those of the weights that were chosen by them, and so a little flattered."
    return [head, "|---|---|---|---|---|---|---|", *rows, "", note]


def _row(task: str, split: str, s: Mapping[str, Any], base: Mapping[str, float], metric: str) -> str:
    around = s.get("intervals", {}).get(metric)
    cells = [
        *(task, split, str(s.get("n", "")), metric, f"{s['metrics'][metric]:.4f}"),
        f"{around[0]:.4f} to {around[1]:.4f}" if around else "",
        f"{base[metric]:.4f}" if metric in base else "",
    ]
    return f"| {' | '.join(cells)} |"
