"""`-m score`: checkpoints on tasks, with intervals, the baseline, and published figures to compare with.

<model_dir>/evaluation/results.json                 scores by task; those of other tasks that it holds stay
<model_dir>/evaluation/TASK_SPLIT[_N].json          predictions (N counts checkpoints, where there are several)
<model_dir>/evaluation/TASK_SPLIT[_N].official.json the same as the official scorer reads them, where there is one
"""

import contextlib
import os
import re
import shlex
import sys
import time
from typing import Any, NamedTuple

from modelzoo.backends.select import joining_ranks
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data.bos import describe_bos
from modelzoo.distributed import Ranks
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.forms.load import load_task
from modelzoo.evaluation.inference.exported_files import is_exported
from modelzoo.evaluation.scores import harness
from modelzoo.evaluation.scores.evaluate import evaluate_task as score
from modelzoo.evaluation.scores.results import (
    hash_checkpoint,
    hash_config,
    hash_examples,
    hash_task,
    leave_out_undefined,
)
from modelzoo.evaluation.tasks.base import Task
from modelzoo.evaluation.tasks.remarks import read_examples
from modelzoo.files import write_json
from modelzoo.lock import lock_folder
from modelzoo.progress import Progress
from modelzoo.reading import exists
from modelzoo.records import Record, hash_value, read_record
from modelzoo.redact import redact_text
from modelzoo.scoring import score_table
from modelzoo.scoring.load_model import LoadedModel, find_checkpoints, load_model
from modelzoo.training.build import Options
from modelzoo.training.launch import checks
from modelzoo.training.runs.folder import RunFolder

LM_EVAL = "lm_eval:"


class Request(NamedTuple):
    """What the command line adds for `-m score`."""

    tasks: tuple[str, ...]
    data_dir: str | None = None
    split: str | None = None  # default: test where its texts are at hand, else dev
    batch_size: int = 8
    shots: int | None = None  # default: the task's; likewise the seed
    shots_seed: int | None = None
    show: int = 0  # prompts of each task to print

    def overrides(self) -> list[str]:
        """What is said over the tasks' files."""
        said = {"data_dir": self.data_dir, "shots.count": self.shots, "shots.seed": self.shots_seed}
        return [f"{key}={value}" for key, value in said.items() if value is not None]


class Job(NamedTuple):
    """A task with the examples to score."""

    task: Task
    split: str
    examples: list[Example]
    train: list[Example]  # for the baseline; empty where they are not at hand
    notes: list[str]
    remarks: dict[str, Any]  # on the files' examples, for results


def score_checkpoints(config: Config, options: Options, request: Request) -> None:
    """Score the checkpoints that the command names on every task, and print the tables."""
    with joining_ranks(options.target, config.trainer.init) as ranks:
        _join_scoring(config, options, request, ranks)


def _join_scoring(config: Config, options: Options, request: Request, ranks: Ranks) -> None:
    """What every rank does, each with its share of the examples; rank 0 writes and talks."""
    if not request.tasks:
        raise UserError("--tasks: missing; for example --tasks configs/eval/pubmedqa.yaml (or lm_eval:TASK)")
    jobs = [_job(name, request) for name in request.tasks if not name.startswith(LM_EVAL)]
    others = [name.removeprefix(LM_EVAL) for name in request.tasks if name.startswith(LM_EVAL)]
    if others:
        if request.show:
            raise UserError(f"--show: prints prompts of our own tasks; it does not know those of {LM_EVAL}{others[0]}")
        _check_flags(request, [name for name in others if not name.endswith(".yaml")])
        harness.require_lm_eval()
    run = RunFolder(options.model_dir)
    paths = ranks.first_does(lambda: find_checkpoints(config, options))
    hashes = [hash_checkpoint(path) for path in paths]
    facts = {"the tasks' data": hash_value([_hash_data(job) for job in jobs])}
    checks.compare_ranks(ranks, config, {**facts, "the checkpoints": hash_value(hashes)})
    # its scores of all tasks are read and written again as one file
    with lock_folder(run.evaluation) if ranks.first else contextlib.nullcontext():
        results = _score_all(list(zip(paths, hashes, strict=True)), jobs, others, config, options, request, ranks)
    for job in jobs:
        print(score_table.format_task(job.task, job.notes, results[job.task.name]))
        if request.show:
            print(score_table.format_prompts(job.task, job.examples[: request.show], job.split))
    for name in results:
        if name.startswith(LM_EVAL):
            print(score_table.format_lm_eval(name, results[name]))
    print(f"wrote      {run.task_scores}" + (" and the predictions next to it" if jobs else ""))
    if jobs:
        task, data = next(t for t in request.tasks if not t.startswith(LM_EVAL)), request.data_dir
        search = ["prompt-search", paths[0], "--task", task, *(["--data_dir", data] if data else [])]
        print(f"next       python run.py {shlex.join(search)}")
        if not is_exported(paths[0]):
            print(f"           {_finetune_command(jobs[0].task, task, paths[0], data)}")


