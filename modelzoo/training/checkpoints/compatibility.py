"""Whether a checkpoint fits a run: weights, masks and optimizer state are checked, and nothing is changed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.config.required import require_optimizer
from modelzoo.config.sections.model import GPTConfig, find_difference
from modelzoo.config.trainer import Init
from modelzoo.models.shapes import list_parameters, list_with_adapters
from modelzoo.names import is_adapter, is_lora, name_mask, name_weight
from modelzoo.sparsity.group import Group
from modelzoo.train_state import TrainState
from modelzoo.training.checkpoints.state_json import CheckpointState, LoRAFacts

# A run that goes on takes all of its checkpoint (`resume.choose_start`); parts of it start another run.
OTHER = "another -o, --checkpoint_path and --load_checkpoint_states"
Files = Mapping[str, Mapping[str, Tensor]]  # by file stem, then by name


def check_model(
    run: TrainState, path: str, saved: Mapping[str, Tensor], state: CheckpointState, resumes: bool, strict: bool
) -> set[str]:
    """Check the checkpoint's weights against the model.

    Returns:
        The parameters of adapters that it may lack.

    Raises:
        UserError: names the first that does not fit.
    """
    weights = run.parameters
    new, absent = set(list_with_adapters(run.init)) - set(list_parameters(run.init.model)), set()
    if not resumes:
        held = {is_lora(n) for n in saved if is_adapter(n)}
        absent = {n for n in new if is_lora(n) not in held}
    _check_names(path, weights.keys() - absent, saved.keys(), strict, new)
    _check_shapes(path, {n: run.shape(p) for n, p in weights.items()}, saved)
    if strict:
        _check_config(path, state.model, run.init.model)
        _check_scale(path, state.lora, run.init)
    return absent


def _check_names(path: str, ours, theirs, strict: bool, new: set[str]) -> None:
    """`new`: those of ours that a soft prompt or LoRA adds."""
    missing, unknown = sorted(ours - theirs), sorted(theirs - ours)
    if strict and missing and new.issuperset(missing) and not unknown:
        raise UserError(
            f"{path}: lacks {missing[0]}, which trainer.init.soft_prompt or lora adds; to start from its weights, "
            f"{OTHER} model (with sparsity, to keep its masks)"
        )
    if strict and not missing and all(map(is_adapter, unknown)) and unknown:
        raise UserError(
            f"{path}: has {unknown[0]}; give the soft_prompt and lora sections of the run that made it in trainer.init "
            "(they are in its config.yaml)"
        )
    if strict and (missing or unknown):
        what = [
            f"lacks {missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else f"lacks {n}" for n in missing[:1]
        ]
        what += [f"has {n}, which the config's model has not" for n in unknown[:1]]
        raise UserError(
            f"{path}: {' and '.join(what)}; this is a checkpoint of another model "
            "(--disable_strict_checkpoint_loading takes what fits)"
        )


def _check_shapes(path: str, shapes: Mapping[str, torch.Size], saved: Mapping[str, Tensor]) -> None:
    for name, shape in shapes.items():
        if name in saved and saved[name].shape != shape:
            raise UserError(
                f"{path}: {name} is {list(saved[name].shape)}, the config's model has {list(shape)}; "
                "this is a checkpoint of another model"
            )


def _check_config(path: str, saved: Mapping[str, Any], model: GPTConfig) -> None:
    """The same shapes may still be another function: other heads, another activation, other positions."""
    if different := find_difference(saved, model):
        key, theirs, ours = different
        raise UserError(
            f"{path}: was trained with model.{key} {theirs}, the config says {ours}; take the checkpoint's value, or "
            "keep yours with --disable_strict_checkpoint_loading"
        )


def _check_scale(path: str, saved: LoRAFacts | None, init: Init) -> None:
    ours = init.lora
    if ours is not None and saved is not None and saved.alpha / saved.r != ours.scale:
        raise UserError(
            f"{path}: was trained with lora.alpha {saved.alpha}, the config says {ours.alpha}; take the checkpoint's"
        )


def check_masks(
    run: TrainState, path: str, saved: Mapping[str, Tensor], orders: Mapping[str, Tensor], step: int | None
) -> None:
    """Check masks against the config. `step`: optimizer steps of the run to resume; None for a new run."""
    ours = {name_mask(p.name) for p in run.sparsity.parameters}
    if saved and not ours:
        raise UserError(
            f"{path}: is sparse ({len(saved)} masks), the config is dense; keep it sparse with the run's `sparsity` "
            f"section, or lift the masks explicitly: {OTHER} model"
        )
    if ours and not saved:
        raise UserError(
            f"{path}: is dense, the config is sparse; start sparse from its weights with {OTHER} "
            "model (and init_method: topk to keep the largest)"
        )
    if different := sorted(ours ^ saved.keys()):
        name = name_weight(different[0])
        raise UserError(f"{path}: {name} is sparse in one of checkpoint and config only; the sparsity sections differ")
    for group in run.sparsity.groups:
        for p in group.parameters:
            mask, sizes = saved[name_mask(p.name)], tuple(group.sizes[p.name])
            if mask.dtype != torch.bool or mask.shape != sizes:
                kind = str(mask.dtype).removeprefix("torch.")
                raise UserError(
                    f"{path}: the mask of {p.name} is {kind} {list(mask.shape)}, not bool {list(sizes)}; it is "
                    f"damaged, draw new masks with {OTHER} model"
                )
            if not group.fits(p, mask, orders.get(p.name)):
                raise UserError(
                    f"{path}: the mask of {p.name} is not of the config's pattern ({group.algorithm.group.pattern}); "
                    f"set the checkpoint's, or draw new masks with {OTHER} model"
                )
        for name, k in _counts(group, step).items():
            # Masks that change may come from cerebras.pytorch, which counts in float32.
            slack = 1 + group.sizes[name][0] * group.sizes[name][1] // 10**6 if group.changes else 0
            if abs((live := int(saved[name_mask(name)].sum())) - k) > slack:
                when = f" at step {step}" if group.changes else ""
                raise UserError(
                    f"{path}: {name} has {live} live weights, the config's {group.algorithm.group.algorithm} sparsity "
                    f"asks for {k}{when}; set the checkpoint's sparsity, or draw new masks with "
                    f"{OTHER} model"
                )


def _counts(group: Group, step: int | None) -> dict[str, int]:
    """Live weights that the masks of `group` must have; none where anything may be found."""
    if group.algorithm.group.init_method == "from_zeros":
        return {}
    if not group.algorithm.changes:
        return group.counts(0)
    return group.counts(step) if step is not None and group.changes else {}


def read_moments(
    run: TrainState, path: str, files: Files, state: CheckpointState, strict: bool, absent: set[str]
) -> dict[nn.Parameter, dict[str, Tensor]]:
    """The checkpoint's optimizer state by parameter, checked against the run's."""
    remedy = f"start a new one with {OTHER} model,sparsity"
    wanted = require_optimizer(run.init).name
    if state.optimizer != wanted:
        raise UserError(f"{path}: holds {state.optimizer} state, the config asks for {wanted}; {remedy}")
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in files.get("optimizer", {}).items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    found = {}
    for name, p in run.parameters.items():
        if not p.requires_grad or name in absent:
            continue
        fresh, theirs = run.optimizer.state.get(p, {}), entries.get(name, {})
        if strict and fresh.keys() - theirs.keys() - {"born"}:
            raise UserError(f"{path}: has no optimizer state for {name}; {remedy}")
        if any(value.shape != run.shape(p) for entry, value in theirs.items() if entry != "step"):
            raise UserError(f"{path}: the optimizer state of {name} has another shape; {remedy}")
        step = theirs.get("step")  # of Adam; it may be more than the run's own, which may have begun with its moments
        if step is not None and not (step.numel() == 1 and 0 <= float(step) < 2**53):
            raise UserError(f"{path}: the optimizer state of {name} has no count of steps; {remedy}")
        found[p] = theirs
    return found
