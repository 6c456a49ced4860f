"""When each weight was regrown, for the optimizers whose bias correction is known: torch's own Adam and AdamW."""

import inspect
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.optim.ages import OwnAges
from modelzoo.sparsity.group import Group
from modelzoo.sparsity.parameter import SparseParameter


def corrects_bias(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it steps as torch's Adam or AdamW do; another optimizer is left as it is."""
    step = inspect.unwrap(type(optimizer).step)
    known = {inspect.unwrap(kind.step) for kind in (torch.optim.Adam, torch.optim.AdamW)}
    return step in known and not any(g.get("amsgrad") or g.get("differentiable") for g in optimizer.param_groups)


class RegrownWeights:
    """The births of regrown weights, and Adam's bias correction by their own age (`optim.ages`), as in a run.

    Raises:
        UserError: a group asks for a warm-up of regrown weights, and the optimizer is another.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, groups: Iterable[Group]):
        groups, known = list(groups), corrects_bias(optimizer)
        warmup = {p.weight: n for g in groups if (n := g.algorithm.warmup) for p in g.parameters}
        if warmup and not known:
            raise UserError(
                f"sparsity.regrow_warmup: {type(optimizer).__name__} is not torch's Adam or AdamW, whose moments it "
                "scales; leave it out"
            )
        self._optimizer, self._ages = optimizer, OwnAges(warmup)
        self._parameters = [p for g in groups if known and g.algorithm.ages for p in g.parameters]
        self._parameters = [p for p in self._parameters if p.weight.requires_grad and p.weight.is_contiguous()]
        self._born = {p.weight: torch.zeros_like(p.weight, dtype=torch.int32) for p in self._parameters}
        self._before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def before_step(self) -> None:
        """Keep young weights as they are."""
        self._ages.begin(self._optimizer, lambda p: self._born.get(p) if self._optimizer.state.get(p) else None)

    @torch.no_grad()
    def after_step(self, taken: bool) -> None:
        """Correct what the step did to young weights.

        Args:
            taken: false where the optimizer itself passed over the step.
        """
        decoupled = isinstance(self._optimizer, torch.optim.AdamW)
        self._ages.finish(self._optimizer, decoupled or self._optimizer.defaults.get("decoupled_weight_decay", False))
        if not taken:
            self._ages.recount()

    def before_update(self) -> None:
        """Keep the masks as they are."""
        self._before = [(p.mask, p.whole(self._born[p.weight])) for p in self._parameters]

    def after_update(self) -> None:
        """Note which weights were regrown."""
        for p, (mask, born) in zip(self._parameters, self._before, strict=True):
            if p.weight in self._optimizer.state:
                now = self._optimizer.state[p.weight]["step"].to(born)
                self._set(p, torch.where(mask, born, now))
        self._before = []

    def _set(self, p: SparseParameter, born: Tensor) -> None:
        self._born[p.weight] = p.stored(torch.where(p.mask, born, 0)).contiguous()

    def state_dict(self) -> dict[str, Tensor]:
        """Births by parameter name, int32 of its shape; 0 where a weight is as old as its training."""
        return {p.name: p.turned(p.whole(self._born[p.weight])).clone() for p in self._parameters}

    def check(self, found: Mapping[str, Tensor]) -> None:
        """Refuse a state without the births of these weights.

        Raises:
            UserError: names the first that is missing.
        """
        for p in self._parameters:
            born = found.get(p.name)
            if not isinstance(born, Tensor) or p.turned(born).shape != p.shape:
                raise UserError(f"{p.name}: the loaded state does not hold when its weights were regrown")

    def load_state_dict(self, found: Mapping[str, Tensor]) -> None:
        """Take births over that `check` lets pass, under the masks as they are now."""
        for p in self._parameters:
            self._set(p, p.turned(found[p.name]).to(p.weight.device, torch.int32))
        self._ages.recount()


def replace_weight(optimizer: torch.optim.Optimizer, old: nn.Parameter, p: SparseParameter) -> None:
    """Let the optimizer hold a packed weight in place of the whole one, its state too."""
    for group in optimizer.param_groups:
        group["params"] = [p.weight if q is old else q for q in group["params"]]
    if old in optimizer.state:
        kept = optimizer.state.pop(old)
        fits = lambda x: isinstance(x, Tensor) and x.shape == old.shape
        optimizer.state[p.weight] = {key: p.stored(x) if fits(x) else x for key, x in kept.items()}
