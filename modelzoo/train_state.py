"""What a training run consists of, and what one step of it says. Backends (below the loop) and checkpoints share it."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from modelzoo.config.trainer import Init
from modelzoo.models.gpt import GPTModel
from modelzoo.optim.loss_scale import LossScale
from modelzoo.optim.lr import learning_rate
from modelzoo.sparsity.attach import Sparsity
from modelzoo.sparsity.ledger import Ledger

DEFAULT_LR = 1e-3  # torch's and cerebras.pytorch's default for Adam, where the config names no rate


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
    unmended: int = 0  # those of `skipped` that no lower loss scale could have mended: what max_skipped_steps limits
    tokens: int = 0
    churn: int = 0  # weights that changed places since the last log record; saved, so that a resumed log is the same
    ledger: Ledger = field(default_factory=Ledger)  # training FLOPs so far
    dtype_before: str | None = None  # the arithmetic of the steps before this launch, where a checkpoint records it
    unread: "list[Unread]" = field(default_factory=list)  # steps whose values are on the device, in order

    @property
    def optimizer_step(self) -> int:
        """Optimizer steps taken: what learning rates and sparsity schedules count."""
        return self.step - self.skipped

    def lr(self) -> float:
        """The learning rate of the next optimizer step."""
        if self.init.schedulers:
            return learning_rate(self.init.schedulers[0].value, self.optimizer_step)
        return DEFAULT_LR if self.init.optimizer.value.lr is None else self.init.optimizer.value.lr


class Unread(NamedTuple):
    """A step that the device was asked to take, and the counters as they stand should it not have been finite."""

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
