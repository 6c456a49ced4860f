"""A sparse training's state as it was stored: whether it is one, and of this module and config."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.sparsity.group import Group
from modelzoo.sparsity.parameter import SparseParameter


class SavedState(NamedTuple):
    """What `SparseTraining.state_dict` gives, by parameter name but for the steps. Masks are by the module's axes."""

    steps: int
    masks: Mapping[str, Tensor]
    orders: Mapping[str, Any]
    born: Mapping[str, Any]


def read_saved_state(state: Any, groups: Sequence[Group], seeds: list[int | None]) -> SavedState:
    """The parts of `state`, all checked but for births.

    Args:
        groups: of the training that takes it. seeds: of these groups, None where one draws nothing.

    Raises:
        UserError: it is none, its masks are not those of this module and config, or were drawn by another seed.
    """
    steps, masks = (state.get("steps"), state.get("masks")) if isinstance(state, Mapping) else (None, None)
    if type(steps) is not int or steps < 0 or not isinstance(masks, Mapping):
        raise UserError("sparsity.load_state_dict: takes what state_dict gave: {'steps': ..., 'masks': ...}")
    found = state.get("seeds", seeds)  # older states lack them
    if found != seeds:
        raise UserError(
            f"sparsity.load_state_dict: was trained with the seeds {found!s:.80} of its groups, this training has "
            f"{seeds}, and would go on otherwise; give sparsify(..., seed=) or the config the same"
        )
    orders = state.get("orders") or {}
    if odd := sorted({p.name for group in groups for p in group.parameters} ^ set(masks)):
        raise UserError(f"{odd[0]}: is in {'the loaded masks' if odd[0] in masks else 'this module'} alone")
    for group in groups:
        counts = None if group.changes or group.algorithm.group.init_method == "from_zeros" else group.counts(0)
        for p in group.parameters:
            live = _check_mask(group, p, masks[p.name], orders.get(p.name))
            if counts is not None and live != counts[p.name] and not group.algorithm.group.compat:
                raise UserError(f"{p.name}: {live:,} live weights are loaded; the config has {counts[p.name]:,}")
    return SavedState(steps, masks, orders, state.get("born") or {})


def _check_mask(group: Group, p: SparseParameter, mask: Any, order: Any) -> int:
    """How many weights of `p` a loaded mask leaves on, once it is one and has the pattern of its group."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or p.turned(mask).shape != p.shape:
        raise UserError(f"{p.name}: its loaded mask is no bool tensor of its shape")
    order = order.to(p.weight.device) if isinstance(order, Tensor) else None
    if not group.fits(p, p.turned(mask).to(p.weight.device), order):
        raise UserError(f"{p.name}: its loaded mask has not the pattern of the config")
    return int(mask.sum())
