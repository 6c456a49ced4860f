"""What a checkpoint holds of a run, and how it is put back: every check comes before the first change."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Init
from modelzoo.loop import Run


def snapshot(run: Run, fingerprint: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What a checkpoint of `run` holds: tensors by file and name, and JSON state. Tied weights are written once."""
    names = {p: n for n, p in run.model.named_parameters()}
    model = {n: p.detach() for p, n in names.items()} | run.sparsity.state_dict()
    moments = {
        f"{names[p]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for p, entries in run.optimizer.state.items()
        for key, value in entries.items()
        if value is not None
    }
    finite = all(bool(torch.isfinite(p).all()) for p in run.model.parameters())
    scale = run.loss_scale
    return {"model": model, "optimizer": moments}, {
        "global_step": run.step,
        "skipped": run.skipped,
        "tokens": run.tokens,
        "finite": finite,
        "loss_scale": {"scale": scale.scale, "good_steps": scale.good_steps},
        "optimizer": run.init.optimizer.name,
        "dataset": fingerprint,
        "model": run.init.model.model_dump(mode="json"),
        "sparsity": [g.model_dump(mode="json") for g in run.init.sparsity],
        "seed": run.init.seed,
    }


ALL_STATES = ("model", "optimizer", "sparsity", "grad_scaler", "dataloader", "global_step")


@torch.no_grad()
def restore(run: Run, path: str, files, state, fingerprint: str | None, states=ALL_STATES, strict: bool = True) -> None:
    """Put a loaded checkpoint into `run`. Everything is checked before anything is changed.

    Args:
        fingerprint: of the run's data; None leaves the data unchecked (validation).
        states: which parts to take; the zoo's `--load_checkpoint_states`.
        strict: refuse missing and unknown parameters.

    Raises:
        UserError: names the parameter or part that does not fit, and the way round it.
    """
    weights = dict(run.model.named_parameters())
    masks = {f"{p.name}_mask" for p in run.sparsity.parameters}
    saved = files["model"]
    saved_masks = {n for n in saved if n.endswith("_mask")}
    _check_names(path, weights.keys(), saved.keys() - saved_masks, strict)
    for name, p in weights.items():
        if name in saved and saved[name].shape != p.shape:
            raise UserError(
                f"{path}: {name} is {list(saved[name].shape)}, the config's model has {list(p.shape)}; "
                "this is a checkpoint of another model"
            )
    if "sparsity" in states and masks != saved_masks:
        raise UserError(_mask_mismatch(path, masks, saved_masks))
    if "optimizer" in states and state["optimizer"] != run.init.optimizer.name:
        raise UserError(
            f"{path}: holds {state['optimizer']} state, the config asks for {run.init.optimizer.name}; "
            "start it fresh with --load_checkpoint_states model,sparsity"
        )
    if "dataloader" in states and fingerprint is not None and state["dataset"] != fingerprint:
        raise UserError(
            f"{path}: was trained on other data (or another batch size or shuffle seed), so its place in the data "
            "means nothing here; restore the data, or start at its beginning with "
            "--load_checkpoint_states model,optimizer,sparsity"
        )
    for name, p in weights.items():
        if name in saved:
            p.copy_(saved[name])
    if "sparsity" in states:
        run.sparsity.load_state_dict({n: saved[n] for n in saved_masks})
    else:
        run.sparsity.mask_weights()
    if "optimizer" in states:
        _restore_optimizer(run, path, files["optimizer"])
    if "grad_scaler" in states and run.loss_scale.dynamic:
        run.loss_scale.scale, run.loss_scale.good_steps = (
            state["loss_scale"]["scale"],
            state["loss_scale"]["good_steps"],
        )
    if "global_step" in states and "dataloader" in states:
        run.step, run.skipped, run.tokens = state["global_step"], state["skipped"], state["tokens"]


def _check_names(path: str, ours, theirs, strict: bool) -> None:
    missing, unknown = sorted(ours - theirs), sorted(theirs - ours)
    if strict and (missing or unknown):
        what = [
            f"lacks {missing[0]} and {len(missing) - 1} more" if len(missing) > 1 else f"lacks {n}" for n in missing[:1]
        ]
        what += [f"has {n}, which the config's model has not" for n in unknown[:1]]
        raise UserError(
            f"{path}: {' and '.join(what)}; this is a checkpoint of another model "
            "(--disable_strict_checkpoint_loading takes what fits)"
        )


def _mask_mismatch(path: str, ours: set[str], theirs: set[str]) -> str:
    if theirs and not ours:
        return (
            f"{path}: is sparse ({len(theirs)} masks), the config is dense; keep it sparse with the run's `sparsity` section, or "
            "lift the masks by saying so: --load_checkpoint_states model"
        )
    if ours and not theirs:
        return (
            f"{path}: is dense, the config is sparse; start sparse from its weights with --load_checkpoint_states model "
            "(and init_method: topk to keep the largest)"
        )
    name = sorted(ours ^ theirs)[0].removesuffix("_mask")
    return f"{path}: {name} is sparse in one of checkpoint and config only; the sparsity sections differ"


def _restore_optimizer(run: Run, path: str, saved: Mapping[str, Tensor]) -> None:
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    for name, p in run.model.named_parameters():
        fresh = run.optimizer.state[p]
        if name not in entries or not fresh.keys() <= entries[name].keys() | {"born"}:
            if fresh:
                raise UserError(
                    f"{path}: has no optimizer state for {name}; start it fresh with "
                    "--load_checkpoint_states model,sparsity"
                )
            continue
        for entry, value in entries[name].items():
            if entry in fresh:
                fresh[entry].copy_(value)
            elif entry != "born":
                fresh[entry] = value.to(p.device)


def checkpoint_root(init: Init, model_dir: str) -> str:
    return init.checkpoint.checkpoint_root or os.path.join(model_dir, "checkpoints")
