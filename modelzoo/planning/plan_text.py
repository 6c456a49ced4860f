"""The plan as a person reads it. No torch."""

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence

from modelzoo.backends import arithmetic
from modelzoo.config.sections.model import GPTConfig
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.trainer import Config, Init
from modelzoo.data.folder import list_shards, read_manifest
from modelzoo.data.manifest import list_folders, list_loaders
from modelzoo.models.shapes import find_lora_targets
from modelzoo.optim.lr import rate_at
from modelzoo.planning import lengths
from modelzoo.planning.batches import note_batches, note_validation
from modelzoo.planning.devices_text import describe_devices
from modelzoo.planning.memory import DENSE
from modelzoo.planning.plan import Plan, make_plan
from modelzoo.planning.stored import count_stored, group_sizes
from modelzoo.planning.traffic import name_asking
from modelzoo.progress import format_amount, format_size
from modelzoo.sparsity import flops, schedules
from modelzoo.sparsity.select import base_ratios
from modelzoo.training.runs.length import count_micro_batches

WORTHWHILE = 0.65  # share of single weights off from which computing the live ones alone pays on CPUs


def describe_plan(config: Config, target: str = "auto", devices: int | None = None, plan: Plan | None = None) -> str:
    """The plan as a person reads it, for the command line's `target`; with `devices`, of so many too.

    Args:
        plan: of this config and target, where the caller has made it.
    """
    init, p = config.trainer.init, plan or make_plan(config, target)
    lines = _describe_model(config, p)
    for group, sizes in group_sizes(init):
        lines += _describe_group(group, sizes, p.steps or 0)
    lines += [
        *_describe_flops(init, p),
        *_label("arithmetic", arithmetic.describe(target, init.backend, init.precision)),
        *_describe_memory(init, p),
        *(describe_devices(config, p, target, devices) if devices else ()),
        *_describe_steps(config, p),
        *(f"data       {use}: {_describe_path(path, use != 'checkpoint')}" for use, path in _list_paths(config)),
        *(f"note       {note}" for note in _list_notes(config, p)),
    ]
    return "\n".join(lines)


def describe_as_json(config: Config, p: Plan, notes: Sequence[str]) -> str:
    """The plan's figures for a program: FLOPs are training FLOPs, memory is in bytes; null where nothing is known."""
    notes = [note.removeprefix("note").strip() for note in notes]
    notes += _list_notes(config, p)
    paths = [{"use": use, "path": path, "found": os.path.exists(path)} for use, path in _list_paths(config)]
    found = {
        "parameters": {"total": p.total, "live": p.live, "masked": p.sparse_total, "trained": p.trained},
        "flops_per_token": {"dense": p.dense.total, "first_masks": p.start.total, "mean": p.mean},
        "flops": {"dense": p.tokens * p.dense.total, "as_scheduled": p.tokens * p.mean} if p.tokens else None,
        "steps": p.steps, "tokens": p.tokens, "context": p.context, "memory": p.bytes, "data": paths, "notes": notes,
    }  # fmt: skip
    return json.dumps(found, indent=2)


def _list_notes(config: Config, p: Plan) -> list[str]:
    """What the run will do that its config hardly means."""
    found = note_batches(config) + note_validation(config)
    return found + (lengths.note_lengths(config.trainer.init, p.steps) if p.steps else [])


def describe_heads(m: GPTConfig) -> str:
    """How many heads a model has, and how many of keys and values if these are fewer."""
    return f"{m.num_heads} heads" + (f" ({m.kv_heads} of keys and values)" if m.kv_heads != m.num_heads else "")


def _describe_model(config: Config, p: Plan) -> list[str]:
    """The model and its parameters, and what of them trains on what."""
    init, m = config.trainer.init, config.trainer.init.model
    live = p.sparse_total - p.total + p.live
    masked = f"{p.live:,} live at the start ({p.sparse_total:,} under masks, {live:,} of them live)"
    lines = [
        f"model      {m.name}: {m.num_hidden_layers} layers x {m.hidden_size}, {describe_heads(m)} of {m.head_dim}, "
        f"ffn {m.filter_size}, vocabulary {m.vocab_size}, {m.position_embedding_type or 'no'} positions",
        f"parameters {p.total:,} in all, {masked if init.sparsity else 'dense'}",
    ]
    if (tune := config.trainer.finetune) is not None:
        masks = tune.model_dump(mode="json")["masks"] or "as the config's"
        seeds = ", ".join(map(str, tune.seeds or (init.seed,)))
        lines.append(
            f"fine-tunes {tune.task}: masks {masks}, {p.steps or '?'} steps of {tune.batch_size} examples, "
            f"folds {', '.join(map(str, tune.folds))}, seeds {seeds}"
        )
    if init.soft_prompt is not None or init.lora is not None:
        lines.append(f"trains     {_describe_adapters(init)}: {p.trained:,} parameters")
    return lines


