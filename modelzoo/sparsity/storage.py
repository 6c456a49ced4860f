"""How a block-sparse weight is stored off the CS-2: whole under its mask, or as live blocks where that is faster."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from modelzoo.config.sparsity import Constant, SparsityGroup
from modelzoo.kernels import choose, packed
from modelzoo.sparsity import blocks
from modelzoo.sparsity.parameter import PackedLinear, PackedParameter, SparseParameter

# Measured by benchmarks/train_step.py; `-m bench` measures a config on the user's machine.
NARROWEST = 256  # shorter side of a weight below which a dense product is as fast


def store(
    model: nn.Module, group: SparsityGroup, parameters: Sequence[SparseParameter], dtype: torch.dtype
) -> tuple[list[SparseParameter], list[str]]:
    """Replace the linears of `model` whose weights are to be packed, as the group's `storage` says.

    Args:
        parameters: the group's, whole, with their first masks.
        dtype: of activations.

    Returns:
        The group's parameters as they are stored now, and what to say about it, a line each.
    """
    if not group.may_pack:
        return list(parameters), []
    done, said = [], Counter()
    for p in parameters:
        path, _, last = p.name.rpartition(".")
        linear = model.get_submodule(path)
        layout = packed.layout_of(blocks.gathered(p.mask, p.block), p.block)
        how = choose.note(layout, p.weight.device, dtype)
        why = _kept_whole(group, linear, last, layout, choose.choose(layout, p.weight.device, dtype))
        if why is None:
            parent, _, name = path.rpartition(".")
            module = PackedLinear(linear, layout)
            setattr(model.get_submodule(parent), name, module)
            p = PackedParameter(p, module)
        said[f"live blocks alone: {how}" if why is None else f"whole under masks: {why} ({how})"] += 1
        done.append(p)
    return done, [f"storage    {n} weights {how}" for how, n in said.items()]


def _kept_whole(group: SparsityGroup, linear: nn.Module, last: str, layout: packed.Layout, kernel) -> str | None:
    """Why a weight is not packed, or None if it is."""
    if type(linear) is not nn.Linear or last != "weight":
        return f"{type(linear).__name__} has no packed form"
    if group.storage == "packed":
        return None
    if not isinstance(group.sparsity, Constant):
        return "their sparsity changes; storage: packed packs them even so"
    if not pays(layout, kernel):
        return "no gain is known; storage: packed packs them even so"
    return None


def pays(layout: packed.Layout, kernel) -> bool:
    """Whether `kernel` is known to beat the dense product on the layout's weight."""
    return 0 < layout.density <= choose.densest(layout, kernel) and min(layout.shape) >= NARROWEST
