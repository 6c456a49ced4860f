"""One fine-tuning run: trains on a task's examples, keeps the weights with the best dev score, and scores them."""

import os
import sys
import time
from typing import Any, NamedTuple

from modelzoo.backends.base import Backend
from modelzoo.backends.select import Choice
from modelzoo.config.errors import UserError
from modelzoo.config.required import require_finetune, require_fit
from modelzoo.config.sections.finetune import EarlyStopping
from modelzoo.config.trainer import ALL_STATES, Config
from modelzoo.data.hdf5 import Shards
from modelzoo.distributed import Ranks
from modelzoo.evaluation.scores.evaluate import Scores, score_predictions
from modelzoo.evaluation.scores.results import add_check, hash_config, leave_out_undefined
from modelzoo.evaluation.statistics.intervals import RESAMPLES
from modelzoo.evaluation.statistics.metrics import rank
from modelzoo.files import write_json
from modelzoo.finetuning.masks import (
    add_ages,
    describe_masks,
    list_states,
    make_config,
    needs_ages,
    read_masks,
    read_patterns,
    start_ages,
)
from modelzoo.finetuning.task import FinetuneTask
from modelzoo.finetuning.task_shards import write_shards
from modelzoo.interop.adapters.load import load_adapters
from modelzoo.interop.mdl.state import load_checkpoint
from modelzoo.planning import lengths, plan
from modelzoo.planning.batches import note_batches
from modelzoo.progress import Progress
from modelzoo.reading import exists
from modelzoo.train_state import Reduction, TrainState
from modelzoo.training import console
from modelzoo.training.build import Options, build_run, open_shards
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.checkpoints.snapshot import snapshot
from modelzoo.training.checkpoints.state_json import CheckpointState
from modelzoo.training.launch import checks, records, resume
from modelzoo.training.launch.resume import Start
from modelzoo.training.logs.lines import read_records
from modelzoo.training.logs.writing import Logs
from modelzoo.training.loop import fit
from modelzoo.training.runs.changes import name_changes
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.runs.length import count_steps, find_eval_interval


class Job(NamedTuple):
    """One fine-tuning run of the command."""

    config: Config
    options: Options
    folder: RunFolder
    fold: int
    seed: int


class Command(NamedTuple):
    """What the runs of the command share."""

    jobs: list[Job]
    checkpoint: str  # the step folder or .mdl that they start from
    checkpoint_hash: str
    choice: Choice
    task: FinetuneTask
    out: Progress

    @property
    def ranks(self) -> Ranks:
        return self.choice.backend.ranks

    def describe_origin(self, job: Job) -> dict[str, Any]:
        """What a job's result is made from (an `Origin`), by hashes."""
        config, data = hash_config(job.config), self.task.fingerprint(job.fold)
        return {"config": config, "checkpoint": self.checkpoint_hash, "data": data}


class Prepared(NamedTuple):
    """A run that is about to take its next step."""

    run: TrainState
    config: Config  # with its data and sparsity filled in
    shards: Shards
    start: Start  # the checkpoint that it starts from
    changes: dict[str, tuple[str, str]]  # config keys that differ from here on: before and now


def run_job(job: Job, command: Command) -> dict[str, Any]:
    """Do one run: start or resume, train and assess the dev score, take the best weights, score them."""
    task, out, ranks = command.task, command.out, command.ranks
    folder = os.path.join(job.options.model_dir, "data", f"fold_{job.fold}")
    task.examples("dev", job.fold)  # what is wrong with them is reported before training
    data = ranks.first_does(lambda: write_shards(folder, task, job.fold, out, replace=job.options.restart))
    task.note_remarks("dev", job.fold, out)
    own = ranks.first_does(lambda: resume.choose_start(job.folder, None, ALL_STATES, True, False, out.note))
    run, config, shards, start, changes = prepare_run(job, command, data, Start.of(own))
    before = run.reduction if run.step else _find_reduction(command)
    size = require_finetune(config).batch_size
    checks.settle_reduction(run, command.choice, size, "trainer.finetune.batch_size", before, out)
    stop = count_steps(config, len(shards))
    if changes and run.step >= stop:
        raise UserError(
            f"{job.folder.path}: was trained to its end with another config ({name_changes(changes)}); give "
            "another -o, or --restart (it moves that run aside)"
        )

    def begin() -> list[dict[str, Any]]:
        checks.check_space(run, job.folder.checkpoints)
        records.record_launch(config, job.options.command, job.folder, command.choice, run, start, changes)
        return _history(job.folder, run.step, out)

    history = ranks.first_does(begin)
    kept: dict[int, Scores] = {}
    interrupted, saved = _train(command.choice.backend, run, config, job, shards, stop, task, history, kept)
    checks.check_written(ranks, job.folder, saved, interrupted)
    if interrupted:
        print(f"go on      the same command: {job.folder.path} is at step {run.step} of {stop}")
        sys.exit(128 + interrupted)
    return _conclude(run, job, command, history, kept)


