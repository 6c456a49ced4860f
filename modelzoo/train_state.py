"""What a training run consists of, and the result of one step. Backends (below the loop) and checkpoints share it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from modelzoo.config.trainer import Config, Init
from modelzoo.distributed import Ranks
from modelzoo.finite import are_finite
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import Shape, frozen, list_with_adapters
from modelzoo.optim.loss_scale import LossScale
from modelzoo.optim.lr import rate_at
from modelzoo.sparsity.attach import Sparsity
from modelzoo.sparsity.ledger import Ledger


class Reduction(NamedTuple):
    """How a batch's gradients are summed (`backends.reduction`).

    Attributes:
        slices: exact sums go over so many slices of the batch; None: in the order in which they come.
        threads: of each process, on a CPU, where sums are exact: torch adds up what its threads have, so their number
            decides how a sum is rounded.
    """

    slices: int | None = None
    threads: int | None = None

    @property
    def exact(self) -> bool:
        """Whether any number of ranks computes the same bits."""
        return self.slices is not None

    def describe(self) -> str:
        """In words, for a line on screen and the launch's record."""
        if not self.exact:
            return "as they come"
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''} a process" if self.threads else ""
        return f"exactly, over {self.slices} slices of each batch{threads}"


class Shares(Protocol):
    """What a rank holds where each has a share of every parameter's rows (`backends.sharding`)."""

    ranks: Ranks
    parameters: dict[str, nn.Parameter]  # this rank's rows, by name, plain tensors

    def whole(self, weight: nn.Parameter, x: Tensor) -> Tensor:
        """`x`, one of `parameters` or something of its form (moments), of all ranks. All must call it."""
        ...

    def stored(self, weight: nn.Parameter, x: Tensor) -> Tensor:
        """The inverse: this rank's rows of `x`."""
        ...

    def shape(self, weight: nn.Parameter) -> torch.Size:
        """The whole shape of one of `parameters`."""
        ...

    def take_gradients(self) -> None:
        """Move this rank's rows of the gradients from the model to `.grad` of `parameters`."""
        ...


@dataclass
class TrainState:
    """All that a training run consists of. `step` counts batches taken, skipped ones included."""

    init: Init
    dtype: str  # of matrix products, in this launch
    model: GPTModel
    optimizer: torch.optim.Optimizer
    sparsity: Sparsity
    loss_scale: LossScale
    shares: Shares | None = None  # None: this process holds all
    step: int = 0
    skipped: int = 0
    unavoidable: int = 0  # skipped steps that no lower loss scale would have avoided: max_skipped_steps limits them
    tokens: int = 0
    churn: int = 0  # weights that changed places since the last log record; saved, so that a resumed log is the same
    churn_shown: int = 0  # of `churn`, what the live line has shown; negative where a record came after that line
    ledger: Ledger = field(default_factory=Ledger)  # training FLOPs so far
    dtype_before: str | None = None  # the arithmetic of the steps before this launch, where a checkpoint records it
    reduction: Reduction = field(default_factory=Reduction)
    unread: "list[Unread]" = field(default_factory=list)  # steps whose values are on the device, in order
    config: Config | None = None  # the whole config, for checkpoints; None: the run has none
    recorded: Mapping[str, str] | None = None  # `config` as checkpoints hold it, once one did
    origin: str | None = None  # which run this is: the hash of what it began with
    resumed_from: Mapping[str, Any] = field(default_factory=dict)  # state.json of the checkpoint that it resumes
    unassessed: bool = False  # whether the validation that is due at this step has not been made
    stepping: bool = False  # whether a step is under way, so that weights and moments may be of different steps
    failed: "Unread | None" = None  # the last step that was passed over, while weights are those of before it

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name as this process holds it, and as the optimizer knows it."""
        return dict(self.model.named_parameters()) if self.shares is None else self.shares.parameters

    def whole(self, weight: nn.Parameter, x: Tensor) -> Tensor:
        """`x`, one of `parameters` or something of its form (moments), as checkpoints hold it."""
        return (self.shares or self.sparsity).whole(weight, x)

    def stored(self, weight: nn.Parameter, x: Tensor) -> Tensor:
        """The inverse of `whole`."""
        return (self.shares or self.sparsity).stored(weight, x)

    def shape(self, weight: nn.Parameter) -> torch.Size:
        """The shape of one of `parameters` as checkpoints hold it."""
        return (self.shares or self.sparsity).shape(weight)

    def is_finite(self) -> bool:
        """Whether every weight is, on all ranks."""
        finite = are_finite(p.detach() for p in self.parameters.values())
        return finite if self.shares is None else not self.shares.ranks.any(not finite)

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

    def take_back_failed(self) -> bool:
        """Return to before the step that was passed over, so that a resumed run repeats it; False if there is none."""
        if self.failed is None:
            return False
        at, self.failed = self.failed, None
        self.step, self.tokens, self.ledger, self.loss_scale = at.step, at.tokens, at.ledger_before, at.loss_scale
        self.skipped -= 1
        self.unavoidable -= 1
        return True

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
    ledger_before: Ledger  # without this step
    loss_scale: LossScale


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

    def join(self, later: "Timed") -> "Timed":
        """This and what followed it, as one."""
        seconds, waiting = self.seconds + later.seconds, self.waiting + later.waiting
        return Timed(later.step, seconds, waiting, self.tokens + later.tokens, self.steps + later.steps)
