"""The training loop: each step is logged, shown, assessed and saved. Every task that trains uses this one."""

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from modelzoo.backends.base import Backend
from modelzoo.backends.select import Choice
from modelzoo.config.errors import UserError
from modelzoo.config.load import dump
from modelzoo.config.trainer import Config
from modelzoo.data.hdf5 import Shards
from modelzoo.files import write_text
from modelzoo.progress import Progress, size
from modelzoo.train_state import Step, Timed, TrainState
from modelzoo.training import checkpoint, console, state, trackers
from modelzoo.training.build import Options
from modelzoo.training.logs import Logs


class Fitted(NamedTuple):
    """How a run went: its totals, its newest checkpoint, and the signal that interrupted it, if one did."""

    tally: console.Tally
    saved: str | None
    interrupted: int | None


def fit(
    backend: Backend,
    run: TrainState,
    config: Config,
    model_dir: str,
    shards: Shards,
    fingerprint: str,
    stop: int,
    parts: int,
    out: Progress,
    every: int | None = None,
    assess: Callable[[Logs, console.Tally], bool] | None = None,
) -> Fitted:
    """Train until step `stop`, calling `assess` each `every` steps and at the end; if it says so, the run ends there.

    Args:
        fingerprint: of the data, for the checkpoints.
        parts: micro-batches in a step.
    """
    init = run.init
    root = state.checkpoint_root(init, model_dir)
    tally, saved = console.Tally(run.step), None
    logs = Logs(model_dir, run.step, trackers.events_folder(init, model_dir), trackers.open_all(init, model_dir))

    def save() -> str | None:
        if not backend.fetch(run):
            out.note(f"no checkpoint at step {run.step}: the CS-2 gives its weights at multiples of checkpoint.steps")
            return None
        return checkpoint.save(root, run.step, *state.snapshot(run, fingerprint), config.keep_checkpoints)

    try:
        with _interrupts() as interrupted:
            if init.checkpoint.save_initial_checkpoint and run.step == 0:
                saved = save()
            for timed in steps(backend, run, shards, stop, parts):
                tally.add(timed)
                if run.step == stop or run.step % init.logging.log_steps == 0:
                    logs.write(run.step, "train", _metrics(run, timed.step), _timing(timed))
                    run.churn = 0
                out.update(run.step, console.line(run, timed, tally))
                enough = bool(every) and (run.step == stop or run.step % every == 0) and assess(logs, tally)
                last = run.step == stop or enough or bool(interrupted)
                if last or (init.checkpoint.steps and run.step % init.checkpoint.steps == 0):
                    saved = save() or saved
                if last:
                    break
    finally:
        out.close()
        logs.close()
    return Fitted(tally, saved, interrupted[0] if interrupted else None)


def steps(backend: Backend, run: TrainState, shards: Shards, stop: int, micro_batches: int) -> Iterator[Timed]:
    """Train until `stop`, yielding after each step. What to do between steps (log, validate, save) is the caller's."""
    begin = time.perf_counter()
    for batch in backend.batches(run, shards, stop):
        fetched = time.perf_counter()
        mendable = run.loss_scale.can_fall  # asked before the step, which lowers the scale if it overflows
        step = backend.train_step(run, batch, micro_batches)
        if step.skipped and not mendable:
            run.unmended += 1
            _check_nonfinite(run, step)
        end = time.perf_counter()
        yield Timed(step, end - begin, fetched - begin)
        begin = time.perf_counter()


def _check_nonfinite(run: TrainState, step: Step) -> None:
    loop = run.init.loop
    what = f"step {run.step}: loss {step.loss}, gradient norm {step.grad_norm}"
    if loop.on_nonfinite == "stop":
        raise UserError(
            f"{what}: not finite, so the run stops with its weights as they were; lower the learning rate or "
            "set max_gradient_norm, or pass over such steps with trainer.init.loop.on_nonfinite: skip"
        )
    if run.unmended > loop.max_skipped_steps:
        raise UserError(
            f"{what}: not finite, and loop.max_skipped_steps {loop.max_skipped_steps} are used up; "
            "lower the learning rate"
        )


def _metrics(run: TrainState, step: Step) -> dict[str, float]:
    metrics = {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm, "tokens": run.tokens}
    metrics |= {"flops": run.ledger.sparse, "dense_flops": run.ledger.dense}
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


def check_space(run: TrainState, root: str) -> None:
    """Better to learn before the first step than after the first hour that a checkpoint does not fit."""
    need = sum(run.sparsity.shape(p).numel() * 12 for p in run.model.parameters())
    folder = os.path.abspath(root)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{folder}: {size(free)} free, but one checkpoint takes about {size(need)}; "
            "free some space or give another -o"
        )


def record(config: Config, options: Options, choice: Choice, run: TrainState) -> None:
    """config.yaml (the resolved config, reloadable) and a line in launches.jsonl."""
    change = console.arithmetic_change(choice.backend.arithmetic, run)
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": options.command,
        "asked": choice.asked,
        "device": choice.backend.describe(),
        "class": choice.backend.device_class,
        "dtype": choice.backend.arithmetic.dtype,
        "fallback": choice.said,
        "notes": [*choice.backend.notes, *run.sparsity.notes, *([change] if change else [])],
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "from_step": run.step,
    }
    try:
        os.makedirs(options.model_dir, exist_ok=True)
        text = dump(config, f"resolved config of `{options.command}`")
        write_text(os.path.join(options.model_dir, "config.yaml"), text)
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
