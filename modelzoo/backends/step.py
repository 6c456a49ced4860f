"""One optimizer step in plain torch, as CPU and GPU take it. On the CS-2 it is traced (csx/backend.py)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modelzoo.backends import reduction, sharding
from modelzoo.backends.base import TorchBackend
from modelzoo.distributed import Ranks
from modelzoo.kernels.limits import WIDTHS
from modelzoo.models.gpt import loss_denominator
from modelzoo.optim.adam import AgedAdam
from modelzoo.optim.groups import set_lr
from modelzoo.train_state import Step, TrainState, Unread


def train_step(backend: TorchBackend, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int) -> Step:
    """One optimizer step on one global batch, cut into `micro_batches`, and its values read.

    A step whose loss or gradient is not finite leaves weights, moments, masks and learning rate as they were. Where
    steps before it were left unread (`queue_step`) and one of them was not finite, nothing after that one was taken:
    that step is returned, and the run continues from it.

    Args:
        batch: on the host.
    """
    at = _backward(backend, run, batch, micro_batches)
    unread, run.unread = [*run.unread, at], []
    values = _read(unread)
    run.optimizer.found_inf = None  # pyright: ignore[reportAttributeAccessIssue]  # torch sets it by assignment too
    for earlier, (loss, norm) in zip(unread[:-1], values[:-1], strict=True):
        if not _finite(loss, norm):
            return _go_back(run, earlier, loss, norm)
    loss, norm = values[-1]
    finite = _finite(loss, norm)
    run.loss_scale.update(finite)
    if finite:
        churn = _take(backend, run, at)
    else:
        churn = 0
        run.sparsity.drop_gradients()
        run.skipped += 1
    run.failed = None if finite else at
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return Step(loss, norm, at.lr, at.batch_tokens, churn, not finite)


def queue_step(backend: TorchBackend, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int) -> Step | None:
    """`train_step`, but where the host can go on without the step's values they stay on the device: then None.

    The device itself passes over a step that is not finite, and over all that follow until the values are read. So this
    takes a policy that stops there, and no loss scale, learning rate or mask that the host would have to change.
    """
    waits = run.init.loop.on_nonfinite == "skip" or run.loss_scale.dynamic
    starts = not run.optimizer.state  # torch fills SGD's momentum in the first step, whatever that comes to
    if not backend.asynchronous or waits or starts or run.sparsity.is_update(run.optimizer_step + 1):
        return train_step(backend, run, batch, micro_batches)
    at = _backward(backend, run, batch, micro_batches)
    run.unread.append(at)
    failed, before = (~at.values.isfinite().all()).float(), getattr(run.optimizer, "found_inf", None)
    found = failed if before is None else torch.maximum(before, failed)
    run.optimizer.found_inf = found  # pyright: ignore[reportAttributeAccessIssue]  # as torch's GradScaler does
    _take(backend, run, at)
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return None


def settle(run: TrainState) -> None:
    """Read what `queue_step` left unread. The run is at its last step then, or before the first that was not finite."""
    unread, run.unread = run.unread, []
    if not unread:
        return
    values = _read(unread)
    run.optimizer.found_inf = None  # pyright: ignore[reportAttributeAccessIssue]  # torch sets it by assignment too
    for at, (loss, norm) in zip(unread, values, strict=True):
        if not _finite(loss, norm):
            _go_back(run, at, loss, norm)
            run.unavoidable += 1  # taken back with the rest
            run.take_back_failed()
            return


def _backward(backend: TorchBackend, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int) -> Unread:
    """Loss and clipped gradients of a batch, with nothing read back."""
    run.model.train()
    batch = trim_padding(batch)
    tokens, length = batch["input_ids"].numel(), batch["input_ids"].shape[1]
    denominator = loss_denominator(run.init.model, batch["attention_mask"])
    lr, count = run.lr(), run.optimizer_step + 1
    run.sparsity.watch(count)
    loss = reduction.accumulate(backend, run, batch, denominator, micro_batches)
    norm = clip_gradients(run, run.sparsity.mask_gradients(count), backend.asynchronous)
    before, scale = dataclasses.replace(run.ledger), dataclasses.replace(run.loss_scale)
    run.count_flops(tokens, length)
    values = torch.stack((loss.double(), norm.double()))
    return Unread(values, lr, tokens, run.step, run.tokens, dataclasses.replace(run.ledger), before, scale)


def _compare_masks(ranks: Ranks, run: TrainState) -> None:
    """Refuse to go on with masks that differ between ranks.

    Raises:
        UserError: names the weight and the ranks.
    """
    hashes = {p.name: p.digest() for p in run.sparsity.parameters}
    remedy = "the ranks' arithmetic is not the same; take machines of one kind, or reduction: exact"
    ranks.require_same({f"step {run.step}: the mask of {n}": h for n, h in hashes.items()}, remedy)


def _take(backend: TorchBackend, run: TrainState, at: Unread) -> int:
    """Change weights, and masks where it is their step; returns how many weights gave up their place."""
    count = run.optimizer_step + 1
    set_lr(run.optimizer, at.lr)
    run.sparsity.wake()
    run.optimizer.step()
    churn = run.sparsity.update(count, run.optimizer.state)
    if backend.ranks.size > 1 and run.sparsity.is_update(count):
        _compare_masks(backend.ranks, run)
    run.churn += churn
    run.tokens += at.batch_tokens
    return churn


def _go_back(run: TrainState, at: Unread, loss: float, norm: float) -> Step:
    """The run as it is after passing over `at`: the device took no step from there on, the counters did."""
    run.optimizer.zero_grad(set_to_none=True)
    run.sparsity.drop_gradients()
    if isinstance(run.optimizer, AgedAdam):
        run.optimizer.recount()
    run.step, run.tokens, run.ledger = at.step + 1, at.tokens, at.ledger
    run.skipped += 1
    run.failed = at
    return Step(loss, norm, at.lr, at.batch_tokens, 0, True)


def _read(unread: Sequence[Unread]) -> list[list[float]]:
    """Loss and norm of each step: one wait for the device, however many there are."""
    return torch.stack([at.values for at in unread]).tolist()


def _finite(loss: float, norm: float) -> bool:
    return math.isfinite(loss) and math.isfinite(norm)


def trim_padding(batch: Mapping[str, Tensor], multiple: int = WIDTHS) -> dict[str, Tensor]:
    """A batch [b, t] without the columns at its end in which no token counts, down to a multiple of `multiple`.

    A causal model's counted tokens see nothing of what follows them, so padding there is work for nothing.
    """
    counts = batch["attention_mask"].any(0).nonzero()
    length = -(-(int(counts[-1]) + 1) // multiple) * multiple if len(counts) else multiple
    return {name: x[:, :length] for name, x in batch.items()}


def clip_gradients(run: TrainState, squares: Mapping[torch.nn.Parameter, float], asynchronous: bool = False) -> Tensor:
    """Undo the loss scale, clip as the config says. Dead weights are zero already.

    Args:
        squares: sums of squares of gradients, before the loss scale is undone, that are known already.
        asynchronous: read nothing back, and pass over gradients that are short enough too.

    Returns:
        The norm before clipping, a float tensor without dimensions: on the gradients' device if `asynchronous`.
    """
    precision, scale = run.init.precision, run.loss_scale.scale
    limit = math.inf if precision.max_gradient_norm is None else precision.max_gradient_norm
    weights = [p for p in run.parameters.values() if p.grad is not None]
    grads = [p.grad for p in weights if p.grad is not None]
    if scale != 1.0:
        # no public function multiplies them in one launch
        torch._foreach_mul_(grads, 1.0 / scale)  # pyright: ignore[reportPrivateImportUsage]
    if run.shares is not None:
        norm = sharding.clip_norm(run.shares.ranks, grads, limit)
    elif asynchronous:
        norm = torch.nn.utils.clip_grad_norm_(weights, limit)
    else:
        # By hand where values are at hand: torch's function passes over gradients to multiply them by one, divides by
        # way of the reciprocal, which rounds twice, and a root of float64 by its vector library is not always the
        # nearest.
        others = [torch.linalg.vector_norm(p.grad) for p in weights if p not in squares]
        length = float(torch.linalg.vector_norm(torch.stack(others))) if others else 0.0
        length = math.sqrt(length**2 + sum(squares.values()) / scale**2)
        if length > limit:  # NaN compares False
            for grad in grads:
                grad.mul_(limit / (length + 1e-6))
        norm = torch.tensor(length, dtype=torch.float64)
    if precision.max_gradient_value is not None:
        torch.nn.utils.clip_grad_value_(weights, precision.max_gradient_value)
    return norm
