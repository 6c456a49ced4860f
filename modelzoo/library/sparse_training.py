"""The masks of any torch module in training: they follow its gradients, its optimizer's steps and its state.

Gradients are masked as backward makes them, so that clipping measures live weights alone; weights and optimizer state
after each optimizer step. `step` counts the steps that the optimizer really took, and changes masks when it is time.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.library.gradients import Gradients
from modelzoo.library.owned import MARK, check_alone, check_counts, check_owned, check_state, check_types
from modelzoo.library.regrown import RegrownWeights, replace_weight
from modelzoo.library.saved_state import read_saved_state
from modelzoo.names import name_mask
from modelzoo.sparsity.attach import Sparsity
from modelzoo.sparsity.group import Group
from modelzoo.sparsity.layers import Layer, describe_layers, format_layers
from modelzoo.sparsity.modules import list_weights, unwrap
from modelzoo.sparsity.parameter import PackedParameter, SparseParameter


@contextlib.contextmanager
def naming_keys() -> Iterator[None]:
    """Name keys as a caller's config has them, which is what a run has under `trainer.init.sparsity`."""
    try:
        yield
    except UserError as e:
        lines = str(e).replace("trainer.init.sparsity", "sparsity").split("\n")
        e.args = ("\n".join(line.removeprefix("config: ") for line in lines),)
        raise


