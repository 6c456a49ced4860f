"""What a checkpoint holds of a run, and how it is put back: every check comes before the first change."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from modelzoo import version
from modelzoo.config.errors import UserError
from modelzoo.config.model import GPTConfig
from modelzoo.config.trainer import ALL_STATES, Init
from modelzoo.models.adapt import redraw
from modelzoo.models.shapes import SOFT_PROMPT, parameters, with_adapters
from modelzoo.sparsity.ledger import Ledger
from modelzoo.train_state import TrainState


def snapshot(run: TrainState, fingerprint: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What a checkpoint of `run` holds: tensors by file and name, and JSON state. Tied weights are written once."""
    names = {p: n for n, p in run.model.named_parameters()}
    model = {n: run.sparsity.whole(p, p.detach()) for p, n in names.items()} | run.sparsity.state_dict()
    moments = {
        f"{names[p]}/{key}": run.sparsity.whole(p, torch.as_tensor(value))
        for p, entries in run.optimizer.state.items()
        for key, value in entries.items()
        if value is not None
    }
    finite = all(bool(torch.isfinite(p).all()) for p in run.model.parameters())
    scale = run.loss_scale
    return {"model": model, "optimizer": moments}, {
        "version": version.describe(),
        "global_step": run.step,
        "skipped": run.skipped,
        "unmended": run.unmended,
        "tokens": run.tokens,
        "churn": run.churn,
        "flops": [run.ledger.sparse, run.ledger.dense],
        "finite": finite,
        "loss_scale": {"scale": scale.scale, "good_steps": scale.good_steps, "dynamic": scale.dynamic},
        "dtype": run.dtype,
        "optimizer": run.init.optimizer.name,
        "dataset": fingerprint,
        "model": run.init.model.model_dump(mode="json"),
        "sparsity": [g.model_dump(mode="json") for g in run.init.sparsity],
        "seed": run.init.seed,
        **{k: part.model_dump(mode="json") for k in ADAPTERS if (part := getattr(run.init, k)) is not None},
    }


ADAPTERS = ("soft_prompt", "lora")  # sections of trainer.init that add parameters to the model
# Model fields that a resumed run may change: they act on training alone, or not on the values.
TRAINING_ONLY = {
    *("name", "dropout_rate", "embedding_dropout_rate", "attention_dropout_rate", "loss_scaling", "loss_weight"),
    *("lr_adjustment_groups", "compute_eval_metrics", "initializer_range", "max_position_embeddings"),
    *("fold_rope_consts", "attention_kernel", "attention_softmax_fp32"),
}


@torch.no_grad()
def restore(
    run: TrainState, path: str, files, state, fingerprint: str | None, states=ALL_STATES, strict: bool = True
) -> None:
    """Put a loaded checkpoint into `run`. Everything is checked before anything is changed.

    Args:
        fingerprint: of the run's data; None leaves the data unchecked (validation).
        states: which parts to take; the zoo's `--load_checkpoint_states`.
        strict: refuse missing and unknown parameters.

    Raises:
        UserError: names the parameter or part that does not fit, and the way round it.
    """
    weights, saved = dict(run.model.named_parameters()), files["model"]
    saved_masks = {n: x for n, x in saved.items() if n.endswith("_mask")}
    goes_on = "global_step" in states and "dataloader" in states
    absent: set[str] = set()  # weights to start from may lack what fine-tuning adds; a run to go on with may not
    if "model" in states:
        new = set(with_adapters(run.init)) - set(parameters(run.init.model))
        if not goes_on:
            held = {".lora_" in n for n in saved if n == SOFT_PROMPT or ".lora_" in n}
            absent = {n for n in new if (".lora_" in n) not in held}
        _check_names(path, weights.keys() - absent, saved.keys() - saved_masks.keys(), strict, new)
        _check_shapes(path, {n: run.sparsity.shape(p) for n, p in weights.items()}, saved)
        if strict:
            _check_config(path, state["model"], run.init.model)
            _check_scale(path, state.get("lora"), run.init)
    if "sparsity" in states:
        _check_masks(run, path, saved_masks)
    moments = _moments(run, path, files, state, strict, absent) if "optimizer" in states else {}
    if "dataloader" in states and fingerprint is not None and state["dataset"] != fingerprint:
        raise UserError(
            f"{path}: was trained on other data (or another batch size or shuffle seed), so its place in the data "
            "means nothing here; restore the data, or start at its beginning with "
            "--load_checkpoint_states model,optimizer,sparsity"
        )
    sparse = {p.name for p in run.sparsity.parameters}  # these take over weights and masks as one
    if "model" in states:
        for name in weights.keys() & saved.keys() - sparse:
            weights[name].copy_(saved[name])
        if SOFT_PROMPT not in saved:
            redraw(run.model)
    taken = {n: saved[n] for n in sparse & saved.keys()} if "model" in states else {}
    if "sparsity" in states:
        run.sparsity.load_state_dict(saved_masks, taken, run.optimizer.state)
    else:
        # anew, from the loaded weights: topk keeps the largest of these, not of the first draw
        run.sparsity.draw(taken, run.optimizer.state)
    for p, entries in moments.items():
        fresh = run.optimizer.state[p]
        for entry, value in entries.items():
            value = run.sparsity.stored(p, value)
            if entry in fresh:
                fresh[entry].copy_(value)
            elif entry != "born":  # state that torch makes in its first step (SGD's momentum)
                fresh[entry] = value.to(p.device)
    run.sparsity.mask_state(run.optimizer.state)  # moments may come from a run that was denser
    if "grad_scaler" in states and run.loss_scale.dynamic and _had_scale(state["loss_scale"]):
        saved_scale = state["loss_scale"]
        run.loss_scale.scale, run.loss_scale.good_steps = saved_scale["scale"], saved_scale["good_steps"]
    if goes_on:
        run.step, run.skipped, run.tokens = state["global_step"], state["skipped"], state["tokens"]
        run.churn, run.unmended = state.get("churn", 0), state.get("unmended", 0)  # a .mdl has neither
        run.ledger = Ledger(*state.get("flops", ()))
        run.dtype_before = state.get("dtype")  # older checkpoints do not tell


