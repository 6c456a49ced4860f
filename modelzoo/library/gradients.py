"""The gradients of sparse weights, from backward to the masks' update: masked, dense where masks grow by them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.sparsity.group import Group
from modelzoo.sparsity.parameter import PackedParameter, SparseParameter


class _Seen(NamedTuple):
    """A gradient as the hook left it, by which the next one knows whether it was added to or begun anew."""

    grad: Tensor
    version: int


class Gradients:
    """What backward passes made since the last step. Those that were set to none or zero are forgotten."""

    def __init__(self) -> None:
        self._seen: dict[nn.Parameter, _Seen] = {}
        self._added: dict[nn.Parameter, list[bool]] = {}  # by packed weight: passes whose dense gradient is awaited
        self._dense: dict[nn.Parameter, list[Tensor]] = {}  # and the other way round: which hook is first is torch's
        self._sums: dict[nn.Parameter, Tensor] = {}

    def __bool__(self) -> bool:
        """Whether there were any."""
        return bool(self._seen)

    def forget(self) -> None:
        """Begin the next step."""
        for found in (self._seen, self._added, self._dense, self._sums):
            found.clear()

    @torch.no_grad()
    def mask(self, p: SparseParameter, dense: bool) -> None:
        """Mask a gradient that backward has added to; with `dense`, add up the dense one too.

        Raises:
            UserError: it is a sparse tensor.
        """
        grad = p.weight.grad
        if grad is None:
            return
        if grad.is_sparse:
            raise UserError(f"{p.name}: its gradient is a sparse tensor; make its embedding with sparse=False")
        seen, before = self._seen.get(p.weight), p.dense_grad
        adds = seen is not None and seen.grad is grad and grad._version == seen.version + 1
        if isinstance(p, PackedParameter):  # nothing dead is in it, and its dense one is apart
            self._added.setdefault(p.weight, []).append(adds)
            self._sum(p)
        else:
            p.mask_gradient(dense)
            if dense and adds and before is not None and p.dense_grad is not None:
                p.dense_grad = torch.where(p.keep == 0, before + p.dense_grad, p.dense_grad)
        self._seen[p.weight] = _Seen(grad, grad._version)

    def follow_probe(self, p: SparseParameter) -> None:
        """Add up the dense gradients of a packed weight that is watched, pass by pass."""
        if (probe := p.probe()) is None:
            return

        def take(x: Tensor) -> None:
            if x.grad is not None:
                self._dense.setdefault(p.weight, []).append(x.grad)
                x.grad = None
                self._sum(p)

        probe.register_post_accumulate_grad_hook(take)

    @torch.no_grad()
    def _sum(self, p: SparseParameter) -> None:
        added, dense = self._added.get(p.weight), self._dense.get(p.weight)
        if added and dense:
            grad, before = dense.pop(0), self._sums.get(p.weight)
            self._sums[p.weight] = before + grad if added.pop(0) and before is not None else grad

    def take_dense(self, p: PackedParameter, wanted: bool) -> None:
        """Hand a packed weight the dense gradients that have added up apart from it."""
        if (probe := p.probe()) is not None:
            probe.grad = self._sums.pop(p.weight, None)
        p.mask_gradient(wanted)

    @torch.no_grad()
    def check(self, groups: Sequence[Group], step: int) -> None:
        """Before an optimizer's step: mask what no backward pass put there; forget what is none or zero by now."""
        for group in groups:
            dense = group.algorithm.needs_gradient and group.is_update(step)
            for p in group.parameters:
                grad, seen = p.weight.grad, self._seen.get(p.weight)
                if grad is not None and (seen is None or seen.grad is not grad):
                    self.mask(p, dense)
                elif dense and seen is not None and (grad is None or self._was_zeroed(grad, seen)):
                    p.drop_gradient()

    @staticmethod
    def _was_zeroed(grad: Tensor, seen: _Seen) -> bool:
        return grad._version != seen.version and not bool(grad.any())

    @torch.no_grad()
    def keep(self, groups: Sequence[Group], step: int) -> None:
        """After an optimizer's step: keep the gradients with which it was taken, where masks follow them."""
        for group in groups:
            if group.algorithm.needs_live_gradient and group.is_update(step):
                for p in group.parameters:
                    p.step_grad = None if p.weight.grad is None else p.weight.grad.clone()
