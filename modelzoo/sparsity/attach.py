"""Sparsity of a model in training: weights, gradients and optimizer state are masked exactly at every step.

Per optimizer step, in this order:
    sparsity.mask_gradients(step)           after the last micro-batch's backward, before clipping
    sparsity.wake()                         where dead weights train too
    optimizer.step()
    sparsity.update(step, optimizer.state)  masks change here, on update steps
"""

from collections.abc import Callable, Collection, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.names import name_mask
from modelzoo.sparsity import compat
from modelzoo.sparsity.algorithms import ALGORITHMS
from modelzoo.sparsity.explored import Explored
from modelzoo.sparsity.group import Group, hold_weight
from modelzoo.sparsity.order import derive_order
from modelzoo.sparsity.parameter import PackedParameter, RefinedParameter, SparseParameter
from modelzoo.sparsity.select import ShapeLike, block_of, check_sides, select_parameters
from modelzoo.sparsity.storage import store_group

State = Mapping[Any, MutableMapping[str, Any]]  # an optimizer's, by parameter; torch's own type has tensors for keys


class Sparsity:
    """All sparse parameters of a model. With no groups it is the dense path: every method does nothing."""

    def __init__(self, groups: list[Group]):
        self.groups = groups
        self.notes: list[str] = []  # lines about how weights are stored
        self.explored = Explored()  # which weights were ever live, where masks change
        self._index()

    def _index(self) -> None:
        self._by_weight = {p.weight: p for p in self.parameters}

    @classmethod
    def attach(
        cls,
        model: nn.Module,
        shapes: Mapping[str, ShapeLike],
        configs: tuple[SparsityGroup, ...],
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        transposed: Collection[str] = (),
    ) -> "Sparsity":
        """Choose the sparse parameters, draw their first masks, zero what they mask, pack what is faster packed.

        Packing replaces linears of the model, and their weights; names stay.

        Args:
            model: the model, on its device, with float32 weights.
            shapes: its parameters by name (`models.shapes.list_parameters`).
            configs: the `sparsity` section.
            seed: for groups without a seed of their own.
            dtype: of activations.
            device: where the model will be; default: where it is.
            transposed: names of weights that are stored as [in, out].

        Raises:
            UserError: a filter matches nothing, or blocks or balanced groups do not divide a weight.
        """
        weights = dict(model.named_parameters())
        groups = []
        for config, names in zip(configs, select_parameters(shapes, configs), strict=True):
            rules = compat.ALGORITHMS if config.compat else ALGORITHMS
            algorithm = rules[config.algorithm](config, seed)
            sizes = {n: tuple(weights[n].shape)[:: -1 if n in transposed else 1] for n in names}
            check_sides(config, sizes)
            parameters = [
                hold_weight(algorithm, n, weights[n], block_of(config, sizes[n]), n in transposed) for n in names
            ]
            groups.append(Group(algorithm, parameters))
        sparsity = cls(groups)
        sparsity.draw()
        for group in groups:
            group.parameters, notes = store_group(model, group.algorithm.group, group.parameters, dtype, device)
            sparsity.notes += notes
        sparsity._index()
        return sparsity

    def replace(self, make: Callable[[SparseParameter], SparseParameter]) -> None:
        """Hold each sparse parameter in another form."""
        for group in self.groups:
            group.parameters = [make(p) for p in group.parameters]
        self._index()

    @torch.no_grad()
    def draw(self, weights: Mapping[str, Tensor] = MappingProxyType({}), state: State = MappingProxyType({})) -> None:
        """First masks from the weights as they are, and zero what they mask.

        Args:
            weights: whole weights by name to take over first; others stay.
            state: the optimizer's, which follows.

        Raises:
            UserError: a parameter is left without a live weight.
        """
        for group in self.groups:
            counts = group.counts(0)
            for p in group.parameters:
                weight = weights[p.name].to(p.weight.device) if p.name in weights else p.whole(p.weight.detach())
                mask = group.first_mask(p, weight, counts[p.name])
                if not mask.any():
                    raise UserError(f"trainer.init.sparsity: no live weight is left in {p.name} {tuple(p.shape)}")
                p.move(mask, state.get(p.weight, {}), weight)
                if group.changes:
                    self.explored.begin(p, mask)

    def whole(self, weight: nn.Parameter, x: Tensor) -> Tensor:
        """`x`, a parameter of the model or something of its form (moments), as checkpoints hold it: never packed."""
        p = self._by_weight.get(weight)
        return x if p is None or x.shape != weight.shape else p.whole(x)

    def stored(self, weight: nn.Parameter, x: Tensor) -> Tensor:
        """The inverse of `whole`."""
        p = self._by_weight.get(weight)
        return x if p is None or x.shape != p.shape else p.stored(x)

    def shape(self, weight: nn.Parameter) -> torch.Size:
        """The shape of a parameter of the model as checkpoints hold it."""
        return self._by_weight[weight].shape if weight in self._by_weight else weight.shape

    @property
    def parameters(self) -> list[SparseParameter]:
        """The sparse parameters of all groups, in order."""
        return [p for group in self.groups for p in group.parameters]

    @property
    def changes(self) -> bool:
        """Whether any mask changes during training."""
        return any(group.changes for group in self.groups)

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Zero what the masks mask."""
        for p in self.parameters:
            p.mask_weight()

    @torch.no_grad()
    def mask_state(self, state: State) -> None:
        """Zero what the masks mask in optimizer state (after loading it)."""
        for p in self.parameters:
            p.mask_state(state.get(p.weight, {}))

    def watch(self, step: int) -> None:
        """Before the forward passes of a step: on RigL's update steps, packed weights collect dense gradients too."""
        for group in self.groups:
            if group.algorithm.needs_gradient and group.is_update(step):
                for p in group.parameters:
                    p.watch()

    @torch.no_grad()
    def mask_gradients(self, step: int) -> dict[nn.Parameter, float]:
        """Zero the gradients of dead weights; before a RigL update keep the dense ones too.

        Zeroed by selection, never by multiplication: a NaN under the mask must not count (NaN * 0 is NaN).

        Returns:
            The sums of squares that were made on the way, by weight: the gradient's norm need not read these again.
            Only the CPU's compiled pass makes them, on the host; other devices make none, and nothing is read there.
        """
        squares = {}
        for group in self.groups:
            keep = group.algorithm.needs_gradient and group.is_update(step)
            for p in group.parameters:
                if (square := p.mask_gradient(keep)) is not None:
                    squares[p.weight] = square
        return squares

    def _refined(self) -> list[RefinedParameter]:
        found = [p for g in self.groups if g.changes for p in g.parameters]
        return [p for p in found if isinstance(p, RefinedParameter)]

    def keep_dormant(self, state: State) -> None:
        """Let checkpoints of the optimizer's `state` hold the dead weights that train."""
        for p in self._refined():
            state[p.weight]["dormant"] = p.dormant

    @torch.no_grad()
    def wake(self) -> None:
        """Put dead weights that train where the optimizer steps; `update` takes them away again."""
        for p in self._refined():
            p.wake()

    @torch.no_grad()
    def update(self, step: int, state: State) -> int:
        """Change masks if `step` (optimizer steps taken, this one included) is an update step.

        A weight that loses its place is zeroed, and so is its optimizer state; one that gains a place starts at zero
        with fresh moments, and the optimizer's step is recorded as its birth (`state[weight]["born"]`, where there is
        one), so that bias correction restarts.

        Returns:
            How many live weights gave up their place.
        """
        lost = []
        for group in self.groups:
            if not group.is_update(step):
                continue
            counts = group.counts(step)
            for p in group.parameters:
                old, new = p.mask, group.next_mask(p, step, counts[p.name])
                p.drop_gradient()
                lost.append((old & ~new).sum())
                entries = state.get(p.weight, {})
                p.move(new, entries)
                self.explored.add(p, new)
                if (born := entries.get("born")) is not None:
                    born.copy_(torch.where(p.stored(new & ~old), entries["step"].to(born.dtype), born))
        return int(torch.stack(lost).sum()) if lost else 0

    def list_warmups(self) -> dict[nn.Parameter, int]:
        """Own steps over which updates of regrown weights rise to full size, by weight, where there is a warm-up."""
        return {p.weight: n for g in self.groups if (n := g.algorithm.warmup) for p in g.parameters}

    def is_update(self, step: int) -> bool:
        """Whether `update` changes any mask after `step`."""
        return any(group.is_update(step) for group in self.groups)

    def lays_out(self, step: int) -> bool:
        """Whether `update` lays packed weights out anew after `step`; before it their dense gradients may be wanted."""
        changing = (group for group in self.groups if group.is_update(step))
        return any(isinstance(p, PackedParameter) for group in changing for p in group.parameters)

    @property
    def moves(self) -> int:
        """How often packed weights were laid out anew: their addresses and sizes are others then."""
        return sum(p.moves for p in self.parameters if isinstance(p, PackedParameter))

    def probes(self) -> list[Tensor]:
        """Tensors [out, in] whose gradients are packed weights' dense ones: on RigL's update steps, after `watch`."""
        return [probe for p in self.parameters if (probe := p.probe()) is not None]

    def live_places(self, step: int) -> dict[Tensor, Tensor]:
        """Flat positions of live weights, by weight, where a step needs no gradient of the dead ones; none packed."""
        found = {}
        for group in self.groups:
            if not (group.algorithm.needs_gradient and group.is_update(step)):
                trained = [p for p in group.parameters if p.weight.requires_grad]
                found |= {p.weight: at for p in trained if (at := p.live_places()) is not None}
        return found

    def drop_gradients(self) -> None:
        """Forget kept gradients (a skipped step)."""
        for p in self.parameters:
            p.drop_gradient()

    def orders(self) -> dict[str, Tensor]:
        """The orders of inputs in which blocks are formed, int32, by parameter name; of those that have one."""
        return {p.name: p.order.int() for p in self.parameters if p.order is not None}

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, by `<parameter>_mask` (Model Zoo's name)."""
        return {name_mask(p.name): p.mask for p in self.parameters}

    @torch.no_grad()
    def load_state_dict(
        self,
        found: Mapping[str, Tensor],
        weights: Mapping[str, Tensor] = MappingProxyType({}),
        state: State = MappingProxyType({}),
        explored: Mapping[str, Tensor] = MappingProxyType({}),
        orders: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Take masks over and zero what they mask. The caller has checked names and shapes.

        Args:
            weights, state: as in `draw`.
            explored: which weights were ever live (`explored.bits`), of a run that goes on.
            orders: as of `orders`; a mask without one is of blocks in an order that it tells itself.
        """
        for group in self.groups:
            for p in group.parameters:
                p.drop_gradient()
                mask = found[name_mask(p.name)].to(p.weight.device, torch.bool)
                if p.order is not None:
                    own = orders.get(p.name)
                    own = derive_order(mask, p.block) if own is None else own
                    p.order = own.to(p.weight.device, torch.int64)
                p.move(mask, state.get(p.weight, {}), weights.get(p.name))
                if group.changes:
                    self.explored.begin(p, mask, explored.get(p.name))

    def target(self, step: int) -> float:
        """Share of the sparse parameters' weights that the schedules want off at `step`."""
        total = sum(p.shape.numel() for p in self.parameters)
        off = sum(g.algorithm.target(step) * sum(p.shape.numel() for p in g.parameters) for g in self.groups)
        return off / total if total else 0.0

    def actual(self) -> float:
        """Share of the sparse parameters' weights that is off."""
        total = sum(p.shape.numel() for p in self.parameters)
        return 1 - sum(p.live for p in self.parameters) / total if total else 0.0
