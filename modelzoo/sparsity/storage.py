"""How sparse weights are stored and multiplied off the CS-2, where that is faster than whole under a mask.

Blocks are stored alone. 2:4 weights stay whole; `storage: compressed` compresses them for the sparse tensor cores of
NVIDIA GPUs. `auto` does not: on an H200 the products alone are 1.3 to 1.5 times as fast, but starting one takes the
host a millisecond, and with compressing the weights anew in each step, in both directions, 1.07x of an XL step is the
most that could be had.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.sections.sparsity_schedules import Constant
from modelzoo.kernels.blocks.layout import Layout, layout_of
from modelzoo.kernels.products import choose, semi_structured
from modelzoo.sparsity.parameter import PackedLinear, PackedParameter, SemiStructuredLinear, SparseParameter

# Measured by benchmarks/train_step.py; `-m bench` measures a config on the user's machine.
NARROWEST = 256  # shorter side of a weight below which a dense product is as fast


def store_group(
    model: nn.Module,
    group: SparsityGroup,
    parameters: Sequence[SparseParameter],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> tuple[list[SparseParameter], list[str]]:
    """Replace the linears of `model` whose weights are to be packed or compressed, by the group's `storage`.

    Args:
        parameters: the group's, whole, with their first masks.
        dtype: of activations.
        device: that will multiply; default: where the model is.

    Returns:
        The group's parameters as they are stored now, and a line about each way of storing.
    """
    if group.may_compress:
        return list(parameters), _compress(model, parameters, dtype, device)
    if not group.may_pack:
        return list(parameters), []
    done, counts = [], Counter()
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for p in parameters:
        path, _, last = p.name.rpartition(".")
        linear = model.get_submodule(path)
        layout = layout_of(p.gathered(p.mask), p.block, p.order)
        how = choose.describe_choice(layout, device or p.weight.device, dtype)
        kernel = choose.choose_kernel(layout, device or p.weight.device, dtype)
        why = _kept_whole(group, linear, last, pays(layout, kernel, dtype)) or _bound(linear, uses[id(p.weight)], path)
        if why is None:
            assert isinstance(linear, nn.Linear)  # `_kept_whole` names a reason for any other
            module = PackedLinear(linear, layout)
            _replace(model, path, module)
            p = PackedParameter(p, module)
        counts[f"live blocks alone: {how}" if why is None else f"whole under masks: {why} ({how})"] += 1
        done.append(p)
    return done, [f"storage    {n} weights {how}" for how, n in counts.items()]


def _compress(
    model: nn.Module, parameters: Sequence[SparseParameter], dtype: torch.dtype, device: torch.device | None
) -> list[str]:
    """Let the linears of 2:4 weights multiply on sparse tensor cores where there are some; returns lines about it."""
    counts = Counter()
    for p in parameters:
        path, _, last = p.name.rpartition(".")
        linear = model.get_submodule(path)
        why = f"{type(linear).__name__} has no compressed form"
        if type(linear) is nn.Linear and last == "weight":
            why = semi_structured.unavailable(p.weight, dtype, device)
            if not why:
                _replace(model, path, SemiStructuredLinear(linear))
        counts[f"multiplied whole: {why}" if why else "compressed in each product, on sparse tensor cores"] += 1
    return [f"storage    {n} weights 2:4 under masks, {how}" for how, n in counts.items()]


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _kept_whole(group: SparsityGroup, linear: nn.Module, last: str, faster: bool) -> str | None:
    """Why a weight is not packed, or None if it is."""
    if type(linear) is not nn.Linear or last != "weight":
        return f"{type(linear).__name__} has no packed form"
    if group.storage == "packed":
        return None
    if not isinstance(group.sparsity, Constant):
        return "their sparsity changes; storage: packed packs them even so"
    if not faster:
        return "no gain is known; storage: packed packs them even so"
    return None


def _bound(linear: nn.Module, uses: int, path: str) -> str | None:
    """Why a linear cannot give way to another module, or None if it can."""
    if uses > 1:
        return "used in several places"
    if not path:
        return "the linear is the whole model"
    if linear._forward_hooks or linear._forward_pre_hooks or linear._backward_hooks or linear._backward_pre_hooks:
        return "the linear has hooks, which another module would not run"
    return None


def pays(layout: Layout, kernel, dtype: torch.dtype) -> bool:
    """Whether `kernel` is known to beat the dense product on the layout's weight."""
    return 0 < layout.density <= choose.find_densest(layout, kernel, dtype) and min(layout.shape) >= NARROWEST
