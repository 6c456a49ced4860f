"""The training loop: it logs, displays, assesses and saves. Every task that trains uses this one."""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from modelzoo.backends.base import Backend
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data.hdf5 import Shards
from modelzoo.progress import Progress
from modelzoo.train_state import Step, Timed, TrainState
from modelzoo.training import checkpoint, console, state, trackers
from modelzoo.training.logs import LogError, Logs
from modelzoo.training.run_folder import RunFolder
from modelzoo.training.run_length import count_micro_batches
from modelzoo.training.signals import catch_interrupts

READ_EVERY = 1.0  # seconds after which a step is read from the device for the live line alone


class Fitted(NamedTuple):
    """How a run went: its totals, its newest checkpoint, and the signal that interrupted it, if one did."""

    tally: console.Tally
    saved: str | None
    interrupted: int | None


def fit(
    backend: Backend,
    run: TrainState,
    config: Config,
    folder: RunFolder,
    shards: Shards,
    fingerprint: str,
    stop: int,
    out: Progress,
    every: int | None = None,
    assess: Callable[[Logs, console.Tally], bool] | None = None,
) -> Fitted:
    """Train until step `stop`, calling `assess` each `every` steps and at the end; if it says so, the run ends there.

    Args:
        fingerprint: of the data, for the checkpoints.

    Raises:
        UserError: a log cannot be written (the step at hand is saved first, if that can be), or a checkpoint cannot.
    """
    init = run.init
    tally, saved = console.Tally(run.step), None
    events = trackers.events_folder(init, folder.path)
    logs = Logs(folder, run.step, events, trackers.open_all(init, folder.path))

    def save() -> str | None:
        if not backend.fetch(run):
            out.note(f"no checkpoint at step {run.step}: the CS-2 gives its weights at multiples of checkpoint.steps")
            return None
        return checkpoint.save(folder.checkpoints, run.step, *state.snapshot(run, fingerprint), config.keep_checkpoints)

    def is_due(step: int) -> bool:
        return step == stop or any(n and step % n == 0 for n in (init.logging.log_steps, every, init.checkpoint.steps))

    try:
        with catch_interrupts() as interrupted:
            if init.checkpoint.save_initial_checkpoint and run.step == 0:
                saved = save()
            for timed in iterate_steps(backend, run, shards, stop, count_micro_batches(config), is_due):
                tally.add(timed)
                if run.step == stop or run.step % init.logging.log_steps == 0:
                    logs.write(run.step, "train", _metrics(run, timed.step), _timing(timed))
                    run.churn = 0
                out.update(run.step, console.describe_step(run, timed, tally))
                due = bool(every) and (run.step == stop or run.step % every == 0)
                enough = due and assess is not None and assess(logs, tally)
                last = run.step == stop or enough or bool(interrupted)
                if last or (init.checkpoint.steps and run.step % init.checkpoint.steps == 0):
                    saved = save() or saved
                if last:
                    break
    except LogError as e:
        raise UserError(f"{e}; {_saved(save, run.step)}") from None
    finally:
        out.close()
        logs.close()
    return Fitted(tally, saved, interrupted[0] if interrupted else None)


def _saved(save: Callable[[], str | None], step: int) -> str:
    """Save a run whose log cannot be written; returns the outcome in words."""
    try:
        return f"step {step} is saved in {save()}, its records are not in the log"
    except UserError as e:
        return str(e)


def iterate_steps(
    backend: Backend,
    run: TrainState,
    shards: Shards,
    stop: int,
    micro_batches: int,
    is_due: Callable[[int], bool] = lambda step: True,
) -> Iterator[Timed]:
    """Train until `stop`, yielding after each step that was read. The caller decides what follows (log, validate).

    A CPU's steps are all read. A GPU's are read when they are due and about once a second: until then it works
    through its queue, and the host does not wait.

    Args:
        is_due: whether the caller has something to do after a step, by the number of steps taken then.
    """
    begin = ready = time.perf_counter()
    last_read, waiting, taken, tokens = -math.inf, 0.0, run.step, run.tokens
    for batch in shards.holding.watch(backend.batches(run, shards, stop)):
        fetched = time.perf_counter()
        waiting += fetched - ready
        avoidable = run.loss_scale.can_fall  # read before the step, which lowers the scale if it overflows
        queued = run.tokens - tokens
        if is_due(run.step + 1) or fetched - last_read >= READ_EVERY:
            last_read, step = fetched, backend.train_step(run, batch, micro_batches)
        else:
            step = backend.queue_step(run, batch, micro_batches)
        ready = time.perf_counter()
        if step is None:
            continue
        if step.skipped and not avoidable:
            run.unavoidable += 1
            _check_nonfinite(run, step)
        yield Timed(step, ready - begin, waiting, queued + step.tokens, run.step - taken)
        begin = ready = time.perf_counter()
        waiting, taken, tokens = 0.0, run.step, run.tokens


def _check_nonfinite(run: TrainState, step: Step) -> None:
    loop = run.init.loop
    what = f"step {run.step}: loss {step.loss}, gradient norm {step.grad_norm}"
    if loop.on_nonfinite == "stop":
        raise UserError(
            f"{what}: not finite, so the run stops with its weights as they were; lower the learning rate or "
            "set max_gradient_norm, or skip such steps with trainer.init.loop.on_nonfinite: skip"
        )
    if run.unavoidable > loop.max_skipped_steps:
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
    """Speed and seconds of one step: the mean since the last one that was read."""
    n = timed.steps
    return {"tokens_per_second": timed.speed, "seconds": timed.seconds / n, "waiting": timed.waiting / n}
