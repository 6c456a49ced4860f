"""The training loop: one step, the loop over steps, and validation."""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from modelzoo.backends.base import Backend
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Init
from modelzoo.data import feed
from modelzoo.data.hdf5 import Shards
from modelzoo.models.gpt import GPTModel, loss_denominator
from modelzoo.optim.groups import set_lr
from modelzoo.optim.loss_scale import LossScale
from modelzoo.optim.lr import learning_rate
from modelzoo.sparsity.attach import Sparsity
from modelzoo.sparsity.ledger import Ledger

DEFAULT_LR = 1e-3  # torch's and cerebras.pytorch's default for Adam, where the config names no rate


@dataclass
class Run:
    """All that a training run consists of. `step` counts batches taken, skipped ones included."""

    init: Init
    backend: Backend
    model: GPTModel
    optimizer: torch.optim.Optimizer
    sparsity: Sparsity
    loss_scale: LossScale
    step: int = 0
    skipped: int = 0
    unmended: int = 0  # those of `skipped` that no lower loss scale could have mended: what max_skipped_steps limits
    tokens: int = 0
    churn: int = 0  # weights that changed places since the last log record; saved, so that a resumed log is the same
    ledger: Ledger = field(default_factory=Ledger)  # training FLOPs so far
    dtype_before: str | None = None  # the arithmetic of the steps before this launch, where a checkpoint records it

    @property
    def optimizer_step(self) -> int:
        """Optimizer steps taken: what learning rates and sparsity schedules count."""
        return self.step - self.skipped

    @property
    def arithmetic_change(self) -> str | None:
        """A line for a resumed run whose steps so far were computed in another arithmetic; None for all others."""
        now, before = self.backend.arithmetic, self.dtype_before
        if before in (None, now.dtype) or not self.step:
            return None
        return f"arithmetic {before} until step {self.step}, {now.dtype} from here: {now.reason}"

    def lr(self) -> float:
        """The learning rate of the next optimizer step."""
        if self.init.schedulers:
            return learning_rate(self.init.schedulers[0].value, self.optimizer_step)
        return DEFAULT_LR if self.init.optimizer.value.lr is None else self.init.optimizer.value.lr


class Step(NamedTuple):
    """What one optimizer step did. `grad_norm` is over live weights, before clipping."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    churn: int
    skipped: bool


def train_step(run: Run, batch: Mapping[str, Tensor], micro_batches: int) -> Step:
    """One optimizer step on one global batch, cut into `micro_batches`.

    A step whose loss or gradient is not finite leaves weights, moments, masks and learning rate as they were.
    """
    if run.backend.kind == "CSX":
        return _traced_step(run, batch)
    # Dropout's draws are keyed by (seed, step): resuming needs no generator state, and a skipped step disturbs none.
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{run.init.seed}/{run.step}".encode()).digest()[:7], "big"))
    run.model.train()
    batch = run.backend.put(trimmed(batch))
    denominator = loss_denominator(run.init.model, batch["attention_mask"])
    lr, count = run.lr(), run.optimizer_step + 1
    losses = []
    run.sparsity.watch(count)
    for micro in _split(batch, micro_batches):
        with run.backend.autocast():
            loss = run.model(micro, denominator)
        (loss * run.loss_scale.scale).backward()
        losses.append(loss.detach())
    loss = float(torch.stack(losses).sum())
    norm = clip_gradients(run, run.sparsity.mask_gradients(count))
    finite = math.isfinite(loss) and math.isfinite(norm)
    run.loss_scale.update(finite)
    churn, tokens = 0, batch["input_ids"].numel()
    run.ledger.add(run.init.model, run.model, run.sparsity, tokens, batch["input_ids"].shape[1], count)
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


def _traced_step(run: Run, batch: Mapping[str, Tensor]) -> Step:
    """One step on the wafer: its body was traced once (backends/csx_backend.py); what it computed arrives here.

    The wafer's dynamic loss scale passes over a step that is not finite; without one, such a step was taken.
    """
    lr, tokens = run.lr(), batch["input_ids"].numel()
    context = batch["input_ids"].shape[1]
    run.ledger.add(run.init.model, run.model, run.sparsity, tokens, context, run.optimizer_step + 1)
    loss, norm, run.loss_scale.scale = run.backend.step(batch)
    finite = math.isfinite(loss) and math.isfinite(norm)
    run.step += 1
    run.tokens += tokens if finite else 0
    run.skipped += not finite
    return Step(loss, norm, lr, tokens, 0, not finite)


def _split(batch: Mapping[str, Tensor], parts: int) -> Iterator[dict[str, Tensor]]:
    pieces = {name: x.chunk(parts) for name, x in batch.items()}
    for i in range(parts):
        yield {name: x[i] for name, x in pieces.items()}


def clip_gradients(run: Run, squares: Mapping[torch.nn.Parameter, float]) -> float:
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


class Timed(NamedTuple):
    """A step and where its time went, in seconds."""

    step: Step
    seconds: float
    waiting: float  # for data


def steps(run: Run, shards: Shards, stop: int, micro_batches: int) -> Iterator[Timed]:
    """Train until `stop`, yielding after each step. What to do between steps (log, validate, save) is the caller's."""
    begin = time.perf_counter()
    for batch in run.backend.batches(run, shards, stop):
        fetched = time.perf_counter()
        mendable = run.loss_scale.can_fall  # asked before the step, which lowers the scale if it overflows
        step = train_step(run, batch, micro_batches)
        if step.skipped and not mendable:
            run.unmended += 1
            _check_nonfinite(run, step)
        end = time.perf_counter()
        yield Timed(step, end - begin, fetched - begin)
        begin = time.perf_counter()


def _check_nonfinite(run: Run, step: Step) -> None:
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


class Score(NamedTuple):
    """Validation over whole examples: mean loss in nats per counting token."""

    loss: float
    perplexity: float
    accuracy: float
    tokens: int


@torch.no_grad()
def validate(run: Run, shards: Shards, eval_steps: int | None) -> Score:
    """Loss, perplexity and next-token accuracy over `shards`, in file order."""
    run.model.eval()
    loss, right, tokens = 0.0, 0, 0
    for batch in feed.validation(shards, eval_steps):
        batch = run.backend.put(batch)
        with run.backend.autocast():
            part_loss, part_right, part_tokens = run.model.score(batch)
        loss, right, tokens = loss + float(part_loss), right + int(part_right), tokens + int(part_tokens)
    if tokens == 0:
        raise UserError(f"{shards.files[0].path}: no token of the validation set counts (its loss mask is all 0)")
    mean = loss / tokens
    return Score(mean, math.exp(min(mean, 700.0)), right / tokens, tokens)
