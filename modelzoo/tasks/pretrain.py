"""Pre-training: build a run from a config, train, validate and save it, and print a summary."""

import contextlib
import os
import sys
import time

from modelzoo.backends.base import Backend
from modelzoo.backends.batch_shares import BATCH_SIZE
from modelzoo.backends.select import Choice, joining_ranks, select_training_device
from modelzoo.config.errors import UserError
from modelzoo.config.required import require_fit
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.data.hdf5 import Shards
from modelzoo.distributed import Ranks
from modelzoo.files import remove_temporaries
from modelzoo.interop.adapters.load import load_adapters
from modelzoo.interop.mdl.state import load_checkpoint
from modelzoo.planning import lengths, plan, start_checkpoint
from modelzoo.planning.batches import note_batches, note_validation
from modelzoo.progress import Progress
from modelzoo.train_state import TrainState
from modelzoo.training import console
from modelzoo.training.build import Options, build_run, open_shards
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.launch import checks, records, resume
from modelzoo.training.launch.resume import Start
from modelzoo.training.logs import trackers
from modelzoo.training.logs.tensorboard import events_folder
from modelzoo.training.logs.writing import Logs
from modelzoo.training.loop import fit
from modelzoo.training.runs.changes import describe_changes
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.runs.length import count_steps, find_eval_interval
from modelzoo.training.validation import Score, validate


def train(config: Config, options: Options, evaluate: bool) -> None:
    """`-m train` and, with `evaluate`, `-m train_and_eval`."""
    with joining_ranks(options.target, config.trainer.init) as ranks:
        _join_train(config, options, evaluate, ranks)


def _join_train(config: Config, options: Options, evaluate: bool, ranks: Ranks) -> None:
    """What every rank does; rank 0 writes and talks."""
    init, section = config.trainer.init, require_fit(config, "training")
    artefacts = os.path.join(options.model_dir, "cerebras_logs")
    choice = select_training_device(options.target, config, artefacts, evaluate, ranks)
    shards = open_shards(config, section.train_dataloader)
    vals = [open_shards(config, loader) for loader in manifest.list_val_loaders(config)] if evaluate else []
    if evaluate and not vals:
        raise UserError("trainer.fit.val_dataloader: missing; train_and_eval needs one (or use -m train)")
    stop = count_steps(config, len(shards))
    plan.check_sparsity(init, stop)
    folder = RunFolder.of(init, options.model_dir)
    with folder.lock() if ranks.first else contextlib.nullcontext():
        _train(config, options, choice, folder, shards, vals, stop)


def _train(
    config: Config, options: Options, choice: Choice, folder: RunFolder, shards: Shards, vals: list[Shards], stop: int
) -> None:
    """Train in a folder that is this process's alone."""
    init, out, fingerprint = config.trainer.init, Progress(stop), shards.fingerprint()
    ranks = choice.backend.ranks
    out.note(choice.describe())
    checks.compare_ranks(ranks, config, {"the training data": fingerprint})
    named = options.checkpoint_path or require_fit(config).ckpt_path
    start = Start.of(
        ranks.first_does(
            lambda: resume.choose_start(
                folder,
                start_checkpoint.find_checkpoint(named) if named else None,
                options.load_states,
                init.checkpoint.autoload_last_checkpoint,
                options.restart,
                out.note,
            )
        )
    )
    if not start.own and not options.restart:
        ranks.first_does(lambda: resume.check_unbegun(folder, config))
        records.note_place(folder, out)
    run = build_run(config, choice, may_shard=True)
    asked = [*note_batches(config), *(note_validation(config) if vals else ())]
    for note in (*run.sparsity.notes, *asked, *lengths.note_lengths(init, stop)):
        out.note(note)
    _load_start(run, start, shards, fingerprint, options.strict)
    changes = ranks.first_does(lambda: resume.check_changes(folder, config, run)) if start.own else {}
    size = require_fit(config).train_dataloader.batch_size
    checks.settle_reduction(run, choice, size, BATCH_SIZE, run.reduction if run.step else None, out)
    if run.step >= stop and not run.unassessed:
        if start.own:
            saving.prepare(folder.checkpoints)
        if ranks.first:
            remove_temporaries(folder.path)
        out.note(f"nothing to do: {start.path} is at step {run.step} of {stop}; raise loop.max_steps to train on")
        if changes:
            out.note("           it was trained otherwise than this config says:")
        for line in describe_changes(changes):
            out.note(line)
        return
    trackers.require_packages(init)
    if options.restart and ranks.first_does(lambda: folder.holds_a_run):  # else it is moved already
        out.note(f"moved      the run that was here to {ranks.first_does(folder.move_aside)}")
    _note_start(run, start, changes, choice, out)

    def record() -> None:
        checks.check_space(run, folder.checkpoints)
        records.record_launch(config, options.command, folder, choice, run, start, changes)

    ranks.first_does(record)

    def assess(logs: Logs, tally: console.Tally) -> bool:
        tally.scores = [_validate(choice.backend, run, val, logs, out, i) for i, val in enumerate(vals)]
        return False

    every = find_eval_interval(init.loop.eval_frequency, stop) if vals else None
    done = fit(choice.backend, run, config, folder, shards, fingerprint, stop, out, every, assess)
    events = events_folder(init, folder.path)
    memory, peak = records.measure_speed(choice.backend, folder, run.step, done)
    print(console.describe_run(run, memory, done.tally, folder, done.saved, stop, options.mode, events, peak))
    checks.check_written(ranks, folder, done.saved, done.interrupted)
    if done.interrupted and run.step < stop:
        sys.exit(128 + done.interrupted)


def _validate(backend: Backend, run: TrainState, shards: Shards, logs: Logs, out: Progress, number: int) -> Score:
    begin = time.perf_counter()
    score = validate(backend, run, shards, run.init.loop.eval_steps)
    kind = f"validation_{number}" if number else "validation"
    logs.write(run.step, kind, score.metrics, {"seconds": time.perf_counter() - begin})
    out.note(f"{kind} at step {run.step}: {console.describe_score(score)}")
    return score


def _load_start(run: TrainState, start: Start, shards: Shards, fingerprint: str, strict: bool) -> None:
    """Load the checkpoint and adapters that `run` starts from."""
    if not start.own:
        load_adapters(run.model, run.init)
    if start.path is None:
        return
    if start.own:
        files, saved = checkpoint.load(start.path)
        restore(run, start.path, files, saved, shards.fingerprint(saved.get("dataset")), strict=strict)
    else:
        files, saved = load_checkpoint(start.path, run.init, fingerprint)
        restore(run, start.path, files, saved, shards.fingerprint(saved.get("dataset")), start.states, strict)


def _note_start(
    run: TrainState, start: Start, changes: dict[str, tuple[str, str]], choice: Choice, out: Progress
) -> None:
    if start.path is not None:
        out.note(
            f"resumed    {start.path} at step {run.step}"
            if run.step
            else f"weights    from {start.path}; steps count from 0"
        )
    if start.note:
        out.note(f"           {start.note}")
    for line in records.describe_changes(run, changes, choice.backend.arithmetic):
        out.note(line)
