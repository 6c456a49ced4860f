"""What a config means before anything runs: parameters, FLOPs, memory, steps, tokens, paths. No torch."""

import json
import os
from typing import NamedTuple

from modelzoo.config import sparsity as c
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config, DataLoader, Init
from modelzoo.data import format as f
from modelzoo.models.shapes import parameters
from modelzoo.report import amount, size
from modelzoo.sparsity import flops, schedules
from modelzoo.sparsity.select import live_counts, select


class Plan(NamedTuple):
    """The arithmetic of a run. FLOPs are training FLOPs (forward and backward)."""

    total: int  # parameters
    sparse_total: int  # of which under a mask's control
    live: int  # parameters that are on at the start
    steps: int | None
    tokens: int | None
    context: int
    dense: flops.Cost  # per token
    start: flops.Cost  # per token with the first masks
    mean: float  # per token, over the run's schedule
    smallest: dict[str, int]  # parameter names of each sparse weight: live weights at the start
    bytes: dict[str, int]


def groups(init: Init) -> list[tuple[c.SparsityGroup, dict[str, tuple[int, ...]]]]:
    """Each sparsity group with the sizes of the parameters it acts on."""
    shapes = parameters(init.model)
    return [
        (g, {n: shapes[n].size for n in names})
        for g, names in zip(init.sparsity, select(shapes, init.sparsity), strict=True)
    ]


def check(init: Init, max_steps: int | None) -> None:
    """Refuse sparsity that selects nothing, or whose schedule would empty a layer within the run."""
    for group, sizes in groups(init):
        numel = min(_numel(s) for s in sizes.values())
        schedules.check(group, max_steps or 0, numel)
        if group.init_method != "from_zeros":
            at = schedules.value(group.sparsity, 0, group.update)
            empty = [n for n, k in live_counts(sizes, at, group.distribution).items() if k == 0]
            if empty:
                raise UserError(
                    f"trainer.init.sparsity: sparsity {at:g} leaves {empty[0]} {sizes[empty[0]]} without a live weight; "
                    "lower it"
                )


def make(config: Config) -> Plan:
    """The plan of `config`. Reads no data beyond manifests."""
    init, fit = config.trainer.init, config.trainer.fit
    m = init.model
    shapes = parameters(m)
    chosen = groups(init)
    steps, msl = total_steps(config), _context(config)
    batch = fit.train_dataloader.batch_size if fit else None
    weights = {n: s.numel for n, s in shapes.items() if s.kind == "linear"}
    cost = lambda live: flops.per_token(live, m.num_hidden_layers, m.inner_dim, msl, m.hidden_size, m.vocab_size)
    live = {
        n: k
        for group, sizes in chosen
        for n, k in live_counts(sizes, schedules.value(group.sparsity, 0, group.update), group.distribution).items()
    }
    dense, start = cost(weights), cost({**weights, **{n: k for n, k in live.items() if n in weights}})
    total = sum(s.numel for s in shapes.values())
    sparse_total = sum(_numel(s) for _, sizes in chosen for s in sizes.values())
    return Plan(
        total,
        sparse_total,
        total - sparse_total + sum(live.values()),
        steps,
        steps * batch * msl if steps and batch else None,
        msl,
        dense,
        start,
        _mean_cost(chosen, weights, cost, dense.total, steps),
        live,
        _memory(config, total, sparse_total, msl),
    )


def _mean_cost(chosen, weights, cost, dense: float, steps: int | None) -> float:
    """Training FLOPs per token averaged over the run: schedules sampled at 200 points, RigL's update steps included."""
    points = [round(i * (steps or 0) / 200) for i in range(200)] if steps else [0]
    total = 0.0
    for step in points:
        live = dict(weights)
        for group, sizes in chosen:
            at = step if group.algorithm in ("gmp", "set", "rigl") else 0
            s = min(
                max(schedules.value(group.sparsity, _last_update(group, at), group.update), 0.0), group.max_sparsity
            )
            live.update({n: k for n, k in live_counts(sizes, s, group.distribution).items() if n in weights})
        total += cost(live).total
    mean = total / len(points)
    for group, _ in chosen:
        if group.algorithm == "rigl":
            mean = flops.rigl_average(mean, dense, (group.update and group.update.freq) or 1)
    return mean


def _last_update(group: c.SparsityGroup, step: int) -> int:
    if group.update is None or group.update.steps is not None:
        done = [s for s in (group.update.steps if group.update else (step,)) if s <= step]
        return max(done, default=0)
    freq, start, stop = group.update.freq or 1, group.update.start, group.update.stop
    step = step if stop is None else min(step, stop - 1)
    return start + (step - start) // freq * freq if step >= start else 0


def total_steps(config: Config) -> int | None:
    """Optimizer steps of the run; None where it depends on data that is not here."""
    loop, fit = config.trainer.init.loop, config.trainer.fit
    if loop.max_steps or loop.num_steps:
        return loop.max_steps or loop.num_steps
    if loop.num_epochs:
        per_epoch = loop.steps_per_epoch
        if per_epoch is None and fit is not None:
            examples = fit.train_dataloader.num_samples or _examples(fit.train_dataloader)
            per_epoch = examples // fit.train_dataloader.batch_size if examples else None
        return loop.num_epochs * per_epoch if per_epoch else None
    return None


