"""Adam's bias correction by each weight's own age, around the steps of any Adam of torch's.

Adam divides its moments by 1 - beta^t because they start at zero. A weight regrown at step t0 starts there again: with
the global t its second moment is taken at face value while it is still far too small, and the first update is
6.6 times too large at beta2 = 0.999. So a regrown weight counts its own age: t - t0.

Even so its first update is a whole learning rate, whatever its gradient, as at the start of a run without warm-up. A
warm-up of N steps scales its update by min(age / N, 1) (SMET, arXiv 2606.00888).
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn


def find_horizon(betas: Sequence[float]) -> int:
    """The age from which 1 - beta^age is 1.0 in float32, so that a weight's own age no longer matters."""
    return max(math.ceil(25 * math.log(2) / -math.log(b)) if b else 1 for b in betas)


class OwnAges:
    """Corrects what a step of Adam does to young weights: `begin` before it, `finish` after it.

    A step reads nothing back from the device, but for what others changed since the one before (a loaded checkpoint,
    new masks). The optimizer is torch's Adam or AdamW, without amsgrad; the weights that have ages are contiguous.

    Args:
        warmup: steps over which the updates of regrown weights rise to their full size, by parameter; default: none.
    """

    def __init__(self, warmup: Mapping[nn.Parameter, int] = MappingProxyType({})) -> None:
        self._warmup = warmup
        self._cohorts: dict[nn.Parameter, tuple] = {}
        self._counts: dict[nn.Parameter, tuple[Tensor, int, int]] = {}
        self._young: list[tuple[dict[str, Any], nn.Parameter, Tensor, Tensor, Tensor]] = []

    def begin(self, optimizer: torch.optim.Optimizer, find_born: Callable[[nn.Parameter], Tensor | None]) -> None:
        """Keep the young weights as they are before the step.

        Args:
            find_born: int32 of a weight's shape, the step at which each was regrown, or 0; None for a weight without.
        """
        self._young = [
            (group, p, *found, p.view(-1)[found[0]])
            for group in optimizer.param_groups
            for p in group["params"]
            if (born := find_born(p)) is not None
            and p.grad is not None  # without a gradient torch passes the weight over
            and (found := self.find(optimizer, p, born, group["betas"])) is not None
        ]

    def finish(self, optimizer: torch.optim.Optimizer, decoupled: bool) -> None:
        """Set the young weights to what a step with their own age makes of them. Moments are right for every weight.

        Args:
            decoupled: AdamW's weight decay instead of L2.
        """
        found_inf = getattr(optimizer, "found_inf", None)
        for p, (step, _, count) in self._counts.items():
            if p.grad is not None:
                self._counts[p] = step, step._version, count + 1
        young, self._young = self._young, []
        for group, p, at, born, values in young:
            state, (beta1, beta2), lr = optimizer.state[p], group["betas"], group["lr"]
            age = (state["step"] - born).double()
            m = state["exp_avg"].view(-1)[at].double() / (1 - beta1**age)
            if warmup := self._warmup.get(p):
                m = m * (age / warmup).clamp(max=1.0)
            v = state["exp_avg_sq"].view(-1)[at].double() / (1 - beta2**age)
            old = values * (1 - lr * group["weight_decay"]) if decoupled else values
            new = (old - lr * m / (v.sqrt() + group["eps"])).to(p.dtype)
            p.view(-1)[at] = new if found_inf is None else torch.where(found_inf > 0, values, new)

    def find(
        self, optimizer: torch.optim.Optimizer, p: nn.Parameter, born: Tensor, betas: Sequence[float]
    ) -> tuple[Tensor, Tensor] | None:
        """Flat positions and births of the weights whose age still matters, or None."""
        oldest = self.count(optimizer, p) + 1 - max(find_horizon(betas), self._warmup.get(p, 0))
        cached = self._cohorts.get(p)
        # `_version` counts in-place changes, so the cache follows mask updates and loaded checkpoints.
        if cached is None or cached[0] is not born or cached[1] != born._version:
            at = born.view(-1).nonzero().squeeze(1)
            births = born.view(-1)[at]
            order = births.argsort(stable=True)
            cohorts, sizes = births.unique(return_counts=True)
            ends = [0, *accumulate(sizes.tolist())]
            cached = self._cohorts[p] = born, born._version, at[order], births[order], cohorts.tolist(), ends
        _, _, at, births, cohorts, ends = cached
        if not cohorts or cohorts[-1] <= oldest:
            return None
        first = ends[bisect_right(cohorts, oldest)]
        return at[first:], births[first:]

    def count(self, optimizer: torch.optim.Optimizer, p: nn.Parameter) -> int:
        """How many steps `p` has taken: `state[p]["step"]`, read only where somebody else changed it."""
        step, known = optimizer.state[p]["step"], self._counts.get(p)
        if known is None or known[0] is not step or known[1] != step._version:
            known = self._counts[p] = step, step._version, int(step)
        return known[2]

    def recount(self) -> None:
        """Read the counts anew in the next step: the device passed over some steps (`found_inf`)."""
        self._counts.clear()
