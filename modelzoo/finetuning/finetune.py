"""`-m finetune`: from a checkpoint's weights to a task, for each fold and seed, with the dev score deciding what stays.

    <model_dir>/fold_0/seed_1/  an ordinary run folder; best/ holds the weights with the best dev score, result.json
                                what came of it
    <model_dir>/data/fold_0/    the task's training examples, encoded: an ordinary shard
    <model_dir>/results.json    all of them, and their means

A killed command goes on exactly where it stopped; what is finished is not done again.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any, NamedTuple

from torch import Tensor

from modelzoo.backends.base import Backend
from modelzoo.backends.select import Choice, select
from modelzoo.config.errors import UserError
from modelzoo.config.finetune import EarlyStopping
from modelzoo.config.trainer import ALL_STATES, Config
from modelzoo.data import tokenizer
from modelzoo.data.hdf5 import Shards
from modelzoo.evaluation.intervals import RESAMPLES
from modelzoo.evaluation.scores import Scores, score
from modelzoo.files import write_json
from modelzoo.finetuning import masks as lift
from modelzoo.finetuning import task_shards
from modelzoo.finetuning.task import Judge, table
from modelzoo.interop import mdl_state
from modelzoo.interop.adapter_files import load_adapters
from modelzoo.planning import plan, start_checkpoint
from modelzoo.progress import Progress
from modelzoo.train_state import TrainState
from modelzoo.training import checkpoint, console, launch, logs, resume, state
from modelzoo.training.build import Options, build, open_shards
from modelzoo.training.logs import Logs
from modelzoo.training.loop import fit
from modelzoo.training.resume import Start
from modelzoo.training.run_folder import RunFolder
from modelzoo.training.run_length import count_steps, eval_every, micro_batches

DERIVED = ("trainer.fit.", "trainer.init.sparsity")  # of a run's config: follows from its checkpoint and the task


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
    start: str  # the checkpoint they start from
    choice: Choice
    judge: Judge
    out: Progress


def finetune(config: Config, options: Options) -> None:
    """Fine-tune for every fold and seed, and say what came of it."""
    command = _command(config, options)
    jobs, results = command.jobs, []
    with RunFolder(options.model_dir).lock():
        for job in jobs if options.restart else ():
            if job.folder.holds_a_run:
                command.out.note(f"moved      the run that was here to {job.folder.move_aside()}")
        finished = [_finished(job) for job in jobs]  # all are looked at before one is trained
        for number, (job, result) in enumerate(zip(jobs, finished, strict=True), 1):
            command.out.note(f"run {number}/{len(jobs)}    fold {job.fold}, seed {job.seed}: {job.folder.path}")
            results.append(result or _one(job, command))
        write_json(os.path.join(options.model_dir, "results.json"), results)
    print(table(results))
    print(f"wrote      {options.model_dir}: results.json; in each run folder best/, result.json, predictions.json")
    print(f"next       python run.py export {jobs[0].folder.path} EXPORTED")


def first_step(config: Config, options: Options) -> tuple[Backend, TrainState, dict[str, Tensor], int]:
    """Device, first run as it starts, its first batch, and into how many parts that is cut. Leaves nothing on disk."""
    command = _command(config, options)
    job = command.jobs[0]
    with tempfile.TemporaryDirectory() as folder:
        data = task_shards.write(folder, command.judge, job.fold, command.out)
        run, config, shards, *_ = _ready(job, command, data, Start(None, ALL_STATES))
        return command.choice.backend, run, shards.batch(0), micro_batches(config)


def _command(config: Config, options: Options) -> Command:
    section = config.trainer.finetune
    if section is None:
        raise UserError("trainer.finetune: missing; for example {task: configs/eval/pubmedqa.yaml, masks: lift}")
    named = options.checkpoint_path or section.checkpoint
    if named is None:
        raise UserError("trainer.finetune.checkpoint: missing; name a run folder here or with --checkpoint_path")
    start = start_checkpoint.find(named)
    choice = select(options.target, config.trainer.init)
    words = tokenizer.load(start_checkpoint.tokenizer_path(config.trainer.init, start))
    judge = Judge.open(section, config.trainer.init, words)
    out = Progress(0)
    out.note(choice.describe())
    out.note(f"task       {judge.describe()}")
    jobs = [
        _job(config, options, start, fold, seed)
        for fold in (section.folds if judge.has_folds else section.folds[:1])
        for seed in section.seeds or (config.trainer.init.seed,)
    ]
    return Command(jobs, start, choice, judge, out)


def _job(config: Config, options: Options, start: str, fold: int, seed: int) -> Job:
    """The run of one fold and seed as a config of its own, which `-m finetune` takes again."""
    folder = os.path.join(options.model_dir, f"fold_{fold}", f"seed_{seed}")
    own = {"folds": (fold,), "seeds": (seed,), "checkpoint": start}
    section = config.trainer.finetune.model_copy(update=own)
    init = config.trainer.init.model_copy(update={"seed": seed, "model_dir": folder})
    trainer = config.trainer.model_copy(update={"init": init, "finetune": section})
    config = config.model_copy(update={"trainer": trainer})
    return Job(config, options, RunFolder.of(init, folder), fold, seed)


def _finished(job: Job) -> dict[str, Any] | None:
    """The result of a run that has ended; None where it has not.

    Raises:
        UserError: it was made with another config, which it names.
    """
    if not os.path.exists(job.folder.result):
        return None
    before = job.folder.read_config()
    changes = resume.config_changes(before, job.config) if before is not None else {}
    derived = DERIVED[:1] if job.config.trainer.finetune.masks is None else DERIVED
    if wrong := {k: v for k, v in changes.items() if not k.startswith(derived)}:
        raise UserError(
            f"{job.folder.path}: holds the result of another config ({resume.name_changes(wrong)}); give another -o, "
            "or --restart (it moves that run aside)"
        )
    with open(job.folder.result, encoding="utf-8") as file:
        return json.load(file)


def _one(job: Job, command: Command) -> dict[str, Any]:
    """One run: start or go on, train with the dev score assessed, take the best weights, score them."""
    judge, out = command.judge, command.out
    data = task_shards.write(os.path.join(job.options.model_dir, "data", f"fold_{job.fold}"), judge, job.fold, out)
    own = resume.choose_start(job.folder, None, ALL_STATES, True, False, out.note)
    run, config, shards, start, changes = _ready(job, command, data, own)
    launch.check_space(run, job.folder.checkpoints)
    launch.record(config, job.options.command, job.folder, command.choice, run, start, changes)
    history, stop = _history(job.folder, run.step), count_steps(config, len(shards))
    kept: dict[int, Scores] = {}
    interrupted = _train(command.choice.backend, run, config, job, shards, stop, judge, history, kept)
    if interrupted:
        print(f"go on      the same command: {job.folder.path} is at step {run.step} of {stop}")
        sys.exit(128 + interrupted)
    return _conclude(command.choice.backend, run, job, command.start, judge, history, kept, out)


def _ready(
    job: Job, command: Command, data: str, own: Start
) -> tuple[TrainState, Config, Shards, Start, dict[str, tuple[str, str]]]:
    """A run that is about to take its next step.

    Args:
        data: the folder of its training examples.
        own: the folder's own checkpoint; without one the run starts from the command's.

    Returns:
        The run, its config made whole, its data, what it started from, and what it changes from here on.
    """
    section, out = job.config.trainer.finetune, command.out
    files, saved = mdl_state.load(command.start, job.config.trainer.init, None)
    masks = lift.masks_of(files["model"])
    config = lift.training(job.config, masks, command.start, data, lift.patterns(saved, masks))
    shards = open_shards(config, config.trainer.fit.train_dataloader)
    plan.check(config.trainer.init, count_steps(config, len(shards)))
    run = build(config, command.choice)
    for note in run.sparsity.notes:
        out.note(note)
    if lift.keeps_ages(section):
        lift.make_room_for_ages(run, config.trainer.init)
    if own.path is not None:
        state.restore(run, own.path, *checkpoint.load(own.path), shards.fingerprint(), strict=job.options.strict)
        changes = resume.check_changes(job.folder, config, run.optimizer_step)
        out.note(f"resumed    {own.path} at step {run.step}")
        if changes:
            out.note(f"changed    from here on: {resume.name_changes(changes)}")
        if change := console.arithmetic_change(command.choice.backend.arithmetic, run):
            out.note(change)
        return run, config, shards, own, changes
    resume.check_unbegun(job.folder, config)
    load_adapters(run.model, config.trainer.init)
    taken = lift.states(section, bool(masks) and section.masks != "lift")
    state.restore(run, command.start, files, saved, None, taken, job.options.strict)
    if lift.keeps_ages(section):
        lift.be_born(run, masks)
    out.note(f"start      {command.start}: {lift.said(section, masks)}")
    return run, config, shards, Start(command.start, taken), {}


def _history(folder: RunFolder, step: int) -> list[dict[str, Any]]:
    """The dev assessments up to `step`, as the log holds them."""
    if step == 0 or not os.path.exists(folder.metrics):
        return []
    return [r for r in logs.read(folder.metrics) if r["kind"] == "dev" and r["step"] <= step]


def exhausted(scores: list[float], early: EarlyStopping | None) -> bool:
    """Whether the last `patience` assessments brought nothing: none rose above what stood before by `min_delta`."""
    if early is None:
        return False
    best, waited = -float("inf"), 0
    for value in scores:
        best, waited = (value, 0) if value > best + early.min_delta else (best, waited + 1)
    return waited >= early.patience


def _train(
    backend: Backend, run: TrainState, config: Config, job: Job, shards: Shards, stop: int, judge: Judge,
    history: list[dict[str, Any]], kept: dict[int, Scores],
) -> int | None:  # fmt: skip
    """Train with dev assessed now and then. `history` grows by each assessment; `kept` holds the best one whole.

    Returns:
        The signal that ended the run before its end, or None.
    """
    early = config.trainer.finetune.early_stopping
    metric = (early.metric if early else None) or judge.main_metric
    best_folder, fingerprint = job.folder.best, shards.fingerprint()
    progress = Progress(stop)

    def assess(logs: Logs, tally: console.Tally) -> bool:
        begin = time.perf_counter()
        scores = judge.score(backend, run, "dev", job.fold)
        found = scores.metrics
        if metric not in found:
            raise UserError(f"trainer.finetune.early_stopping.metric: no {metric}; the task has {', '.join(found)}")
        before = max((r[metric] for r in history), default=-float("inf"))
        if found[metric] > before:  # saved before it is logged: what the log calls best is there
            files, saved = state.snapshot(run, fingerprint)
            checkpoint.save(best_folder, run.step, {"model": files["model"]}, saved, 1)
            kept.clear()
            kept[run.step] = scores
        logs.write(run.step, "dev", found, {"seconds": time.perf_counter() - begin})
        history.append({"step": run.step, **found})
        shown = ", ".join(f"{k} {v:.4f}" for k, v in found.items())
        progress.note(f"dev at step {run.step}: {shown}{'  (best so far)' if found[metric] > before else ''}")
        return exhausted([r[metric] for r in history], early)

    if run.step >= stop or exhausted([r[metric] for r in history if metric in r], early):
        return None
    every = eval_every(config.trainer.init.loop.eval_frequency, stop)
    done = fit(backend, run, config, job.folder, shards, fingerprint, stop, progress, every or stop, assess)
    ended = run.step >= stop or exhausted([r[metric] for r in history], early)
    return None if ended else done.interrupted


def _conclude(
    backend: Backend,
    run: TrainState,
    job: Job,
    start: str,
    judge: Judge,
    history: list[dict[str, Any]],
    kept: dict[int, Scores],
    out: Progress,
) -> dict[str, Any]:
    """Score the best weights and write down what came of the run."""
    steps, best = run.step, checkpoint.newest(job.folder.best)[0]
    if best is None:
        raise UserError(f"{job.folder.path}: its best weights are gone; remove the folder and run again")
    files, saved = checkpoint.load(best)
    state.restore(run, best, files, saved, None, ("model", "sparsity") if run.sparsity.parameters else ("model",))
    dev = kept.get(saved["global_step"]) or judge.score(backend, run, "dev", job.fold)
    scores = {"dev": score(judge.task, dev.predictions, dev.counts)}  # once more from the predictions, with intervals
    try:
        judge.examples("test", job.fold)
    except UserError as e:  # many a test set is kept apart
        out.note(f"no test    {e}")
    else:
        scores["test"] = judge.score(backend, run, "test", job.fold, RESAMPLES)
    predictions = {s: [p._asdict() for p in x.predictions] for s, x in scores.items()}
    write_json(job.folder.predictions, predictions)
    result = {
        "task": judge.name,
        "fold": job.fold,
        "seed": job.seed,
        "steps": steps,
        "best_step": saved["global_step"],
        "best": best,
        "start": start,
        "scores": {
            s: {"n": x.n, "metrics": x.metrics, "intervals": x.intervals, "majority": judge.majority(s, job.fold)}
            for s, x in scores.items()
            if x.n
        },
        "dev": history,
    }
    write_json(job.folder.result, result)
    return result
