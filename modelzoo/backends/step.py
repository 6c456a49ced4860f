"""One optimizer step in plain torch, as CPU and GPU take it. On the CS-2 it is traced (csx_backend.py)."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from modelzoo.backends.base import Backend
from modelzoo.draws import make_seed
from modelzoo.models.gpt import loss_denominator
from modelzoo.optim.groups import set_lr
from modelzoo.train_state import Step, TrainState


def train_step(backend: Backend, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int) -> Step:
    """One optimizer step on one global batch, cut into `micro_batches`.

    A step whose loss or gradient is not finite leaves weights, moments, masks and learning rate as they were.
    """
    # Dropout's draws are keyed by (seed, step): resuming needs no generator state, and a skipped step disturbs none.
    torch.manual_seed(make_seed(run.init.seed, run.step, bits=56))
    run.model.train()
    batch = backend.put(trimmed(batch))
    denominator = loss_denominator(run.init.model, batch["attention_mask"])
    lr, count = run.lr(), run.optimizer_step + 1
    losses = []
    run.sparsity.watch(count)
    for micro in _split(batch, micro_batches):
        with backend.autocast():
            loss = run.model(micro, denominator)
        (loss * run.loss_scale.scale).backward()
        losses.append(loss.detach())
    loss = float(torch.stack(losses).sum())
    norm = clip_gradients(run, run.sparsity.mask_gradients(count))
    finite = math.isfinite(loss) and math.isfinite(norm)
    run.loss_scale.update(finite)
    churn, tokens = 0, batch["input_ids"].numel()
    run.count_flops(tokens, batch["input_ids"].shape[1])
    if finite:
        set_lr(run.optimizer, lr)
        run.optimizer.step()
        churn = run.sparsity.update(count, run.optimizer.state)
        run.churn += churn
        run.tokens += tokens
    else:
        run.sparsity.drop_gradients()
        run.skipped += 1
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return Step(loss, norm, lr, tokens, churn, not finite)


def trimmed(batch: Mapping[str, Tensor], multiple: int = 32) -> dict[str, Tensor]:
    """A batch [b, t] without the columns at its end in which no token counts, down to a multiple of `multiple`.

    A causal model's counted tokens see nothing of what follows them, so padding there is work for nothing.
    """
    counts = batch["attention_mask"].any(0).nonzero()
    length = -(-(int(counts[-1]) + 1) // multiple) * multiple if len(counts) else multiple
    return {name: x[:, :length] for name, x in batch.items()}


def _split(batch: Mapping[str, Tensor], parts: int) -> Iterator[dict[str, Tensor]]:
    pieces = {name: x.chunk(parts) for name, x in batch.items()}
    for i in range(parts):
        yield {name: x[i] for name, x in pieces.items()}


def clip_gradients(run: TrainState, squares: Mapping[torch.nn.Parameter, float]) -> float:
    """Undo the loss scale, clip as the config says, return the norm before clipping. Dead weights are zero already.

    Args:
        squares: sums of squares of gradients, before the loss scale is undone, that are known already.
    """
    precision, scale = run.init.precision, run.loss_scale.scale
    with_grads = [p for p in run.model.parameters() if p.grad is not None]
    grads = [p.grad for p in with_grads]
    if scale != 1.0:
        torch._foreach_mul_(grads, 1.0 / scale)
    others = [p.grad for p in with_grads if p not in squares]
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(others)))) if others else 0.0
    norm = math.sqrt(norm**2 + sum(squares.values()) / scale**2)
    if precision.max_gradient_norm is not None and norm > precision.max_gradient_norm:  # NaN compares False
        torch._foreach_mul_(grads, precision.max_gradient_norm / (norm + 1e-6))
    elif precision.max_gradient_value is not None:
        torch._foreach_clamp_min_(grads, -precision.max_gradient_value)
        torch._foreach_clamp_max_(grads, precision.max_gradient_value)
    return norm
