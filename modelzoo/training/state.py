"""Make a checkpoint's content from a run, and restore a run from it: every check comes before the first change."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.config.model import GPTConfig, find_difference
from modelzoo.config.trainer import ALL_STATES, Init
from modelzoo.models.adapt import redraw
from modelzoo.models.shapes import list_parameters, list_with_adapters
from modelzoo.names import SOFT_PROMPT, is_adapter, is_lora, is_mask, name_mask, name_weight
from modelzoo.sparsity.group import Group
from modelzoo.sparsity.ledger import Ledger
from modelzoo.train_state import Reduction, TrainState
from modelzoo.training.checkpoint_state import (
    CheckpointState,
    LogFacts,
    LoRAFacts,
    Scale,
    name_reordering,
    record_config,
)
from modelzoo.training.required import require_optimizer

# A run that goes on takes all of its checkpoint (`resume.choose_start`); parts of it start another run.
EXPLORED = "explored"  # the file of the weights that were ever live; runs whose masks stay have none
ORDERS = "orders"  # the file of the orders of inputs in which blocks are formed; other runs have none
OTHER = "another -o, --checkpoint_path and --load_checkpoint_states"
Files = Mapping[str, Mapping[str, Tensor]]  # by file stem, then by name


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
        absent = _check_model(run, path, weights, state, resumes, strict)
    if "sparsity" in states:
        _check_masks(run, path, masks, files.get(ORDERS, {}), state.global_step - state.skipped if resumes else None)
    moments = _moments(run, path, files, state, strict, absent) if "optimizer" in states else {}
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


def _check_model(
    run: TrainState, path: str, saved: Mapping[str, Tensor], state: CheckpointState, resumes: bool, strict: bool
) -> set[str]:
    """Check the checkpoint's weights against the model; returns the adapters' parameters that it may lack."""
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


def _check_masks(
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


def _moments(
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