def _describe_group(group: SparsityGroup, sizes: Mapping[str, tuple[int, ...]], steps: int) -> list[str]:
    """One sparsity group, from its first masks to those after `steps` steps."""
    start, end = schedules.held(group, 0), schedules.held(group, steps)
    counted = group.init_method == "from_zeros"
    lines = [
        f"sparsity   {group.algorithm}, {group.init_method} masks, {group.distribution}"
        + (f", {group.pattern}" if group.pattern else "")
        + (f": from the weights, counted here as {start:.4g}" if counted else f": {start:.4g}")
        + (f" to {end:.4g}" if end != start else "")
        + f" over {len(sizes)} weights"
    ]
    if group.regrow_warmup:
        lines.append(f"           regrown weights warm up over {group.regrow_warmup:,} steps of their own")
    if group.mup_base_density is not None:
        lines.append(f"           mup_base_density {group.mup_base_density:g}: {_describe_mup(group, sizes)}")
    return lines


def _describe_flops(init: Init, p: Plan) -> list[str]:
    """Training FLOPs per token and in all, and where the sparsity that they count is real."""
    per_token = f"FLOPs      per token at {p.context} tokens of context: "
    if init.sparsity:
        lines = [
            f"{per_token}dense {format_amount(p.dense.total)}, with the first masks {format_amount(p.start.total)} "
            f"(dense / sparse = {p.dense.total / p.start.total:.3f}x)",
            f"           of the sparse: {_describe_cost(p.start)}",
        ]
    else:
        lines = [f"{per_token}{format_amount(p.dense.total)}: {_describe_cost(p.dense)}"]
    if p.tokens:
        lines.append(
            f"           in all: dense {p.tokens * p.dense.total:.4g}"
            + (f", as scheduled {p.tokens * p.mean:.4g} ({p.dense.total / p.mean:.3f}x)" if init.sparsity else "")
        )
    return [*lines, *(_describe_real(init) if init.sparsity else ())]


def _describe_memory(init: Init, p: Plan) -> list[str]:
    needs = ", ".join(f"{k} {format_size(v)}" for k, v in p.bytes.items() if v)
    lines = [f"memory     {format_size(sum(p.bytes.values()))}: {needs}"]
    asked = sum(math.prod(s) for g, sizes in group_sizes(init) if g.copies_dense_gradient for s in sizes.values())
    if asked and not init.base_frozen:
        size, more = format_size(4 * asked), format_size(p.bytes[DENSE])
        text = f"{name_asking(init)} update steps have {size} of dense gradients, and take {more} more"
        lines.append(f"           {text}")
    return lines