class SparseTraining:
    """The masks of a module in training. Made by `sparsify` or `configure`.

    Attributes:
        steps: optimizer steps taken: what schedules count. Skipped ones are none.
        notes: lines about how weights are stored.
    """

    def __init__(self, groups: tuple[SparsityGroup, ...], seed: int):
        self._groups, self._seed = groups, seed
        self._sparsity = Sparsity([])
        self._module = nn.Module()
        self._roots: list[nn.Module] = []  # that `apply` was called with, before there is an optimizer
        self._optimizer: torch.optim.Optimizer | None = None
        self._hooks: list[Any] = []
        self._gradients = Gradients()
        self._automatic = False
        self._taken = self._early = False  # whether a step waits for `step`; whether `step` came between the two
        self.steps = 0

    # --- beginning

    def apply(self, target: nn.Module | torch.optim.Optimizer) -> None:
        """Take a module, then its optimizer, as cerebras.pytorch has it.

        Raises:
            UserError: as of `sparsify`; there is no module yet, or more than one.
        """
        if isinstance(target, nn.Module):  # Module.apply calls with each part, the whole last
            inner = set(target.modules())
            self._roots = [*(r for r in self._roots if r not in inner), target]
            return
        if len(self._roots) != 1:
            raise UserError(f"sparsity: has {len(self._roots) or 'no'} module; call model.apply(sparsity) once, first")
        self.attach(self._roots[0], target)
        self._roots.clear()
        self._automatic = True

    __call__ = apply

    def attach(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> "SparseTraining":
        """Draw the first masks and follow `optimizer`; see `sparsify`."""
        if self._optimizer is not None:
            raise UserError("sparsity: has a module and an optimizer already; make another by sparsify or configure")
        check_types(module, optimizer)
        inner = unwrap(module)
        table = list_weights(inner)
        named = dict(inner.named_parameters())
        if inner is not module and any(g.storage == "packed" for g in self._groups):
            raise UserError(
                f"sparsity.storage: packed replaces modules; sparsify first, then wrap ({type(module).__name__})"
            )
        check_alone(self._groups)
        with naming_keys():
            check_owned(table, named, self._groups, optimizer)
            check_counts(table, self._groups)
            dtype = next((p.dtype for p in named.values() if p.is_floating_point()), torch.float32)
            turned = {n for n, w in table.items() if w.transposed}
            self._sparsity = Sparsity.attach(inner, table, self._groups, self._seed, dtype, transposed=turned)
        self._module, self._optimizer = inner, optimizer
        for group in self._sparsity.groups:
            for p in group.parameters:
                self._follow(group, p, named[p.name])
        self._regrown = RegrownWeights(optimizer, self._sparsity.groups)
        self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
        self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        self._sparsity.mask_state(optimizer.state)
        self._watch()
        return self

    def _follow(self, group: Group, p: SparseParameter, whole: nn.Parameter) -> None:
        """Let the optimizer hold the weight in the form that it has now, and mask its gradients."""
        if p.weight is not whole:
            replace_weight(self._require(), whole, p)
        setattr(p.weight, MARK, True)
        if p.weight.requires_grad:
            mask = lambda _: self._mask_gradient(group, p)
            self._hooks.append(p.weight.register_post_accumulate_grad_hook(mask))

    # --- a step

    def _mask_gradient(self, group: Group, p: SparseParameter) -> None:
        self._early = False
        self._gradients.mask(p, group.algorithm.needs_gradient and group.is_update(self.steps + 1))

    def _watch(self) -> None:
        """Before the passes of the next step."""
        self._gradients.forget()
        self._sparsity.watch(self.steps + 1)
        for p in self._sparsity.parameters:
            self._gradients.follow_probe(p)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if self._taken:
            raise UserError("sparsity.step(): was not called after the optimizer's last step; call it after each")
        if self._early:
            raise UserError("sparsity.step(): was called before optimizer.step(); call it after")
        self._gradients.check(self._sparsity.groups, self.steps + 1)
        self._regrown.before_step()

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        found = getattr(optimizer, "found_inf", None)  # of a GradScaler, where the optimizer itself passes over a step
        self._taken = not (isinstance(found, Tensor) and bool(found > 0))
        self._regrown.after_step(self._taken)
        self._sparsity.mask_weights()
        for p in self._sparsity.parameters:
            check_state(p.name, p.weight, optimizer.state.get(p.weight, {}))
        self._sparsity.mask_state(optimizer.state)
        if self._taken:
            self._gradients.keep(self._sparsity.groups, self.steps + 1)
        if self._automatic:
            self.step()

    @torch.no_grad()
    def step(self) -> int:
        """Count the optimizer step just taken, and change masks if it is time; nothing, where it was skipped.

        Returns:
            How many live weights gave up their place.

        Raises:
            UserError: a schedule leaves its range.
        """
        optimizer, taken = self._require(), self._taken
        self._early, self._taken = not taken and bool(self._gradients), False
        moved = 0
        if taken:
            self.steps += 1
            if self._sparsity.is_update(self.steps):
                check_alone(self._groups)
                self._check_levels()
                self._take_dense()
                self._report_missing()
                self._regrown.before_update()
                moved = self._sparsity.update(self.steps, optimizer.state)
                self._regrown.after_update()
        self._sparsity.drop_gradients()
        self._watch()
        return moved

    def _take_dense(self) -> None:
        for group in self._sparsity.groups:
            for p in (p for p in group.parameters if isinstance(p, PackedParameter)):
                self._gradients.take_dense(p, group.algorithm.needs_gradient and group.is_update(self.steps))

    def _report_missing(self) -> None:
        """Report a group whose masks stay as they are: the step was taken without a gradient of any of its weights."""
        for group in self._sparsity.groups:
            if group.is_update(self.steps) and not any(map(group.has_gradient, group.parameters)):
                warnings.warn(
                    f"sparsity: {group.algorithm.group.algorithm} changes no masks at step {self.steps}: none of its "
                    "weights had a gradient when the optimizer stepped; call zero_grad() after optimizer.step()",
                    stacklevel=3,
                )

    def _check_levels(self) -> None:
        for group in self._sparsity.groups:
            level, most = group.algorithm.target(self.steps), group.algorithm.group.max_sparsity
            if not 0 <= level <= most:
                raise UserError(
                    f"sparsity: its schedule is at {level:.6g} at step {self.steps}; 0 to {most} is allowed"
                )

    def _require(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            raise UserError(
                "sparsity: has no optimizer yet; call model.apply(sparsity), then sparsity.apply(optimizer)"
            )
        return self._optimizer

    # --- what it holds

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about how weights are stored."""
        return tuple(self._sparsity.notes)

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks by parameter name, bool: True where weights live. By the axes of the module's whole weight."""
        return {p.name: p.turned(p.mask).clone() for p in self._sparsity.parameters}

    @property
    def sparsity(self) -> float:
        """Share of the sparse parameters' weights that is off."""
        return self._sparsity.actual()

    @property
    def target(self) -> float:
        """Share that the schedules want off."""
        return self._sparsity.target(self.steps)

    def layers(self) -> list[Layer]:
        """Each sparse weight with its live weights, and its training FLOPs for a row of input where these are known."""
        return describe_layers(self._module, self._sparsity, self.steps)

    def summary(self) -> str:
        """`layers` as a table, and lines about how weights are stored."""
        return "\n".join([format_layers(self.layers()), *self.notes])

    def whole_state_dict(self) -> dict[str, Any]:
        """The module's `state_dict` with packed weights whole, as a module that was never packed loads it.

        Those are in host memory: one at a time is whole where the module is.
        """
        found = self._module.state_dict()
        for p in self._sparsity.parameters:
            if isinstance(p, PackedParameter):
                found[p.name] = p.whole(p.weight.detach()).cpu()
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs besides the module's and the optimizer's own: steps, masks, births, and orders.

        `seeds` are those of the groups whose updates draw: they are compared, and not taken.
        `born` holds the steps at which weights were regrown, where Adam corrects its bias by their own age; `orders`
        those of inputs in which blocks are formed, where a group has `permute_inputs`.
        """
        found = {"steps": self.steps, "masks": self.masks, "born": self._regrown.state_dict(), "seeds": self._seeds()}
        return found | ({"orders": orders} if (orders := self._sparsity.orders()) else {})

    def _seeds(self) -> list[int | None]:
        return [group.algorithm.seed if group.algorithm.draws else None for group in self._sparsity.groups]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse pickle and deepcopy: hooks tie a training to its own module and optimizer.

        Raises:
            UserError: always.
        """
        raise UserError("sparsity: is tied to its module and optimizer and cannot be copied; store its state_dict()")

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. Load it before the module's and the optimizer's: packed weights take its form.

        Raises:
            UserError: it is none, its masks are not those of this module and config, or were drawn by another seed.
        """
        optimizer = self._require()
        saved = read_saved_state(state, self._sparsity.groups, self._seeds())
        self._regrown.check(saved.born)
        self.steps, self._taken, self._early = saved.steps, False, False
        masks = {name_mask(p.name): p.turned(saved.masks[p.name]) for p in self._sparsity.parameters}
        self._sparsity.load_state_dict(masks, state=optimizer.state, orders=saved.orders)
        self._regrown.load_state_dict(saved.born)
        self._sparsity.drop_gradients()
        self._watch()

    def detach(self) -> None:
        """Follow the optimizer no more. Weights stay as they are; the next step may fill their zeros."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for p in self._sparsity.parameters:
            if hasattr(p.weight, MARK):
                delattr(p.weight, MARK)
        self._sparsity.drop_gradients()
