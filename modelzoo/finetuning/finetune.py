"""`-m finetune`: train a checkpoint's weights on a task, for each fold and seed, and keep the best by dev score.

    <model_dir>/fold_0/seed_1/  an ordinary run folder; best/ holds the weights with the best dev score, result.json
                                its scores
    <model_dir>/data/fold_0/    the task's training examples as tokens: an ordinary shard
    <model_dir>/results.json    all of them, and their means

A killed command resumes exactly where it stopped; finished runs are not repeated.
"""

import contextlib
import os
import shlex
import tempfile
from typing import Any

from modelzoo.backends.select import joining_ranks, select_device
from modelzoo.config.errors import UserError
from modelzoo.config.required import require_finetune
from modelzoo.config.trainer import ALL_STATES, Config
from modelzoo.data import tokenizer
from modelzoo.data.bos import describe_bos
from modelzoo.distributed import ALONE, Ranks
from modelzoo.evaluation.scores.results import hash_checkpoint
from modelzoo.files import write_json
from modelzoo.finetuning import stored_result
from modelzoo.finetuning.job import Command, Job, prepare_run, run_job
from modelzoo.finetuning.task import FinetuneTask, format_table
from modelzoo.finetuning.task_shards import write_shards
from modelzoo.planning import start_checkpoint
from modelzoo.progress import Progress
from modelzoo.reading import exists
from modelzoo.records import hash_value
from modelzoo.training.build import FirstStep, Options
from modelzoo.training.launch import checks, records
from modelzoo.training.launch.resume import Start
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.runs.length import count_micro_batches


def finetune(config: Config, options: Options) -> None:
    """Fine-tune for every fold and seed, and print the table of scores."""
    with joining_ranks(options.target, config.trainer.init) as ranks:
        _join_finetuning(config, options, ranks)


def _join_finetuning(config: Config, options: Options, ranks: Ranks) -> None:
    """What every rank does; rank 0 writes and talks."""
    command = _command(config, options, ranks)
    jobs, results = command.jobs, []
    data = hash_value([command.task.fingerprint(job.fold) for job in jobs])
    same = {"the task's data": data, "the checkpoint": command.checkpoint_hash}
    checks.compare_ranks(ranks, config, same)

    def look() -> list[dict[str, Any] | None]:
        """The results that are there: all are checked before one run is trained."""
        for job in jobs if options.restart else ():
            if job.folder.holds_a_run:
                command.out.note(f"moved      the run that was here to {job.folder.move_aside()}")
        return [stored_result.find_result(job, command.describe_origin(job), command.out.note) for job in jobs]

    if not exists(os.path.join(options.model_dir, "data")):  # nothing of this command is there
        records.note_place(RunFolder(options.model_dir), command.out)
    with RunFolder(options.model_dir).lock() if ranks.first else contextlib.nullcontext():
        finished = ranks.first_does(look)
        for number, (job, result) in enumerate(zip(jobs, finished, strict=True), 1):
            command.out.note(f"run {number}/{len(jobs)}    fold {job.fold}, seed {job.seed}: {job.folder.path}")
            results.append(result or run_job(job, command))
        ranks.first_does(lambda: write_json(RunFolder(options.model_dir).results, results))
    print(format_table(results))
    print(f"wrote      {options.model_dir}: results.json; in each run folder best/, result.json, predictions.json")
    print(f"next       python run.py export {shlex.quote(jobs[0].folder.path)} EXPORTED")


def prepare_first_step(config: Config, options: Options) -> FirstStep:
    """The first step of the command's first run. Leaves nothing on disk."""
    command = _command(config, options, ALONE)
    job = command.jobs[0]
    with tempfile.TemporaryDirectory() as folder:
        data = write_shards(folder, command.task, job.fold, command.out)
        made = prepare_run(job, command, data, Start(None, ALL_STATES))
        batch, parts = made.shards.batch(0), count_micro_batches(made.config)
        return FirstStep(command.choice.backend, made.run, batch, parts)


def _command(config: Config, options: Options, ranks: Ranks) -> Command:
    section = require_finetune(config)
    named = options.checkpoint_path or section.checkpoint
    if named is None:
        raise UserError("trainer.finetune.checkpoint: missing; name a run folder here or with --checkpoint_path")
    path = ranks.first_does(lambda: start_checkpoint.find_checkpoint(named))
    choice = select_device(options.target, config.trainer.init, ranks=ranks)
    where = start_checkpoint.find_tokenizer_path(config.trainer.init, path)
    words = tokenizer.load_tokenizer(where, bos=config.trainer.init.model.bos_token_id)
    task = FinetuneTask.open(section, config.trainer.init, words)
    out = Progress(0)
    out.note(choice.describe())
    out.note(f"task       {task.describe()}")
    for line in describe_bos(words):
        out.note(f"           {line}")
    jobs = [
        _job(config, options, path, fold, seed)
        for fold in (section.folds if task.has_folds else section.folds[:1])
        for seed in section.seeds or (config.trainer.init.seed,)
    ]
    return Command(jobs, path, hash_checkpoint(path), choice, task, out)


def _job(config: Config, options: Options, checkpoint: str, fold: int, seed: int) -> Job:
    """The run of one fold and seed as a config of its own, which `-m finetune` runs again."""
    folder = os.path.join(options.model_dir, f"fold_{fold}", f"seed_{seed}")
    own = {"folds": (fold,), "seeds": (seed,), "checkpoint": checkpoint}
    section = require_finetune(config).model_copy(update=own)
    init = config.trainer.init.model_copy(update={"seed": seed, "model_dir": folder})
    trainer = config.trainer.model_copy(update={"init": init, "finetune": section})
    config = config.model_copy(update={"trainer": trainer})
    return Job(config, options, RunFolder.of(init, folder), fold, seed)