def prepare_run(job: Job, command: Command, data: str, own: Start) -> Prepared:
    """Build a run and load the checkpoint that it starts from.

    Args:
        data: the folder of its training examples.
        own: the folder's own checkpoint; without one the run starts from the command's.
    """
    section, out = require_finetune(job.config), command.out
    files, saved = load_checkpoint(command.checkpoint, job.config.trainer.init, None)
    masks = read_masks(files["model"])
    config = make_config(job.config, masks, command.checkpoint, data, read_patterns(saved, masks, command.checkpoint))
    shards = open_shards(config, require_fit(config).train_dataloader)
    stop = count_steps(config, len(shards))
    plan.check_sparsity(config.trainer.init, stop)
    run = build_run(config, command.choice)
    for note in (*run.sparsity.notes, *note_batches(config), *lengths.note_lengths(config.trainer.init, stop)):
        out.note(note)
    if needs_ages(section):
        add_ages(run, config.trainer.init)
    if own.path is not None:
        restore(run, own.path, *checkpoint.load(own.path), shards.fingerprint(), strict=job.options.strict)
        changes = command.ranks.first_does(lambda: resume.check_changes(job.folder, config, run))
        out.note(f"resumed    {own.path} at step {run.step}")
        for line in records.describe_changes(run, changes, command.choice.backend.arithmetic):
            out.note(line)
        return Prepared(run, config, shards, own, changes)
    command.ranks.first_does(lambda: resume.check_unbegun(job.folder, config))
    load_adapters(run.model, config.trainer.init)
    taken = list_states(section, bool(masks) and section.masks != "lift")
    restore(run, command.checkpoint, files, saved, None, taken, job.options.strict)
    if needs_ages(section):
        start_ages(run, masks)
    becomes = describe_masks(section, masks, config.trainer.init.base_frozen)
    out.note(f"start      {command.checkpoint}: {becomes}")
    return Prepared(run, config, shards, Start(command.checkpoint, taken), {})


def _find_reduction(command: Command) -> Reduction | None:
    """How the command's runs have summed so far: one that begins does as those before it, whatever ranks they had."""

    def look() -> list[int | None] | None:
        for job in command.jobs:
            path, _ = checkpoint.newest(job.folder.best)
            if path is not None:
                saved = CheckpointState.parse(path, checkpoint.read_state(path))
                return [saved.slices, saved.threads]
        return None

    found = command.ranks.first_does(look)
    return None if found is None else Reduction(*found)


def _history(folder: RunFolder, step: int, out: Progress) -> list[dict[str, Any]]:
    """The dev assessments up to `step`, from the log, in the form in which `_train` appends them."""
    if step == 0 or not exists(folder.metrics):
        return []
    log = read_records(folder.metrics)
    if log.note is not None:
        out.note(log.note)
    found = [r for r in log.records if r["kind"] == "dev" and r["step"] <= step]
    return [{k: v for k, v in r.items() if k != "kind"} for r in found]


def is_exhausted(scores: list[float], early: EarlyStopping | None) -> bool:
    """Whether none of the last `patience` assessments exceeded the best one before by `min_delta`."""
    if early is None:
        return False
    best, waited = -float("inf"), 0
    for value in scores:
        best, waited = (value, 0) if value > best + early.min_delta else (best, waited + 1)
    return waited >= early.patience


