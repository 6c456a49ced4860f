"""Adam and AdamW on torch's fused kernel, with bias correction by each weight's own age where weights are regrown.

Adam divides its moments by 1 - beta^t because they start at zero. A weight regrown at step t0 starts there again: with
the global t its second moment is taken at face value while it is still far too small, and the first update is
6.6 times too large at beta2 = 0.999. So a regrown weight counts its own age: t - t0.
"""

import inspect
import math
from bisect import bisect_right
from itertools import accumulate

import torch
from torch import Tensor, nn

# 1 - beta^t is exactly 1.0 in float64 from here for any beta below 1 - 1e-5; a float32 counter stays there (2^24 + 1
# rounds to 2^24). Starting the step count at this value is Adam without bias correction.
FOREVER = float(1 << 24)
NATIVE = "decoupled_weight_decay" in inspect.signature(torch.optim.Adam.__init__).parameters  # torch 2.7 and later


class AgedAdam(torch.optim.Adam):
    """torch's fused Adam(W); state tensors exist from the start, so a checkpoint always has the same entries.

    A step reads nothing back from the device, but for what others changed since the one before (a loaded checkpoint,
    new masks). `found_inf` (float32, 0 or 1), where it is set, passes over a step on the device, as torch's does.

    Args:
        params: parameter groups with `weight_decay`; `lr` is set before each step.
        betas, eps: as in Adam (arXiv 1412.6980).
        decoupled: AdamW's weight decay (arXiv 1711.05101) instead of L2.
        correct_bias: divide the moments by 1 - beta^t.
        aged: parameters whose state has `born`: int32 of their shape, the step at which each weight was regrown, or 0.
        raw_eps: add eps to the root of the second moment before its bias correction, as cerebras.pytorch does.
    """

    def __init__(
        self, params, betas, eps, decoupled: bool, correct_bias: bool, aged: list[nn.Parameter], raw_eps: bool = False
    ):
        super().__init__(
            params,
            lr=0.0,
            betas=betas,
            eps=eps,
            fused=True,
            **({"decoupled_weight_decay": decoupled} if NATIVE else {}),
        )
        self.decoupled, self.raw_eps = decoupled, eps if raw_eps and correct_bias else None
        old = {id(p) for p in aged} if correct_bias else set()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {
                    "step": torch.tensor(0.0 if correct_bias else FOREVER, device=p.device),
                    "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
                }
                if id(p) in old:
                    self.state[p]["born"] = torch.zeros_like(p, dtype=torch.int32)
        self._cohorts: dict[nn.Parameter, tuple] = {}
        self._counts: dict[nn.Parameter, tuple[Tensor, int, int]] = {}
        self.found_inf: Tensor | None = None
        # From this age on 1 - beta^age is 1.0 in float32, so a weight's own age no longer matters.
        self.horizon = max(math.ceil(25 * math.log(2) / -math.log(b)) if b else 1 for b in betas)

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every parameter with a gradient; young weights are corrected by their own age."""
        if self.raw_eps is not None:  # sqrt(v) + eps, corrected: sqrt(v / c) + eps / sqrt(c) with c = 1 - beta2^t
            for group in self.param_groups:
                count = self._count(group["params"][0]) + 1
                group["eps"] = self.raw_eps / math.sqrt(1 - group["betas"][1] ** count)
        if self.decoupled and not NATIVE:
            return self._step_decayed(closure)
        young = [
            (group, p, *found) for group in self.param_groups for p in group["params"] if (found := self._young(p))
        ]
        before = [p.view(-1)[at] for _, p, at, _ in young]
        super().step(closure)  # moments are right for every weight; only the young ones' correction is not
        for p, (step, _, count) in self._counts.items():
            if p.grad is not None:
                self._counts[p] = step, step._version, count + 1
        for (group, p, at, born), values in zip(young, before, strict=True):
            state, (beta1, beta2), lr = self.state[p], group["betas"], group["lr"]
            age = (state["step"] - born).double()
            m = state["exp_avg"].view(-1)[at].double() / (1 - beta1**age)
            v = state["exp_avg_sq"].view(-1)[at].double() / (1 - beta2**age)
            old = values * (1 - lr * group["weight_decay"]) if self.decoupled else values
            new = (old - lr * m / (v.sqrt() + group["eps"])).to(p.dtype)
            p.view(-1)[at] = new if self.found_inf is None else torch.where(self.found_inf > 0, values, new)

    def _step_decayed(self, closure):
        """Decoupled decay by hand around L2-free steps, for torch before 2.7."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            moving = [p for p in group["params"] if p.grad is not None]
            factor = 1 - group["lr"] * decay
            if self.found_inf is not None:
                factor = torch.where(self.found_inf > 0, 1.0, factor)
            for p in moving if decay else ():
                p.mul_(factor)
            group["weight_decay"] = 0.0
        self.decoupled = False
        try:
            return self.step(closure)
        finally:
            self.decoupled = True
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    def _young(self, p: nn.Parameter) -> tuple[Tensor, Tensor] | None:
        """Flat positions and births of the weights younger than the horizon, or None."""
        born = self.state[p].get("born")
        if born is None or p.grad is None:  # without a gradient torch passes the weight over
            return None
        oldest = self._count(p) + 1 - self.horizon
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

    def _count(self, p: nn.Parameter) -> int:
        """How many steps `p` has taken: `state[p]["step"]`, read only where somebody else changed it."""
        step, known = self.state[p]["step"], self._counts.get(p)
        if known is None or known[0] is not step or known[1] != step._version:
            known = self._counts[p] = step, step._version, int(step)
        return known[2]

    def recount(self) -> None:
        """Read the counts anew in the next step: the device passed over some steps (`found_inf`)."""
        self._counts.clear()
