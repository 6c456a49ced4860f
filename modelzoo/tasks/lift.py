"""What becomes of a checkpoint's masks when its weights are fine-tuned: lifted, kept, or opened step by step.

MediSwift pre-trains sparse and fine-tunes dense (arXiv 2403.00952; arXiv 2303.10464): the masks are lifted, the weights
that were off start at zero and learn.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.finetune import Finetune, Gradual
from modelzoo.config.sparsity import SparsityGroup, Update
from modelzoo.config.trainer import Init
from modelzoo.loop import Run
from modelzoo.models.shapes import parameters

Masks = Mapping[str, Tensor]  # bool, by parameter name


def masks_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks among a checkpoint's model tensors, by the name of the parameter."""
    return {n.removesuffix("_mask"): x.bool() for n, x in tensors.items() if n.endswith("_mask")}


def sparsity(config: Finetune, own: tuple[SparsityGroup, ...], masks: Masks, path: str) -> tuple[SparsityGroup, ...]:
    """The sparsity section of a fine-tuning run.

    Args:
        own: the config's section, which holds where `finetune.sparsity` says nothing.
        masks: those of the checkpoint `path`.

    Raises:
        UserError: the checkpoint is sparse and nothing says what becomes of that, or is dense where masks are to stay.
    """
    mode = config.sparsity
    if mode is None:
        if masks and not own:
            raise UserError(
                f"{path}: is sparse ({_off(masks)}); say what becomes of its masks: trainer.finetune.sparsity: none "
                "lifts them (dense fine-tuning), keep holds them, {gradual: {steps: N}} opens them step by step"
            )
        return own
    if mode == "none":
        return ()
    if not masks:
        raise UserError(
            f"{path}: is dense, so there are no masks to keep or open; remove trainer.finetune.sparsity, or prune at "
            "the start with trainer.init.sparsity and init_method: topk"
        )
    return tuple(_group(names, level, mode) for level, names in sorted(_levels(masks).items()))


def _levels(masks: Masks) -> dict[float, list[str]]:
    """Parameters by their share of weights off."""
    found: dict[float, list[str]] = {}
    for name, mask in masks.items():
        found.setdefault(1 - int(mask.sum()) / mask.numel(), []).append(name)
    return found


def _group(names: list[str], level: float, mode: str | Gradual) -> SparsityGroup:
    common = {"param_filter": tuple(names), "max_sparsity": max(0.999, level)}
    if mode == "keep":  # the masks themselves come from the checkpoint, whatever algorithm made them
        return SparsityGroup(algorithm="static", sparsity=level, init_method="from_zeros", **common)
    # RigL that drops nothing: as the level falls, weights open where the dense gradient is largest.
    slope = -math.nextafter(level / mode.steps, math.inf)  # a hair steeper, so that the last opening leaves none off
    steps = (*range(mode.freq, mode.steps, mode.freq), mode.steps)
    return SparsityGroup(
        algorithm="rigl",
        sparsity={"type": "linear", "init": level, "slope": slope, "final": 0.0},
        drop_fraction=0.0,
        update=Update(steps=steps),
        **common,
    )


def states(config: Finetune, sparse: bool) -> tuple[str, ...]:
    """The parts of the checkpoint that fine-tuning starts from. `sparse`: masks are taken over."""
    found = ("model", "sparsity") if sparse else ("model",)
    return (*found, "optimizer") if config.optimizer == "keep" else found


def keeps_ages(config: Finetune) -> bool:
    """Whether lifted weights join an optimizer that has long been counting, and so need ages of their own."""
    return config.sparsity == "none" and config.optimizer == "keep"


def make_room_for_ages(run: Run, init: Init) -> None:
    """Let Adam count each weight's bias correction from its own birth (all from step 0, until told)."""
    linear = {n for n, s in parameters(init.model).items() if s.kind == "linear"}
    for name, p in run.model.named_parameters():
        entries = run.optimizer.state.get(p, {})
        if name in linear and "exp_avg" in entries and init.optimizer.value.correct_bias:
            entries["born"] = torch.zeros_like(p, dtype=torch.int32)


def be_born(run: Run, masks: Masks) -> None:
    """The weights that `masks` held off are born now: their moments are zero, the optimizer's count is not."""
    for name, p in run.model.named_parameters():
        entries = run.optimizer.state.get(p, {})
        if name in masks and "born" in entries:
            entries["born"].masked_fill_(~masks[name].to(p.device), int(entries["step"]))


def said(config: Finetune, masks: Masks) -> str:
    """What becomes of the masks, in a few words."""
    mode = config.sparsity
    if not masks:
        return "dense"
    off = sum(int((~m).sum()) for m in masks.values())
    if mode == "none":
        return f"masks lifted: {off:,} weights that were off start at zero and learn"
    if mode is None:
        return "its masks and the config's sparsity"
    if isinstance(mode, Gradual):
        return f"masks open over {mode.steps} steps: {off:,} weights are off at the start"
    return f"masks kept: {off:,} weights stay off"


def _off(masks: Masks) -> str:
    total, live = sum(m.numel() for m in masks.values()), sum(int(m.sum()) for m in masks.values())
    return f"{1 - live / total:.2%} of {total:,} weights off in {len(masks)} matrices"
