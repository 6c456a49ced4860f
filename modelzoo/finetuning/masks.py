"""What becomes of a checkpoint's masks when its weights are fine-tuned: lifted, kept, or opened step by step.

MediSwift pre-trains sparse and fine-tunes dense (arXiv 2403.00952; arXiv 2303.10464): the masks are lifted, the weights
that were off start at zero and learn.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.required import require_finetune, require_optimizer
from modelzoo.config.sections.finetune import Finetune, Open, Opening
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.sections.sparsity_schedules import Update
from modelzoo.config.trainer import Config, Fit, Init
from modelzoo.kernels.blocks import tiling
from modelzoo.models.shapes import list_parameters
from modelzoo.names import split_masks
from modelzoo.records import Record, check_record
from modelzoo.sparsity.order import derive_order
from modelzoo.sparsity.select import block_of, live_count, select_parameters
from modelzoo.train_state import TrainState

Masks = Mapping[str, Tensor]  # bool, by parameter name
# Keys of a sparsity group that say how its masks look, and how weights are stored, with their values.
Pattern = tuple[tuple[str, Any], ...]
NO_PATTERNS: Mapping[str, Pattern] = MappingProxyType({})


def read_masks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks among a checkpoint's model tensors, by the name of the parameter."""
    return {n: x.bool() for n, x in split_masks(tensors)[1].items()}


class _Masked(Record):
    """What is read here of a checkpoint's state."""

    model: GPTConfig
    sparsity: list[SparsityGroup]


def read_patterns(saved: Mapping[str, Any], masks: Masks, path: str) -> dict[str, Pattern]:
    """How the checkpoint's own sparsity section shapes and stores each masked weight, by parameter.

    A mask without its section's pattern (an imported checkpoint's section may be another's) counts as unstructured.

    Args:
        saved: the state of the checkpoint `path`.

    Raises:
        UserError: it has no model or sparsity section of this trainer.
    """
    state = check_record(dict(saved), _Masked, f"{path}: its state", "it is not what this trainer writes")
    shapes, groups = list_parameters(state.model), state.sparsity
    return {
        name: _find_pattern(group)
        for group, names in zip(groups, select_parameters(shapes, groups), strict=True)
        for name in names
        if name in masks and _has_pattern(masks[name], group)
    }


def _find_pattern(group: SparsityGroup) -> Pattern:
    found = tuple((key, getattr(group, key)) for key in ("block", "shared_inputs", "nm", "storage"))
    if group.permute_inputs is None:
        return found
    return (*found, ("permute_inputs", "start"), ("init_method", "topk"))  # the order comes with the mask


def _has_pattern(mask: Tensor, group: SparsityGroup) -> bool:
    """Whether a mask [out, in] has the group's pattern."""
    if group.nm:
        n, m = group.nm
        return mask.numel() % m == 0 and bool((mask.view(-1, m).sum(1) == n).all())
    block = block_of(group, tuple(mask.shape))
    if any(side % b for side, b in zip(mask.shape, block, strict=True)):
        return False
    if group.permute_inputs is not None:
        return tiling.has_blocks(mask, block, derive_order(mask, block))
    live = tiling.gathered(mask, block)
    even = not group.shared_inputs or len(live.sum(1).unique()) == 1
    return even and int(live.sum()) * math.prod(block) == int(mask.sum())


def make_config(
    config: Config, masks: Masks, path: str, data_dir: str, patterns: Mapping[str, Pattern] = NO_PATTERNS
) -> Config:
    """The config with the training data and the sparsity of a fine-tuning run. Other arguments as in `make_sparsity`.

    Args:
        data_dir: the folder of the task's training examples as shards.
    """
    section, init = require_finetune(config), config.trainer.init
    loader = {
        "data_dir": [data_dir],
        "batch_size": section.batch_size,
        "micro_batch_size": section.micro_batch_size,
        "max_sequence_length": section.max_sequence_length or init.model.max_position_embeddings,
        "shuffle": True,
        "shuffle_seed": init.seed,
    }
    changes = {
        "init": init.model_copy(update={"sparsity": make_sparsity(section, init.sparsity, masks, path, patterns)}),
        "fit": Fit.model_validate({"train_dataloader": loader}),
    }
    return config.model_copy(update={"trainer": config.trainer.model_copy(update=changes)})


def make_sparsity(
    config: Finetune,
    own: tuple[SparsityGroup, ...],
    masks: Masks,
    path: str,
    patterns: Mapping[str, Pattern] = NO_PATTERNS,
) -> tuple[SparsityGroup, ...]:
    """The sparsity section of a fine-tuning run.

    Args:
        own: the config's section, which applies where `finetune.masks` is not given.
        masks: those of the checkpoint `path`.
        patterns: of masks that are kept; without one a mask is unstructured, as are all masks that open.

    Raises:
        UserError: the checkpoint is sparse and the config does not choose, or is dense where masks are to stay.
    """
    mode = config.masks
    if mode is None:
        if masks and not own:
            raise UserError(
                f"{path}: is sparse ({_off(masks)}); choose what becomes of its masks: trainer.finetune.masks: lift "
                "makes it dense, keep holds them, {open: {steps: N}} opens them step by step"
            )
        return own
    if mode == "lift":
        return ()
    if not masks:
        raise UserError(
            f"{path}: is dense, so there are no masks to keep or open; remove trainer.finetune.masks, or prune at "
            "the start with trainer.init.sparsity and init_method: topk"
        )
    if mode == "keep":  # the masks themselves come from the checkpoint, whatever algorithm made them
        return tuple(_kept(names, level, like, path) for (level, like), names in _alike(masks, patterns).items())
    return tuple(_opening(names, level, mode.open) for (level, _), names in _alike(masks, NO_PATTERNS).items())