def _had_scale(saved: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's loss scale was found by overflows; a run that needed none saves 1, no place to begin."""
    return saved.get("dynamic", saved["scale"] != 1.0 or saved["good_steps"] > 0)  # older checkpoints do not tell


def _check_names(path: str, ours, theirs, strict: bool, new: set[str]) -> None:
    """`new`: those of ours that a soft prompt or LoRA adds."""
    missing, unknown = sorted(ours - theirs), sorted(theirs - ours)
    if strict and missing and new.issuperset(missing) and not unknown:
        raise UserError(
            f"{path}: lacks {missing[0]}, which trainer.init.soft_prompt or lora adds; to start from its weights, "
            "--load_checkpoint_states model (with sparsity, to keep its masks)"
        )
    if strict and not missing and all("soft_prompt" in n or ".lora_" in n for n in unknown) and unknown:
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
    for key, ours in model.model_dump(mode="json").items():
        if key in saved and saved[key] != ours and key not in TRAINING_ONLY and "initializer" not in key:
            raise UserError(
                f"{path}: was trained with model.{key} {saved[key]}, the config says {ours}; take the checkpoint's "
                "value, or keep yours with --disable_strict_checkpoint_loading"
            )


def _check_scale(path: str, saved: Mapping[str, Any] | None, init: Init) -> None:
    ours = init.lora
    if ours is not None and saved is not None and saved["alpha"] / saved["r"] != ours.scale:
        raise UserError(
            f"{path}: was trained with lora.alpha {saved['alpha']}, the config says {ours.alpha}; take the checkpoint's"
        )


def _check_masks(run: TrainState, path: str, saved: Mapping[str, Tensor]) -> None:
    ours = {f"{p.name}_mask" for p in run.sparsity.parameters}
    if saved and not ours:
        raise UserError(
            f"{path}: is sparse ({len(saved)} masks), the config is dense; keep it sparse with the run's `sparsity` "
            "section, or lift the masks by saying so: --load_checkpoint_states model"
        )
    if ours and not saved:
        raise UserError(
            f"{path}: is dense, the config is sparse; start sparse from its weights with --load_checkpoint_states "
            "model (and init_method: topk to keep the largest)"
        )
    if different := sorted(ours ^ saved.keys()):
        name = different[0].removesuffix("_mask")
        raise UserError(f"{path}: {name} is sparse in one of checkpoint and config only; the sparsity sections differ")
    for group in run.sparsity.groups:
        for p in group.parameters:
            if not group.fits(p, saved[f"{p.name}_mask"]):
                raise UserError(
                    f"{path}: the mask of {p.name} is not of the config's pattern ({group.algorithm.group.pattern}); "
                    "set the checkpoint's, or draw new masks with --load_checkpoint_states model"
                )
        fixed = not group.algorithm.changes and group.algorithm.group.init_method != "from_zeros"
        for name, k in group.counts(0).items() if fixed else ():
            if (live := int(saved[f"{name}_mask"].sum())) != k:
                raise UserError(
                    f"{path}: {name} has {live} live weights, the config's static sparsity asks for {k}; set the "
                    "checkpoint's sparsity, or draw new masks with --load_checkpoint_states model"
                )


def _moments(
    run: TrainState, path: str, files, state, strict: bool, absent: set[str]
) -> dict[nn.Parameter, dict[str, Tensor]]:
    """The checkpoint's optimizer state by parameter, held against the run's."""
    afresh = "start it fresh with --load_checkpoint_states model,sparsity"
    if state["optimizer"] != run.init.optimizer.name:
        raise UserError(
            f"{path}: holds {state['optimizer']} state, the config asks for {run.init.optimizer.name}; {afresh}"
        )
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in files.get("optimizer", {}).items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    found = {}
    for name, p in run.model.named_parameters():
        if not p.requires_grad or name in absent:
            continue
        fresh, theirs = run.optimizer.state.get(p, {}), entries.get(name, {})
        if strict and fresh.keys() - theirs.keys() - {"born"}:
            raise UserError(f"{path}: has no optimizer state for {name}; {afresh}")
        if any(value.dim() and value.shape != run.sparsity.shape(p) for value in theirs.values()):
            raise UserError(f"{path}: the optimizer state of {name} has another shape; {afresh}")
        found[p] = theirs
    return found


def checkpoint_root(init: Init, model_dir: str) -> str:
    return init.checkpoint.checkpoint_root or os.path.join(model_dir, "checkpoints")