def _check_flags(request: Request, foreign: list[str]) -> None:
    """Report flags that tasks of the harness's own do not take; refuse them where there are no other tasks."""
    for flag, value in (("--data_dir", request.data_dir), ("--split", request.split)):
        if value is None or not foreign:
            continue
        text = f"{flag} does nothing with {LM_EVAL}{foreign[0]}: the harness has its own data and splits"
        if len(foreign) == len(request.tasks):
            raise UserError(text)
        print(f"note       {text}", file=sys.stderr)


def _score_all(
    checkpoints: list[tuple[str, str]],
    jobs: list[Job],
    others: list[str],
    config: Config,
    options: Options,
    request: Request,
    ranks: Ranks,
) -> dict[str, list[dict[str, Any]]]:
    """Score each checkpoint on each task; write the results next to those of other tasks, and return them by task.

    Args:
        checkpoints: the path and hash of each.
    """
    run, results = RunFolder(options.model_dir), {}
    for number, (path, checkpoint) in enumerate(checkpoints):
        model = load_model(path, config, options, ranks)
        notes = [f"           {line}" for line in describe_bos(model.tokenizer)]
        print("\n".join([f"checkpoint {path}", model.choice.describe(), *notes]), file=sys.stderr)
        for job in jobs:
            suffix = f"_{number}" if len(checkpoints) > 1 else ""
            scores = _score_job(job, model, run.evaluation, suffix, request.batch_size)
            results.setdefault(job.task.name, []).append({**scores, "made_from": _origin(config, checkpoint, job)})
        if others:
            found = harness.run_lm_eval(
                model.model, model.backend, model.tokenizer, model.length, others, request.batch_size,
                request.overrides(), request.split or "dev", shots=request.shots, shots_seed=request.shots_seed,
            )  # fmt: skip
            for name, metrics in found.items():
                results.setdefault(LM_EVAL + name, []).append({"metrics": metrics, **model.facts})
    about = {"command": redact_text(options.command), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    fresh = {name: [{**about, **r} for r in found] for name, found in results.items()}

    def write() -> None:
        write_json(run.task_scores, leave_out_undefined({"tasks": {**_read_earlier(run.task_scores), **fresh}}))

    ranks.first_does(write)
    return results


def _finetune_command(task: Task, name: str, path: str, data: str | None) -> str:
    """The command that fine-tunes the checkpoint on the task that was scored."""
    own = task.config.form if task.config.form in ("pubmedqa", "hoc") else None
    config = f"configs/finetune/{own or 'base'}.yaml"
    chosen = [] if own else ["--set", f"trainer.finetune.task={name}"]
    words = ["-p", config, "-m", "finetune", *chosen, *(["--data_dir", data] if data else [])]
    words += ["--checkpoint_path", path, "-o", f"runs/{task.name}"]
    return f"python run.py {shlex.join(words)}"


def _job(name: str, request: Request) -> Job:
    task = load_task(name, request.overrides())
    split, notes = request.split or "test", []
    try:
        examples, remarks = read_examples(task, split)
    except UserError as e:
        if request.split is not None:
            raise
        split, notes = "dev", [f"no test scores: {e}"]
        try:
            examples, remarks = read_examples(task, split)
        except UserError:
            raise e from None
    notes += remarks.describe()
    if task.shot_pool():
        notes += [f"solved examples: {line}" for line in read_examples(task, task.config.shots.split)[1].describe()]
    try:
        train = task.examples("train")
    except UserError as e:
        train, notes = [], [*notes, f"no constant answer to compare with: {e}"]
    return Job(task, split, examples, train, notes, remarks.as_dict())


def _score_job(job: Job, model: LoadedModel, folder: str, suffix: str, batch_size: int) -> dict[str, Any]:
    """Score one checkpoint on one task, and write its predictions."""
    task, live = job.task, Progress(0)

    def progress(done: int, whole: int) -> None:
        live.stop = whole
        live.update(done, f"of {task.name}")

    found = score(
        model.model, model.backend, task, job.examples, model.tokenizer, model.length, model.soft,
        batch_size=batch_size, progress=progress, split=job.split,
    )  # fmt: skip
    live.close()
    name = os.path.join(folder, f"{task.name}_{job.split}{suffix}")
    official = task.official({p.id: p.prediction for p in found.predictions})

    def write() -> None:
        write_json(f"{name}.json", leave_out_undefined([p._asdict() for p in found.predictions]))
        if official is not None:
            write_json(f"{name}.official.json", leave_out_undefined(official))

    model.backend.ranks.first_does(write)
    return {
        **model.facts,
        "protocol": task.describe(),
        "split": job.split,
        "template": task.template_path,
        "decoding": task.config.decoding if task.choices(job.examples[0]) else "generation",
        "normalize": task.config.normalize,
        "n": found.n,
        "units": found.units,
        "max_examples": task.config.max_examples,
        "counts": found.counts._asdict(),
        "metrics": found.metrics,
        "intervals": found.intervals,
        **({"remarks": job.remarks} if job.remarks else {}),
        **({"groups": {k: g._asdict() for k, g in found.groups.items()}} if found.groups else {}),
        **({"origin": task.config.origin.model_dump()} if task.config.origin else {}),
        "baseline": _baseline(job),
        "predictions": f"{name}.json",
    }


def _baseline(job: Job) -> dict[str, float] | None:
    """The task's metrics of answering without reading."""
    known = [e for e in job.examples if e.gold is not None]
    if not job.train or not known:
        return None
    return job.task.metrics([e.gold for e in known], job.task.baseline(job.train, known))


def _origin(config: Config, checkpoint: str, job: Job) -> dict[str, Any]:
    """What a score is made from (an `Origin`), by hashes."""
    return {"config": hash_config(config), "checkpoint": checkpoint, "data": _hash_data(job)}


def _hash_data(job: Job) -> dict[str, str]:
    shots = job.task.shot_pool()
    drawn = {"shots": hash_examples(shots)} if shots else {}
    return {"task": hash_task(job.task), job.split: hash_examples(job.examples), **drawn}


class Earlier(Record):
    """evaluation/results.json, as far as another command needs to know it."""

    tasks: dict[str, list[dict[str, Any]]]


def _read_earlier(path: str) -> dict[str, Any]:
    """The scores by task that an earlier command wrote. A damaged file is moved aside: nothing of it is overwritten."""
    if not exists(path):
        return {}
    try:
        return read_record(path, Earlier, "is missing", "it was changed", undefined=True).tasks
    except UserError as e:
        number = 1
        while exists(aside := f"{path}.damaged_{number}"):
            number += 1
        os.rename(path, aside)
        print(f"damaged    {e}; moved to {aside}, and begun anew", file=sys.stderr)
        return {}


def split_names(text: str | None) -> tuple[str, ...]:
    """The names in `--tasks A,B`."""
    return tuple(t for t in re.split(r"[,\s]+", text or "") if t)