def _alike(masks: Masks, patterns: Mapping[str, Pattern]) -> dict[tuple[float, Pattern], list[str]]:
    """Parameters by their share of weights off and their pattern."""
    found: dict[tuple[float, Pattern], list[str]] = {}
    for name, mask in masks.items():
        found.setdefault((_level(mask), patterns.get(name, ())), []).append(name)
    return dict(sorted(found.items(), key=repr))


def _level(mask: Tensor) -> float:
    """The share of weights off, as a sparsity that means exactly the mask's number of live weights."""
    live = int(mask.sum())
    level = 1 - live / mask.numel()
    while live_count(mask.numel(), level) < live:  # the nearest double may be a hair too high
        level = math.nextafter(level, 0)
    return level


def _kept(names: list[str], level: float, like: Pattern, path: str) -> SparsityGroup:
    """Static at the masks' own density, so that `storage: auto` can estimate what packing saves."""
    limit = max(0.999, level)
    value = {"sparsity": level, "param_filter": tuple(names), "max_sparsity": limit, **dict(like)}
    return check_record(value, SparsityGroup, f"{path}: masks of {names[0]}", "its sparsity section fits no masks")


def _opening(names: list[str], level: float, mode: Opening) -> SparsityGroup:
    # RigL that drops nothing: as the level falls, weights open where the dense gradient is largest.
    slope = -math.nextafter(level / mode.steps, math.inf)  # a hair steeper, so that the last opening leaves none off
    steps = (*range(mode.freq, mode.steps, mode.freq), mode.steps)
    return SparsityGroup.model_validate(
        {
            "algorithm": "rigl",
            "sparsity": {"type": "linear", "init": level, "slope": slope, "final": 0.0},
            "drop_fraction": 0.0,
            "update": Update(steps=steps),
            "param_filter": tuple(names),
            "max_sparsity": max(0.999, level),
        }
    )


def list_states(config: Finetune, sparse: bool) -> tuple[str, ...]:
    """The parts of the checkpoint that fine-tuning starts from. `sparse`: masks are taken over."""
    found = ("model", "sparsity") if sparse else ("model",)
    return (*found, "optimizer") if config.optimizer == "keep" else found


def needs_ages(config: Finetune) -> bool:
    """Whether weights without a mask any more join an optimizer that has been counting, and so need their own ages."""
    return config.masks == "lift" and config.optimizer == "keep"


def add_ages(run: TrainState, init: Init) -> None:
    """Give each weight an age of its own for Adam's bias correction; all start at step 0 (`start_ages` sets others)."""
    corrects = require_optimizer(init).value.correct_bias
    linear = {n for n, s in list_parameters(init.model).items() if s.kind == "linear"}
    for name, p in run.model.named_parameters():
        entries = run.optimizer.state.get(p, {})
        if name in linear and "exp_avg" in entries and corrects:
            entries["born"] = torch.zeros_like(p, dtype=torch.int32)


def start_ages(run: TrainState, masks: Masks) -> None:
    """Weights that were masked start now: record the optimizer's step as their birth, so bias correction restarts."""
    for name, p in run.model.named_parameters():
        entries = run.optimizer.state.get(p, {})
        if name in masks and "born" in entries:
            entries["born"].masked_fill_(~masks[name].to(p.device), int(entries["step"]))


def describe_masks(config: Finetune, masks: Masks, frozen: bool) -> str:
    """What becomes of the masks, in a few words.

    Args:
        frozen: whether the model's own weights do not train (LoRA, a soft prompt alone): what is off stays zero.
    """
    mode = config.masks
    if not masks:
        return "dense"
    off = sum(int((~m).sum()) for m in masks.values())
    if frozen and mode != "keep" and mode is not None:
        return f"its weights are frozen: {off:,} that are off stay zero, as with masks: keep"
    if mode == "lift":
        return f"masks lifted: {off:,} weights that were off start at zero and learn"
    if mode is None:
        return "its masks and the config's sparsity"
    if isinstance(mode, Open):
        return f"masks open over {mode.open.steps} steps: {off:,} weights are off at the start"
    return f"masks kept: {off:,} weights stay off"


def _off(masks: Masks) -> str:
    total, live = sum(m.numel() for m in masks.values()), sum(int(m.sum()) for m in masks.values())
    return f"{1 - live / total:.2%} of {total:,} weights off in {len(masks)} matrices"
