"""What a training run consists of, and the result of one step. Backends (below the loop) and checkpoints share it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from modelzoo.config.trainer import Init
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import Shape, frozen, list_with_adapters
from modelzoo.optim.loss_scale import LossScale
from modelzoo.optim.lr import rate_at
from modelzoo.sparsity.attach import Sparsity
from modelzoo.sparsity.ledger import Ledger


@dataclass
class TrainState:
    """All that a training run consists of. `step` counts batches taken, skipped ones included."""

    init: Init
    dtype: str  # of matrix products, in this launch
    model: GPTModel
    optimizer: torch.optim.Optimizer
    sparsity: Sparsity
    loss_scale: LossScale
    step: int = 0
    skipped: int = 0
    unavoidable: int = 0  # skipped steps that no lower loss scale would have avoided: max_skipped_steps limits them
    tokens: int = 0
    churn: int = 0  # weights that changed places since the last log record; saved, so that a resumed log is the same
    ledger: Ledger = field(default_factory=Ledger)  # training FLOPs so far
    dtype_before: str | None = None  # the arithmetic of the steps before this launch, where a checkpoint records it
    unread: "list[Unread]" = field(default_factory=list)  # steps whose values are on the device, in order

    @property
    def optimizer_step(self) -> int:
        """Optimizer steps taken: what learning rates and sparsity schedules count."""
        return self.step - self.skipped

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Every parameter by name: what FLOPs are counted from."""
        return list_with_adapters(self.init)

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that do not train."""
        return frozen(self.init)

    def count_flops(self, tokens: int, context: int) -> None:
        """Add the step at hand, not yet taken, to the ledger. `tokens` of the batch, `context` of a sequence."""
        step = self.optimizer_step + 1
        self.ledger.add(self.init.model, self.shapes, self.frozen, self.sparsity, tokens, context, step)

    def lr(self) -> float:
        """The learning rate of the next optimizer step."""
        return rate_at(self.init, self.optimizer_step)


class Unread(NamedTuple):
    """A step queued on the device, and the counters to return to should it not have been finite."""

    values: Tensor  # [2] float64 on the device: loss, gradient norm before clipping
    lr: float
    batch_tokens: int
    step: int
    tokens: int
    ledger: Ledger


class Step(NamedTuple):
    """What one optimizer step did. `grad_norm` is over live weights, before clipping."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    churn: int
    skipped: bool


class Timed(NamedTuple):
    """A step, and where the time went since the last step that was read: on a CPU that is the one before."""

    step: Step
    seconds: float
    waiting: float  # seconds for data
    tokens: int
    steps: int = 1

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds
