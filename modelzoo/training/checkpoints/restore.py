"""Restore a run from a checkpoint's content: every check comes before the first change."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import ALL_STATES
from modelzoo.models.adapt import redraw
from modelzoo.names import SOFT_PROMPT, is_mask
from modelzoo.sparsity.ledger import Ledger
from modelzoo.train_state import Reduction, TrainState
from modelzoo.training.checkpoints.compatibility import OTHER, Files, check_masks, check_model, read_moments
from modelzoo.training.checkpoints.snapshot import EXPLORED, ORDERS
from modelzoo.training.checkpoints.state_json import (
    CheckpointState,
    Scale,
    name_reordering,
)


@torch.no_grad()
def restore(
    run: TrainState,
    path: str,
    files: Files,
    saved: Mapping[str, Any],
    fingerprint: str | None,
    states: Collection[str] = ALL_STATES,
    strict: bool = True,
) -> None:
    """Put a loaded checkpoint into `run`. Everything is checked before anything is changed.

    Args:
        files: the checkpoint's tensors by file and name, and `saved` its JSON state (`checkpoint.load`).
        fingerprint: of the run's data; None leaves the data unchecked (validation).
        states: which parts to take; the zoo's `--load_checkpoint_states`.
        strict: refuse missing and unknown parameters.

    Raises:
        UserError: names the parameter or part that does not fit, and what to do instead.
    """
    state = CheckpointState.parse(path, saved)
    resumes = "global_step" in states and "dataloader" in states
    masks = {n: x for n, x in files["model"].items() if is_mask(n)}
    weights = {n: x for n, x in files["model"].items() if n not in masks}
    absent: set[str] = set()  # weights to start from may lack what fine-tuning adds; a run to resume may not
    if "model" in states:
        absent = check_model(run, path, weights, state, resumes, strict)
    if "sparsity" in states:
        check_masks(run, path, masks, files.get(ORDERS, {}), state.global_step - state.skipped if resumes else None)
    moments = read_moments(run, path, files, state, strict, absent) if "optimizer" in states else {}
    if "dataloader" in states and fingerprint is not None and state.dataset != fingerprint:
        keys = name_reordering(path, saved, run.config)
        what = f"in other batches ({keys})" if keys else "on other data (or another batch size or shuffle seed)"
        fit = run.config.trainer.fit if run.config is not None else None
        if not keys and fit is not None and fit.train_dataloader.mixture:
            what += ", or by a version that took the first examples of a mixture's sets"
        raise UserError(
            f"{path}: was trained {what}, so its position in the data means nothing here; "
            f"{'take its values' if keys else 'restore the data'}, or start at its beginning with "
            f"{OTHER} model,optimizer,sparsity"
        )
    explored = files.get(EXPLORED, {}) if resumes else {}  # older checkpoints have none: counted from their masks on
    _put_weights(
        run,
        weights if "model" in states else {},
        masks if "sparsity" in states else None,
        explored,
        files.get(ORDERS, {}),
    )
    _put_moments(run, moments)
    if "grad_scaler" in states and run.loss_scale.dynamic and _had_scale(state.loss_scale):
        run.loss_scale.scale, run.loss_scale.good_steps = state.loss_scale.scale, state.loss_scale.good_steps
    if resumes:
        run.step, run.skipped, run.tokens = state.global_step, state.skipped, state.tokens
        run.churn, run.unavoidable = state.churn, state.unmended
        run.ledger = Ledger(*state.flops)
        run.reduction = Reduction(state.slices, state.threads)
        run.dtype_before, run.unassessed, run.resumed_from = state.dtype, state.unassessed, saved


def _put_weights(
    run: TrainState,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None,
    explored: Mapping[str, Tensor],
    orders: Mapping[str, Tensor],
) -> None:
    """Set weights by name, and masks; without masks new ones are drawn from the loaded weights."""
    ours = run.parameters
    sparse = {p.name for p in run.sparsity.parameters}  # these take over weights and masks as one
    for name in ours.keys() & weights.keys() - sparse:
        ours[name].copy_(run.stored(ours[name], weights[name]))
    if weights and SOFT_PROMPT not in weights:
        redraw(run.model)
    taken = {n: weights[n] for n in sparse & weights.keys()}
    if masks is not None:
        run.sparsity.load_state_dict(masks, taken, run.optimizer.state, explored, orders)
    else:  # topk keeps the largest of the loaded weights, not of the first draw
        run.sparsity.draw(taken, run.optimizer.state)


def _put_moments(run: TrainState, moments: Mapping[nn.Parameter, Mapping[str, Tensor]]) -> None:
    for p, entries in moments.items():
        fresh = run.optimizer.state[p]
        for entry, value in entries.items():
            value = run.stored(p, value)
            if entry in fresh:
                fresh[entry].copy_(value)
            elif entry != "born":  # state that torch makes in its first step (SGD's momentum)
                fresh[entry] = value.to(p.device)
    run.sparsity.mask_state(run.optimizer.state)  # moments may come from a run that was denser


def _had_scale(saved: Scale) -> bool:
    """Whether a checkpoint's loss scale was found by overflows; a run that needed none saves 1."""
    return saved.scale != 1.0 or saved.good_steps > 0 if saved.dynamic is None else saved.dynamic
