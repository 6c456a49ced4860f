"""Make a checkpoint's content from a run, and restore a run from it: every check comes before the first change."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import ALL_STATES
from modelzoo.models.adapt import redraw
from modelzoo.names import SOFT_PROMPT, is_mask, name_mask
from modelzoo.sparsity.ledger import Ledger
from modelzoo.train_state import Reduction, TrainState
from modelzoo.training.checkpoint_state import (
    CheckpointState,
    LogFacts,
    Scale,
    name_reordering,
    record_config,
)
from modelzoo.training.compatibility import OTHER, Files, check_masks, check_model, read_moments

EXPLORED = "explored"  # the file of the weights that were ever live; runs whose masks stay have none
ORDERS = "orders"  # the file of the orders of inputs in which blocks are formed; other runs have none


class Streamed(Mapping[str, Tensor]):
    """A run's tensors by name as they are when each is read: a packed one is made whole then, and not kept."""

    def __init__(self, make: Mapping[str, Callable[[], Tensor]]):
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        return self._make[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


def list_tensors(run: TrainState) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of a checkpoint of `run` by file and name. Tied weights are written once.

    Read them before the run goes on, and keep none: all of them whole may not fit where the run is.
    Where each rank holds a share, all must call it, and rank 0 alone has the tensors.
    """
    names = {p: n for n, p in run.parameters.items()}
    model = {n: partial(run.whole, p, p.detach()) for p, n in names.items()}
    model |= {name_mask(p.name): partial(getattr, p, "mask") for p in run.sparsity.parameters}
    moments = {
        f"{names[p]}/{key}": partial(run.whole, p, torch.as_tensor(value))
        for p, entries in run.optimizer.state.items()
        if isinstance(p, nn.Parameter)  # all are; torch types the keys as tensors
        for key, value in entries.items()
        if value is not None
    }
    explored = {n: partial(Tensor.detach, bits) for n, bits in run.sparsity.explored.bits.items()}
    orders = {n: partial(Tensor.detach, order) for n, order in run.sparsity.orders().items()}
    files = {"model": model, "optimizer": moments}
    files |= {name: found for name, found in ((EXPLORED, explored), (ORDERS, orders)) if found}
    return {stem: _collect(run, make) for stem, make in files.items()}


def snapshot(
    run: TrainState, fingerprint: str, logs: Mapping[str, LogFacts] = MappingProxyType({})
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """What a checkpoint of `run` holds: `list_tensors`, and JSON state.

    Args:
        fingerprint: of the data. logs: how long each log is now, by file name.
    """
    scale = run.loss_scale
    if run.recorded is None:
        run.recorded = record_config(run.config)
    state = CheckpointState.of(
        run.init,
        global_step=run.step,
        skipped=run.skipped,
        unmended=run.unavoidable,
        tokens=run.tokens,
        churn=run.churn,
        flops=[run.ledger.sparse, run.ledger.dense],
        finite=run.is_finite(),
        loss_scale={"scale": scale.scale, "good_steps": scale.good_steps, "dynamic": scale.dynamic},
        dtype=run.dtype,
        slices=run.reduction.slices,
        threads=run.reduction.threads,
        dataset=fingerprint,
        run=run.origin,
        logs={name: facts.model_dump() for name, facts in logs.items()},
        unassessed=run.unassessed,
        **run.recorded,
    )
    return list_tensors(run), state.as_json()


def _collect(run: TrainState, make: Mapping[str, Callable[[], Tensor]]) -> Mapping[str, Tensor]:
    """Tensors to be read one by one. Those of shares are on the host of rank 0 at once, and nowhere else."""
    if run.shares is None:
        return Streamed(make)
    first = run.shares.ranks.first
    return {name: x.cpu() if first else x.new_empty(0, device="cpu") for name, x in Streamed(make).items()}


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
