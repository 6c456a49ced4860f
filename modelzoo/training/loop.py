"""The training loop: it logs, displays, assesses and saves. Every task that trains uses this one."""

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from modelzoo.backends.base import Backend
from modelzoo.config.trainer import Config
from modelzoo.data.hdf5 import Shards
from modelzoo.entry import lacks_memory
from modelzoo.progress import Progress
from modelzoo.train_state import Step, Timed, TrainState
from modelzoo.training import console
from modelzoo.training.logs import trackers
from modelzoo.training.logs.tensorboard import events_folder
from modelzoo.training.logs.writing import Logs, NoLogs
from modelzoo.training.nonfinite import check_nonfinite
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.runs.length import count_micro_batches
from modelzoo.training.saves import Saves
from modelzoo.training.shortage import explain_shortage
from modelzoo.training.signals import catch_interrupts

READ_EVERY = 1.0  # seconds after which a step is read from the device for the live line alone
READ_STEPS = 10  # steps after which it is, where several processes train


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

    Whatever ends a run early (a log, the data, a validation, a loss that is not finite) leaves a checkpoint first,
    wherever the run is between two steps.

    Args:
        fingerprint: of the data, for the checkpoints.

    Raises:
        UserError: a log cannot be written, the data cannot be read, a step is not finite, or a checkpoint cannot be
            written.
    """
    init = run.init
    tally, events = console.Tally(run.step), events_folder(init, folder.path)
    ranks, run.churn_shown = backend.ranks, run.churn
    logs = Logs(folder, run.step, events, trackers.open_all(init, folder.path), out.note) if ranks.first else NoLogs()
    saves = Saves(backend, run, config, folder, fingerprint, logs, out)

    def is_due(step: int) -> bool:
        return step == stop or any(n and step % n == 0 for n in (init.logging.log_steps, every, init.checkpoint.steps))

    def assess_due() -> bool:
        """Make the validation that is due; whether the run ends with it."""
        saves.facts = logs.facts
        enough = assess is not None and assess(logs, tally)
        run.unassessed, saves.facts = False, None
        return enough

    since: Timed | None = None  # the last record
    try:
        with catch_interrupts() as interrupted:
            if init.checkpoint.save_initial_checkpoint and run.step == 0:
                saves.save(wait=True)  # processes that read data are started after it
            if run.unassessed and (assess_due() or run.step >= stop):
                saves.save(wait=True)
                return Fitted(tally, saves.path, None)
            for timed in iterate_steps(backend, run, shards, stop, count_micro_batches(config), is_due):
                saves.check()
                tally.add(timed, run.ledger)
                since = timed if since is None else since.join(timed)
                run.unassessed = assess is not None and bool(every) and (run.step == stop or run.step % every == 0)
                if run.step == stop or run.step % init.logging.log_steps == 0:
                    metrics = _metrics(run, timed.step)
                    run.churn, run.churn_shown = 0, run.churn_shown - run.churn
                    logs.write(run.step, "train", metrics, _timing(since))
                    since = None
                if out.update(run.step, console.describe_step(run, timed, tally)):
                    run.churn_shown = run.churn
                enough = run.unassessed and assess_due()
                last = run.step == stop or enough or ranks.any(bool(interrupted))
                if last or (init.checkpoint.steps and run.step % init.checkpoint.steps == 0):
                    saves.save(wait=last)
                if last:
                    break
            saves.finish()
            # while signals are still caught: the last rank to get one must not be gone before the others ask it
            number = next((n for n in ranks.gather(interrupted[:1]) if n), [])
    except Exception as e:
        saves.save_before(explain_shortage(e, backend, run, config) if lacks_memory(e) else e)
        raise
    finally:
        saves.writer.give_up()  # only where neither of the ways above has waited: Ctrl-C twice
        out.close()
        logs.close()
    return Fitted(tally, saves.path, number[0] if number else None)


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
    many = backend.ranks.size > 1
    last_read, waiting, taken, tokens = -math.inf, 0.0, run.step, run.tokens
    for batch in shards.holding.watch(backend.batches(run, shards, stop)):
        fetched = time.perf_counter()
        waiting += fetched - ready
        avoidable = run.loss_scale.can_fall  # read before the step, which lowers the scale if it overflows
        queued = run.tokens - tokens
        run.stepping = True
        # ranks' clocks differ, and all must read at the same step
        wanted = run.step % READ_STEPS == 0 if many else fetched - last_read >= READ_EVERY
        if is_due(run.step + 1) or wanted:
            last_read, step = fetched, backend.train_step(run, batch, micro_batches)
        else:
            step = backend.queue_step(run, batch, micro_batches)
        ready = time.perf_counter()
        if step is not None and step.skipped and not avoidable:
            run.unavoidable += 1
            check_nonfinite(run, step)
        run.stepping = False
        if step is None:
            continue
        yield Timed(step, ready - begin, waiting, queued + step.tokens, run.step - taken)
        begin = ready = time.perf_counter()
        waiting, taken, tokens = 0.0, run.step, run.tokens


def _metrics(run: TrainState, step: Step) -> dict[str, float]:
    metrics = {"loss": step.loss, "lr": step.lr, "grad_norm": step.grad_norm, "tokens": run.tokens}
    metrics |= {"flops": run.ledger.sparse, "dense_flops": run.ledger.dense}
    if run.sparsity.parameters:
        metrics["sparsity_target"] = run.sparsity.target(run.optimizer_step)
        metrics["sparsity"] = run.sparsity.actual()
        metrics["churn"] = run.churn
        if (share := run.sparsity.explored.share()) is not None:
            metrics["ever_active"] = share
    if run.loss_scale.dynamic or run.init.precision.log_loss_scale:
        metrics["loss_scale"] = run.loss_scale.scale
    if run.skipped:
        metrics["skipped"] = run.skipped
    return metrics


def _timing(timed: Timed) -> dict[str, float]:
    """Speed and seconds of one step: the means over all since the last record."""
    n = timed.steps
    return {"tokens_per_second": timed.speed, "seconds": timed.seconds / n, "waiting": timed.waiting / n}
