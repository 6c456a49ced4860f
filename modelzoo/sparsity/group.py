"""The parameters that one algorithm acts on: their counts, and their first and next masks."""

import torch
from torch import Tensor, nn

from modelzoo.kernels.blocks import tiling
from modelzoo.sparsity import order
from modelzoo.sparsity.algorithms import SRSTE, Static
from modelzoo.sparsity.parameter import RefinedParameter, SparseParameter, TransposedParameter
from modelzoo.sparsity.select import group_counts


class Group:
    """The parameters that one algorithm acts on."""

    def __init__(self, algorithm: Static, parameters: list[SparseParameter]):
        self.algorithm = algorithm
        self.parameters = parameters
        self.sizes = {p.name: tuple(p.shape) for p in parameters}

    @property
    def changes(self) -> bool:
        """Whether the masks change during training. Those of frozen weights never do."""
        return self.algorithm.changes and any(p.weight.requires_grad for p in self.parameters)

    def is_update(self, step: int) -> bool:
        """Whether the masks change after `step`."""
        return self.changes and self.algorithm.is_update(step)

    def counts(self, step: int) -> dict[str, int]:
        """Live weights of each parameter at `step`."""
        return group_counts(self.algorithm.group, self.sizes, self.algorithm.target(step))

    def first_mask(self, p: SparseParameter, weight: Tensor, k: int) -> Tensor:
        """The mask [out, in] that `p` begins with, from its whole weight, with k live weights; sets its order."""
        p.order = self.algorithm.first_order(weight, p.block, k // p.area)
        return p.spread(self.algorithm.init_mask(p.name, p.scores(weight), k // p.area))

    def fits(self, p: SparseParameter, mask: Tensor, of: Tensor | None = None) -> bool:
        """Whether a mask [out, in] has the group's pattern; `of`: the order of its inputs, where one is on record."""
        if self.algorithm.group.nm:
            n, m = self.algorithm.group.nm
            return bool((mask.view(-1, m).sum(1) == n).all())
        if p.order is None:
            return tiling.has_blocks(mask, p.block)
        if of is not None and not order.is_order(of, p.shape[1]):
            return False
        return tiling.has_blocks(mask, p.block, order.derive_order(mask, p.block) if of is None else of.long())

    def has_gradient(self, p: SparseParameter) -> bool:
        """Whether the step made the gradient of `p` that an update reads; true where it reads none."""
        return not self._reads_gradient or self._find_gradient(p) is not None

    @property
    def _reads_gradient(self) -> bool:
        return self.algorithm.needs_gradient or self.algorithm.needs_live_gradient

    def _find_gradient(self, p: SparseParameter) -> Tensor | None:
        """The gradient [out, in] of `p` that an update may read, where the step made one."""
        return p.live_gradient() if self.algorithm.needs_live_gradient else p.whole_gradient()

    def next_mask(self, p: SparseParameter, step: int, k: int) -> Tensor:
        """The mask [out, in] of `p` after update step `step`, with k live weights; sets its order, if that changes too.

        It stays as it is where the update needs a gradient and the step made none: the weight had no part in it.
        """
        grad = self._find_gradient(p)
        if grad is None and self._reads_gradient:
            return p.mask
        weight, mask, k = p.whole(p.weight.detach()), p.mask, k // p.area
        if p.order is not None and self.algorithm.group.permute_inputs == "updates":
            p.order = self.algorithm.next_order(weight, mask, p.order, p.block, k)
        grad = None if grad is None else p.scores(grad)
        return p.spread(self.algorithm.update_mask(p.name, p.scores(weight), p.gathered(mask), grad, step, k))


def hold_weight(
    algorithm: Static, name: str, weight: nn.Parameter, block: tuple[int, int], transposed: bool
) -> SparseParameter:
    """A weight as `algorithm` needs it, whole. `transposed`: its module stores it as [in, out]."""
    if isinstance(algorithm, SRSTE):
        return RefinedParameter(name, weight, algorithm.decay)
    p = (TransposedParameter if transposed else SparseParameter)(name, weight, block)
    if algorithm.group.permute_inputs is not None:
        p.order = torch.arange(p.shape[1], device=weight.device)
    return p