def folders(loader: DataLoader) -> list[str]:
    return [d for part in loader.mixture or () for d in part.data_dir] if loader.mixture else list(loader.data_dir)


def manifest(folder: str) -> dict:
    try:
        with open(os.path.join(folder, f.MANIFEST), encoding="utf-8") as file:
            found = json.load(file)
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _examples(loader: DataLoader) -> int | None:
    counts = [manifest(d).get("n_examples") for d in folders(loader)]
    return sum(counts) if counts and all(isinstance(n, int) for n in counts) else None


def _context(config: Config) -> int:
    fit = config.trainer.fit
    if fit is not None:
        known = [manifest(d).get("msl") for d in folders(fit.train_dataloader)]
        if fit.train_dataloader.max_sequence_length or known and isinstance(known[0], int):
            return fit.train_dataloader.max_sequence_length or known[0]
    return config.trainer.init.model.max_position_embeddings


def _memory(config: Config, total: int, sparse_total: int, msl: int) -> dict[str, int]:
    """Bytes of a training run on one device. Activations are an estimate: what backward needs of a micro-batch."""
    init, fit = config.trainer.init, config.trainer.fit
    m, half = init.model, 2 if init.precision.enabled else 4
    moments = 2 if init.optimizer is None or init.optimizer.name != "SGD" else bool(init.optimizer.value.momentum)
    dynamic = any(g.algorithm != "static" for g in init.sparsity)
    micro = 0
    if fit is not None:
        asked = fit.train_dataloader.micro_batch_size
        micro = asked if isinstance(asked, int) else fit.train_dataloader.batch_size // init.loop.grad_accum_steps
    per_token = m.num_hidden_layers * (
        8 * m.hidden_size + half * (2 * m.hidden_size + 5 * m.inner_dim + 2 * m.filter_size)
    )
    return {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 4 * moments * total,
        "masks": (2 + 4 * dynamic) * sparse_total,
        "activations (estimate)": micro * msl * per_token,
    }


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def text(config: Config) -> str:
    """The plan as a person reads it."""
    init, fit = config.trainer.init, config.trainer.fit
    p, m = make(config), init.model
    ratio = p.dense.total / p.start.total
    lines = [
        f"model      {m.name}: {m.num_hidden_layers} layers x {m.hidden_size}, {m.num_heads} heads of {m.head_dim}, ffn {m.filter_size}, "
        f"vocabulary {m.vocab_size}, {m.position_embedding_type or 'no'} positions",
        f"parameters {p.total:,} in all, {p.live:,} live at the start"
        + (
            f" ({p.sparse_total:,} under masks, {p.sparse_total - p.total + p.live:,} of them live)"
            if init.sparsity
            else " (dense)"
        ),
    ]
    for group, sizes in groups(init):
        s = schedules.value(group.sparsity, 0, group.update)
        end = schedules.value(group.sparsity, _last_update(group, p.steps or 0), group.update)
        lines.append(
            f"sparsity   {group.algorithm}, {group.init_method} masks, {group.distribution}: {s:.4g}"
            + (f" to {end:.4g}" if end != s else "")
            + f" over {len(sizes)} weights"
        )
    lines += [
        f"FLOPs      per token at {p.context} tokens of context: dense {amount(p.dense.total)}, with the first masks {amount(p.start.total)} "
        f"(dense / sparse = {ratio:.3f}x)",
        f"           of the sparse: weights {amount(p.start.linear)}, attention {amount(p.start.attention)}, head {amount(p.start.head)}",
    ]
    if p.tokens:
        lines.append(
            f"           in all: dense {p.tokens * p.dense.total:.4g}, as scheduled {p.tokens * p.mean:.4g} "
            f"({p.dense.total / p.mean:.3f}x)"
        )
    lines.append("           counted, not measured: off the CS-2, unstructured masks save no time")
    lines.append(
        f"memory     {size(sum(p.bytes.values()))}: " + ", ".join(f"{k} {size(v)}" for k, v in p.bytes.items() if v)
    )
    if fit is not None:
        accum = init.loop.grad_accum_steps
        lines.append(
            f"steps      {p.steps if p.steps else 'unknown (give loop.max_steps, or num_epochs with the data here)'} of "
            f"{fit.train_dataloader.batch_size} x {p.context} tokens"
            + (f" in {accum} micro-batches" if accum > 1 else "")
            + (f": {p.tokens:,} tokens" if p.tokens else "")
        )
        loaders = [("train", fit.train_dataloader), *[("val", v) for v in fit.val_dataloader]]
        for name, loader in loaders:
            for folder in folders(loader):
                lines.append(f"data       {name}: {_state(folder)}")
    return "\n".join(lines)


def _state(folder: str) -> str:
    if not os.path.exists(folder):
        return f"{folder}  MISSING"
    if os.path.isfile(folder):
        return f"{folder}  found"
    shards = [n for n in os.listdir(folder) if n.endswith(f.SHARD_SUFFIXES)]
    facts = manifest(folder)
    return f"{folder}  found, {len(shards)} shards" + (
        f", {facts['n_examples']:,} examples" if "n_examples" in facts else ""
    )
