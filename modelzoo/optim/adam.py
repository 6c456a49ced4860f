"""Adam and AdamW on torch's fused kernel, with bias correction by each weight's own age where weights are regrown."""

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from modelzoo.optim.ages import OwnAges, find_horizon

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
        warmup: steps over which the updates of regrown weights rise to their full size, by parameter; default: none.
        raw_eps: add eps to the root of the second moment before its bias correction, as cerebras.pytorch does.
    """

    def __init__(
        self,
        params,
        betas,
        eps,
        decoupled: bool,
        correct_bias: bool,
        aged: list[nn.Parameter],
        warmup: Mapping[nn.Parameter, int] = MappingProxyType({}),
        raw_eps: bool = False,
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
        self.ages = OwnAges(warmup)
        self.found_inf: Tensor | None = None
        self.horizon = find_horizon(betas)

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every parameter with a gradient; young weights are corrected by their own age."""
        if self.raw_eps is not None:  # sqrt(v) + eps, corrected: sqrt(v / c) + eps / sqrt(c) with c = 1 - beta2^t
            for group in self.param_groups:
                count = self.ages.count(self, group["params"][0]) + 1
                group["eps"] = self.raw_eps / math.sqrt(1 - group["betas"][1] ** count)
        if self.decoupled and not NATIVE:
            return self._step_decayed(closure)
        self.ages.begin(self, lambda p: self.state[p].get("born"))
        super().step(closure)
        self.ages.finish(self, self.decoupled)

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

    def recount(self) -> None:
        """Read the counts anew in the next step: the device passed over some steps (`found_inf`)."""
        self.ages.recount()
