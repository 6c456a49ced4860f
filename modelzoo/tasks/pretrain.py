"""Pre-training: builds a Run from a config, trains it, logs, validates, saves, and says what it made."""

import contextlib
import json
import os
import shutil
import signal
import sys
import time

import torch

from modelzoo import checkpoint, loop, mdl_state, state
from modelzoo.backends import csx_preflight
from modelzoo.backends.select import Choice, select
from modelzoo.config.errors import UserError
from modelzoo.config.load import dump
from modelzoo.config.trainer import Config
from modelzoo.data.hdf5 import Shards
from modelzoo.loop import Run, Score, Step, Timed
from modelzoo.metrics import Logs
from modelzoo.report import Progress, size
from modelzoo.tasks import plan, show
from modelzoo.tasks.build import Options, build, micro_batches, open_shards, total_steps, val_loaders


def train(config: Config, options: Options, evaluate: bool) -> None:
    """`-m train` and, with `evaluate`, `-m train_and_eval`."""
    init, fit = config.trainer.init, config.trainer.fit
    if fit is None:
        raise UserError("trainer.fit: missing; training needs fit.train_dataloader")
    choice = _choose(config, options, evaluate)
    shards = open_shards(config, fit.train_dataloader)
    vals = [open_shards(config, loader) for loader in val_loaders(config)] if evaluate else []
    if evaluate and not vals:
        raise UserError("trainer.fit.val_dataloader: missing; train_and_eval needs one (or use -m train)")
    stop = total_steps(config, shards)
    plan.check(init, stop)
    parts = micro_batches(config)
    out = Progress(stop)
    out.note(f"device     {choice.backend.describe()}" + (f"  [{choice.said}]" if choice.said else ""))
    for note in choice.backend.notes:
        out.note(f"           {note}")
    run = build(config, choice)
    root, fingerprint = state.checkpoint_root(init, options.model_dir), shards.fingerprint()
    resumed = _resume(run, config, options, root, fingerprint, out)
    if run.step >= stop:
        out.note(f"nothing to do: {resumed} is at step {run.step} of {stop}; raise loop.max_steps to go on")
        return
    _check_space(run, root)
    _record(config, options, choice, run)
    _fit(run, config, options.model_dir, shards, fingerprint, vals, stop, parts, out)


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


def _fit(
    run: Run,
    config: Config,
    model_dir: str,
    shards: Shards,
    fingerprint: str,
    vals: list[Shards],
    stop: int,
    parts: int,
    out: Progress,
) -> None:
    """The run, step by step: log, show, validate, save."""
    init = run.init
    root = state.checkpoint_root(init, model_dir)
    every = eval_every(init.loop.eval_frequency, stop) if vals else None
    tally, saved = show.Tally(run.step), None
    tensorboard = not init.loggers or any(x.name == "TensorBoardLogger" for x in init.loggers)
    logs = Logs(model_dir, run.step, tensorboard)

    def save() -> str | None:
        if not run.backend.fetch(run):
            out.note(f"no checkpoint at step {run.step}: the CS-2 gives its weights at multiples of checkpoint.steps")
            return None
        return checkpoint.save(root, run.step, *state.snapshot(run, fingerprint), config.keep_checkpoints)

    try:
        with _interrupts() as interrupted:
            if init.checkpoint.save_initial_checkpoint and run.step == 0:
                saved = save()
            for timed in loop.steps(run, shards, stop, parts):
                tally.add(timed)
                last = run.step == stop or bool(interrupted)
                if run.step == stop or run.step % init.logging.log_steps == 0:
                    logs.write(run.step, "train", _metrics(run, timed.step), _timing(timed))
                    run.churn = 0
                out.update(run.step, show.line(run, timed, tally))
                if every and (run.step == stop or run.step % every == 0):
                    tally.scores = [_validate(run, val, logs, out, i) for i, val in enumerate(vals)]
                if last or (init.checkpoint.steps and run.step % init.checkpoint.steps == 0):
                    saved = save() or saved
                if interrupted:
                    break
    finally:
        out.close()
        logs.close()
    print(show.summary(run, tally, model_dir, saved, stop))
    if interrupted and run.step < stop:
        sys.exit(128 + interrupted[0])


def eval_every(frequency: int | float | None, stop: int) -> int | None:
    """Steps between validations: a count, or a share of the run; None for none."""
    if not frequency:
        return None
    return frequency if isinstance(frequency, int) else max(1, round(frequency * stop))


def _metrics(run: Run, step: Step) -> dict[str, float]:
    metrics = {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm, "tokens": run.tokens}
    if run.sparsity.parameters:
        metrics["sparsity_target"] = run.sparsity.target(run.optimizer_step)
        metrics["sparsity"] = run.sparsity.actual()
        metrics["churn"] = run.churn
    if run.loss_scale.dynamic or run.init.precision.log_loss_scale:
        metrics["loss_scale"] = run.loss_scale.scale
    if run.skipped:
        metrics["skipped"] = run.skipped
    return metrics


def _timing(timed: Timed) -> dict[str, float]:
    speed = timed.step.tokens / timed.seconds
    return {"tokens_per_second": speed, "seconds": timed.seconds, "waiting": timed.waiting}


def _validate(run: Run, shards: Shards, logs: Logs, out: Progress, number: int) -> Score:
    begin = time.perf_counter()
    score = loop.validate(run, shards, run.init.loop.eval_steps)
    kind = f"validation_{number}" if number else "validation"
    metrics = {"loss": score.loss, "perplexity": score.perplexity, "accuracy": score.accuracy}
    logs.write(run.step, kind, metrics, {"seconds": time.perf_counter() - begin})
    out.note(f"{kind} at step {run.step}: {show.score(score)}")
    return score


def _resume(run: Run, config: Config, options: Options, root: str, fingerprint: str, out: Progress) -> str | None:
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


def _check_space(run: Run, root: str) -> None:
    """Better to learn before the first step than after the first hour that a checkpoint does not fit."""
    need = sum(p.numel() * 12 for p in run.model.parameters())
    folder = os.path.abspath(root)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{folder}: {size(free)} free, but one checkpoint takes about {size(need)}; "
            "free some space or give another -o"
        )


def _record(config: Config, options: Options, choice: Choice, run: Run) -> None:
    """config.yaml (the resolved config, reloadable) and a line in launches.jsonl."""
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": options.command,
        "asked": choice.asked,
        "device": choice.backend.describe(),
        "fallback": choice.said,
        "notes": choice.backend.notes,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "from_step": run.step,
    }
    try:
        os.makedirs(options.model_dir, exist_ok=True)
        text = dump(config, f"resolved config of `{options.command}`")
        checkpoint.write_text(os.path.join(options.model_dir, "config.yaml"), text)
        with open(os.path.join(options.model_dir, "launches.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as e:
        raise UserError(f"{options.model_dir}: cannot be written ({e.strerror}); give another -o") from None


@contextlib.contextmanager
def _interrupts():
    """Ctrl-C and SIGTERM end the run after the step at hand, with a checkpoint; a second one ends it at once."""
    seen: list[int] = []

    def handler(number, frame):
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        print("\nstopping after this step; once more stops at once", file=sys.stderr)

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for s, old in before.items():
            signal.signal(s, old)