def _train(
    backend: Backend, run: TrainState, config: Config, job: Job, shards: Shards, stop: int, task: FinetuneTask,
    history: list[dict[str, Any]], kept: dict[int, Scores],
) -> tuple[int | None, str | None]:  # fmt: skip
    """Train with dev assessed now and then. `history` grows by each assessment; `kept` holds the best one whole.

    Returns:
        The signal that ended the run before its end, or None; and the newest checkpoint that this launch wrote.
    """
    early = require_finetune(config).early_stopping
    metric = (early.metric if early else None) or task.main_metric
    best_folder, fingerprint = job.folder.best, shards.fingerprint()
    progress = Progress(stop)

    def assess(logs: Logs, tally: console.Tally) -> bool:
        begin = time.perf_counter()
        scores = task.score(backend, run, "dev", job.fold)
        found = scores.metrics
        if metric not in found:
            raise UserError(f"trainer.finetune.early_stopping.metric: no {metric}; the task has {', '.join(found)}")
        before = max((rank(r[metric]) for r in history), default=-float("inf"))
        better = not history or found[metric] > before
        if better:  # saved before it is logged: what the log calls best is saved
            if backend.ranks.first:
                files, saved = snapshot(run, fingerprint)
                saving.save(best_folder, run.step, {"model": files["model"]}, saved, 1)
            kept.clear()
            kept[run.step] = scores
        logs.write(run.step, "dev", found, {"seconds": time.perf_counter() - begin})
        history.append({"step": run.step, **found})
        values = ", ".join(f"{k} {v:.4f}" for k, v in found.items())
        progress.note(f"dev at step {run.step}: {values}{'  (best so far)' if better else ''}")
        return is_exhausted([r[metric] for r in history], early)

    if (run.step >= stop and not run.unassessed) or is_exhausted([r[metric] for r in history if metric in r], early):
        return None, None
    every = find_eval_interval(config.trainer.init.loop.eval_frequency, stop)
    done = fit(backend, run, config, job.folder, shards, fingerprint, stop, progress, every or stop, assess)
    memory, peak = records.measure_speed(backend, job.folder, run.step, done)
    for line in console.describe_cost(done.tally, memory, peak):
        progress.note(line)
    ended = run.step >= stop or is_exhausted([r[metric] for r in history], early)
    return None if ended else done.interrupted, done.saved


def _conclude(
    run: TrainState, job: Job, command: Command, history: list[dict[str, Any]], kept: dict[int, Scores]
) -> dict[str, Any]:
    """Score the best weights and write the run's result."""
    backend, task, steps = command.choice.backend, command.task, run.step
    best = command.ranks.first_does(lambda: _find_best(job.folder))
    files, saved = checkpoint.load(best)
    restore(run, best, files, saved, None, ("model", "sparsity") if run.sparsity.parameters else ("model",))
    dev = kept.get(saved["global_step"]) or task.score(backend, run, "dev", job.fold)
    scores = {
        "dev": score_predictions(task.task, dev.predictions, dev.counts)
    }  # once more from the predictions, with intervals
    try:
        task.examples("test", job.fold)
    except UserError as e:  # many a test set is kept apart
        command.out.note(f"no test    {e}")
    else:
        task.note_remarks("test", job.fold, command.out)
        scores["test"] = task.score(backend, run, "test", job.fold, RESAMPLES)
    predictions = {s: [p._asdict() for p in x.predictions] for s, x in scores.items()}
    found = {
        "task": task.name,
        "fold": job.fold,
        "seed": job.seed,
        "steps": steps,
        "best_step": saved["global_step"],
        "best": best,
        "start": command.checkpoint,
        "made_from": command.describe_origin(job),
        "scores": {
            s: {"n": x.n, "metrics": x.metrics, "intervals": x.intervals, "majority": task.score_constant(s, job.fold)}
            for s, x in scores.items()
            if x.n
        },
        "dev": history,
    }
    remarks = {split: task.remarks(split, job.fold).as_dict() for split in ("train", *scores)}
    if remarks := {split: about for split, about in remarks.items() if about}:
        found["remarks"] = remarks
    result = add_check(leave_out_undefined(found))

    def write() -> None:
        write_json(job.folder.predictions, leave_out_undefined(predictions))
        write_json(job.folder.result, result)

    command.ranks.first_does(write)
    return result


def _find_best(folder: RunFolder) -> str:
    best, damaged = checkpoint.newest(folder.best)
    if best is None:
        why = f" ({damaged[0]})" if damaged else ""
        raise UserError(f"{folder.best}: its best weights are gone{why}; run again with --restart")
    return best
