"""Sparsity of a model in training: masks held on weights, gradients and optimizer state, exactly, at every step.

Per optimizer step, in this order:
    sparsity.mask_gradients(step)           after the last micro-batch's backward, before clipping
    optimizer.step()
    sparsity.update(step, optimizer.state)  masks change here, on update steps
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.config.sparsity import SparsityGroup
from modelzoo.sparsity import compat, masks
from modelzoo.sparsity.algorithms import ALGORITHMS, Static
from modelzoo.sparsity.select import ShapeLike, group_counts, select


@dataclass
class SparseParameter:
    """A weight and its mask. `keep` is the mask as bits, kept because every step needs it."""

    name: str
    weight: nn.Parameter
    mask: Tensor
    keep: Tensor
    live: int
    dense_grad: Tensor | None = None

    def set_mask(self, mask: Tensor) -> None:
        self.mask, self.keep, self.live = mask, masks.bits(mask), int(mask.sum())


class Group:
    """The parameters that one algorithm acts on."""

    def __init__(self, algorithm: Static, parameters: list[SparseParameter]):
        self.algorithm = algorithm
        self.parameters = parameters
        self.sizes = {p.name: tuple(p.weight.shape) for p in parameters}

    def counts(self, step: int) -> dict[str, int]:
        """Live weights of each parameter at `step`."""
        return group_counts(self.algorithm.group, self.sizes, self.algorithm.target(step))


class Sparsity:
    """All sparse parameters of a model. With no groups it is the dense path: every method does nothing."""

    def __init__(self, groups: list[Group]):
        self.groups = groups

    @classmethod
    def attach(
        cls, model: nn.Module, shapes: Mapping[str, ShapeLike], configs: tuple[SparsityGroup, ...], seed: int
    ) -> "Sparsity":
        """Choose the sparse parameters, draw their first masks and zero what they mask.

        Args:
            model: the model, on its device, with float32 weights.
            shapes: its parameters by name (`models.shapes.parameters`).
            configs: the `sparsity` section.
            seed: for groups without a seed of their own.

        Raises:
            UserError: a filter matches nothing, or balanced groups do not divide a weight.
        """
        weights = dict(model.named_parameters())
        groups = []
        for config, names in zip(configs, select(shapes, configs), strict=True):
            rules = compat.ALGORITHMS if config.compat else ALGORITHMS
            algorithm = rules[config.algorithm](config, seed)
            parameters = []
            for name in names:
                _check_balance(name, weights[name], config)
                full = torch.ones_like(weights[name], dtype=torch.bool)
                parameters.append(SparseParameter(name, weights[name], full, masks.bits(full), full.numel()))
            groups.append(Group(algorithm, parameters))
        sparsity = cls(groups)
        sparsity.draw()
        return sparsity

    def draw(self) -> None:
        """First masks from the weights as they are, and zero what they mask.

        Raises:
            UserError: a parameter is left without a live weight.
        """
        for group in self.groups:
            counts = group.counts(0)
            for p in group.parameters:
                p.set_mask(group.algorithm.init_mask(p.name, p.weight.detach(), counts[p.name]))
                if p.live == 0:
                    raise UserError(
                        f"trainer.init.sparsity: no live weight is left in {p.name} {tuple(p.weight.shape)}"
                    )
        self.mask_weights()

    @property
    def parameters(self) -> list[SparseParameter]:
        return [p for group in self.groups for p in group.parameters]

    @property
    def changes(self) -> bool:
        """Whether any mask changes during training."""
        return any(group.algorithm.changes for group in self.groups)

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Zero what the masks mask."""
        for p in self.parameters:
            masks.zero_dead(p.weight, p.keep)

    @torch.no_grad()
    def mask_state(self, state: Mapping[nn.Parameter, dict[str, Tensor]]) -> None:
        """Zero what the masks mask in optimizer state (after loading it)."""
        for p in self.parameters:
            self._mask_entries(p, state.get(p.weight, {}))

    @torch.no_grad()
    def mask_gradients(self, step: int) -> None:
        """Zero the gradients of dead weights; before a RigL update keep the dense ones too.

        Zeroed by selection, never by multiplication: a NaN under the mask must not count (NaN * 0 is NaN).
        """
        for group in self.groups:
            keep = group.algorithm.needs_gradient and group.algorithm.is_update(step)
            for p in group.parameters:
                if p.weight.grad is None:
                    continue
                p.dense_grad = p.weight.grad.clone() if keep else None
                masks.zero_dead(p.weight.grad, p.keep)

    @torch.no_grad()
    def update(self, step: int, state: Mapping[nn.Parameter, dict[str, Tensor]]) -> int:
        """Change masks if `step` (optimizer steps taken, this one included) is an update step.

        A weight that loses its place is zeroed, and so is its optimizer state; one that gains a place starts at zero
        with fresh moments, born now (`state[weight]["born"]`, where the optimizer keeps ages).

        Returns:
            How many live weights gave up their place.
        """
        churn = 0
        for group in self.groups:
            if not group.algorithm.is_update(step):
                continue
            counts = group.counts(step)
            for p in group.parameters:
                new = group.algorithm.update_mask(p.name, p.weight.detach(), p.mask, p.dense_grad, step, counts[p.name])
                p.dense_grad = None
                dropped, grown = p.mask & ~new, new & ~p.mask
                churn += int(dropped.sum())
                p.set_mask(new)
                self._settle(p, grown, state.get(p.weight, {}))
        return churn

    def _settle(self, p: SparseParameter, grown: Tensor, state: dict[str, Tensor]) -> None:
        masks.zero_dead(p.weight, p.keep)
        if p.weight.grad is not None:
            masks.zero_dead(p.weight.grad, p.keep)
        self._mask_entries(p, state)
        if "born" in state:
            state["born"].masked_fill_(grown, int(state["step"]))

    def _mask_entries(self, p: SparseParameter, state: dict[str, Tensor]) -> None:
        for tensor in state.values():
            if isinstance(tensor, Tensor) and tensor.shape == p.weight.shape:
                tensor.masked_fill_(~p.mask, 0)

    def drop_gradients(self) -> None:
        """Forget kept gradients (a skipped step)."""
        for p in self.parameters:
            p.dense_grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, by `<parameter>_mask` (Model Zoo's name)."""
        return {f"{p.name}_mask": p.mask for p in self.parameters}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take masks over and zero what they mask. The caller has checked names and shapes."""
        for p in self.parameters:
            p.set_mask(state[f"{p.name}_mask"].to(p.weight.device, torch.bool))
            p.dense_grad = None
        self.mask_weights()

    def target(self, step: int) -> float:
        """Share of the sparse parameters' weights that the schedules want off at `step`."""
        total = sum(p.weight.numel() for p in self.parameters)
        off = sum(g.algorithm.target(step) * sum(p.weight.numel() for p in g.parameters) for g in self.groups)
        return off / total if total else 0.0

    def actual(self) -> float:
        """Share of the sparse parameters' weights that is off."""
        total = sum(p.weight.numel() for p in self.parameters)
        return 1 - sum(p.live for p in self.parameters) / total if total else 0.0


def _check_balance(name: str, weight: Tensor, config: SparsityGroup) -> None:
    for key, dim in (("balance_out_groups", 0), ("balance_in_groups", 1)):
        groups = getattr(config, key)
        if groups and (weight.dim() != 2 or weight.shape[dim] % groups):
            raise UserError(
                f"trainer.init.sparsity.{key}: {groups} does not divide {name} {tuple(weight.shape)}; "
                "use a divisor of that side, or a param_filter that leaves this weight out"
            )