def _describe_steps(config: Config, p: Plan) -> list[str]:
    """The run's length, and its learning rate on the way."""
    init, fit, lines = config.trainer.init, config.trainer.fit, []
    if fit is not None:
        accum = count_micro_batches(config)
        lines.append(
            f"steps      {p.steps or 'unknown (give loop.max_steps, or num_epochs with the data here)'} of "
            f"{fit.train_dataloader.batch_size} x {p.context} tokens"
            + (f" in {accum} micro-batches" if accum > 1 else "")
            + (f": {p.tokens:,} tokens" if p.tokens else "")
        )
    if p.steps and init.optimizer is not None:
        first, middle, last = (rate_at(init, s) for s in (0, p.steps // 2, p.steps - 1))
        lines.append(
            f"rate       {first:.3g} at 0 % of the run, {middle:.3g} at 50 %, {last:.3g} at 100 % (its last step)"
        )
        for name, group in (init.model.lr_adjustment_groups or {}).items():
            lines.append(f"           times {group.scale:.3g} for {name} (model.lr_adjustment_groups)")
    return lines


def _label(label: str, lines: list[str]) -> list[str]:
    """`lines` under one label, which is before the first."""
    return [f"{label if i == 0 else '':10} {line}" for i, line in enumerate(lines)]


def _describe_mup(group: SparsityGroup, sizes: Mapping[str, tuple[int, ...]]) -> str:
    """What `mup_base_density` multiplies, over the group's weights."""
    ratios = base_ratios(group, sizes, schedules.held(group, 0)).values()

    def factors(power: float) -> str:
        low, high = (f"{m**power:.3g}" for m in (max(ratios), min(ratios)))
        return low if low == high else f"{low} to {high}"

    return f"initial standard deviations x {factors(-0.5)}, learning rates x {factors(-1)}"


def _describe_real(init: Init) -> list[str]:
    """Where the sparsity of `init` is real: what the FLOPs above are, and what is stored and computed off the CS-2."""
    blocked = [(g, sizes) for g, sizes in group_sizes(init) if g.may_pack]
    counted = "           counted, not measured: off the CS-2, "
    halved = sum(len(sizes) for g, sizes in group_sizes(init) if g.may_compress)
    text = f"           ({halved} weights are 2:4: NVIDIA GPUs from Ampere on multiply them compressed, and slower)"
    on_gpus = [text] if halved else []
    if not blocked:
        hint = "           (storage: packed computes the live ones alone; -m bench times both on this machine)"
        pays = any(g.pattern is None and schedules.held(g, 0) >= WORTHWHILE for g in init.sparsity)
        hints = [hint] if pays and not arithmetic.uses_amx(init.precision) else []
        return [f"{counted}these masks save no time: weights are stored and computed whole", *hints, *on_gpus]
    count, others = sum(len(sizes) for _, sizes in blocked), sum(len(sizes) for _, sizes in group_sizes(init))
    auto = any(g.storage == "auto" for g, _ in blocked)
    lines = [
        f"{counted}{count} weights are stored and computed as live blocks"
        + (" where that is faster" if auto else "")
        + (f", {others - count} whole under masks" if others > count else "")
    ]
    if auto:
        less, masks = count_stored(init, ("packed",))
        most, fewer = count_stored(init, ("packed", "auto"))
        moments = 2 if init.optimizer is None or init.optimizer.name != "SGD" else bool(init.optimizer.value.momentum)
        saved = (most - less) * 4 * (1 if init.base_frozen else 2 + moments) + masks - fewer
        lines.append(f"           (the run says which; then {format_size(saved)} less memory than below)")
    lines += on_gpus
    return [*lines, "           measured: -m bench times this config's step, dense and in patterns, on this machine"]


def _describe_adapters(init: Init) -> str:
    what = []
    if (prompt := init.soft_prompt) is not None:
        what.append(f"soft prompt of {prompt.tokens} vectors ({prompt.place}, from {prompt.init})")
    if (lora := init.lora) is not None:
        what.append(f"LoRA of rank {lora.r} on {len(find_lora_targets(init.model, lora))} weights")
    how = "the model is frozen, no weight gradients" if init.base_frozen else "with the whole model"
    return f"{' and '.join(what)}, {how}"


def _describe_cost(cost: flops.Cost) -> str:
    linear, attention, head = (format_amount(x) for x in (cost.linear, cost.attention, cost.head))
    return f"weights {linear}, attention {attention}, head {head}"


def _list_paths(config: Config) -> list[tuple[str, str]]:
    """Every path that the config reads, with what it is for, once each."""
    t = config.trainer
    found = [(use, d) for use, loader in list_loaders(config) for d in list_folders(loader)]
    found += [("checkpoint", s.ckpt_path) for s in (t.fit, t.validate_) if s is not None and s.ckpt_path]
    found += [("checkpoint", path) for path in (t.validate_all.ckpt_paths if t.validate_all else ())]
    return list(dict.fromkeys(found))


def _describe_path(path: str, shards: bool) -> str:
    """Whether a path is there, and what its manifest counts; `shards`: it is data. `problems` says what is wrong."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{path}  MISSING"
    manifest, count = read_manifest(path), 0
    examples = manifest.get("n_examples")
    if shards:
        count = len(list_shards(path)) if stat.S_ISDIR(found.st_mode) else 0
    return (
        f"{path}  found"
        + (f", {count} shards" if count else "")
        + (f", {examples:,} examples" if isinstance(examples, int) else "")
        + _describe_counted(manifest)
    )


def _describe_counted(manifest: Mapping[str, object]) -> str:
    """What share of an example's places counts for the loss, where it is not all: the rest is prompts and padding."""
    examples, msl, counted = (manifest.get(key) for key in ("n_examples", "msl", "loss_tokens"))
    if not (isinstance(examples, int) and isinstance(msl, int) and isinstance(counted, int) and examples * msl > 0):
        return ""
    share = counted / (examples * msl)
    return f", {share:.1%} of whose tokens count for loss" if share < 0.9995 else ""
