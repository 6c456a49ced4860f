"""Pre-training: builds a TrainState from a config, trains it, logs, validates, saves, and says what it made."""

import os
import sys
import time

from modelzoo.backends import csx_preflight
from modelzoo.backends.base import Backend
from modelzoo.backends.select import Choice, select
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data.hdf5 import Shards
from modelzoo.interop import mdl_state
from modelzoo.interop.adapter_files import load_adapters
from modelzoo.planning import plan
from modelzoo.progress import Progress
from modelzoo.train_state import TrainState
from modelzoo.training import checkpoint, console, state
from modelzoo.training.build import Options, build, open_shards, val_loaders
from modelzoo.training.logs import Logs
from modelzoo.training.loop import check_space, fit, record
from modelzoo.training.run_length import count_steps, eval_every, micro_batches
from modelzoo.training.validation import Score, validate


def train(config: Config, options: Options, evaluate: bool) -> None:
    """`-m train` and, with `evaluate`, `-m train_and_eval`."""
    init, section = config.trainer.init, config.trainer.fit
    if section is None:
        raise UserError("trainer.fit: missing; training needs fit.train_dataloader")
    choice = _choose(config, options, evaluate)
    shards = open_shards(config, section.train_dataloader)
    vals = [open_shards(config, loader) for loader in val_loaders(config)] if evaluate else []
    if evaluate and not vals:
        raise UserError("trainer.fit.val_dataloader: missing; train_and_eval needs one (or use -m train)")
    stop = count_steps(config, len(shards))
    plan.check(init, stop)
    parts = micro_batches(config)
    out = Progress(stop)
    out.note(choice.describe())
    run = build(config, choice)
    load_adapters(run.model, init)
    for note in run.sparsity.notes:
        out.note(note)
    root, fingerprint = state.checkpoint_root(init, options.model_dir), shards.fingerprint()
    resumed = _resume(run, config, options, root, fingerprint, out)
    if run.step >= stop:
        out.note(f"nothing to do: {resumed} is at step {run.step} of {stop}; raise loop.max_steps to go on")
        return
    if change := console.arithmetic_change(choice.backend.arithmetic, run):
        out.note(change)
    check_space(run, root)
    record(config, options, choice, run)

    def assess(logs: Logs, tally: console.Tally) -> bool:
        tally.scores = [_validate(choice.backend, run, val, logs, out, i) for i, val in enumerate(vals)]
        return False

    every = eval_every(init.loop.eval_frequency, stop) if vals else None
    done = fit(choice.backend, run, config, options.model_dir, shards, fingerprint, stop, parts, out, every, assess)
    print(console.summary(run, choice.backend.memory(), done.tally, options.model_dir, done.saved, stop))
    if done.interrupted and run.step < stop:
        sys.exit(128 + done.interrupted)


def _choose(config: Config, options: Options, evaluate: bool) -> Choice:
    """The device. A job for a cluster is checked whole, and what it will send is said, before it sends anything."""
    init = config.trainer.init
    backend = csx_preflight.with_defaults(init.backend)
    asked = options.target if options.target != "auto" else init.backend.backend_type
    if asked == "CSX" and csx_preflight.missing(backend) is None:
        if evaluate:
            raise UserError("CSX trains; use -m train, and -m eval of its checkpoints with CPU or GPU")
        print("preflight  " + "; ".join(csx_preflight.check(config, backend)), file=sys.stderr)
        print(csx_preflight.sends(config, backend, compile_only=False), file=sys.stderr, flush=True)
    return select(options.target, init, os.path.join(options.model_dir, "cerebras_logs"))


def _validate(backend: Backend, run: TrainState, shards: Shards, logs: Logs, out: Progress, number: int) -> Score:
    begin = time.perf_counter()
    score = validate(backend, run, shards, run.init.loop.eval_steps)
    kind = f"validation_{number}" if number else "validation"
    logs.write(run.step, kind, score.metrics, {"seconds": time.perf_counter() - begin})
    out.note(f"{kind} at step {run.step}: {console.score(score)}")
    return score


def _resume(
    run: TrainState, config: Config, options: Options, root: str, fingerprint: str, out: Progress
) -> str | None:
    """Load what the command line, the model folder or the config names, in that order."""
    path = options.checkpoint_path
    if path is None and config.trainer.init.checkpoint.autoload_last_checkpoint:
        path, damaged = checkpoint.newest(root)
        for problem in damaged:
            out.note(f"damaged    {problem}; taking the one before")
    path = path or config.trainer.fit.ckpt_path
    if path is None:
        return None
    files, saved = mdl_state.load(path, run.init, fingerprint)
    state.restore(run, path, files, saved, fingerprint, options.load_states, options.strict)
    out.note(f"resumed    {path} at step {run.step}" if run.step else f"weights    from {path}; steps count from 0")
    return path
