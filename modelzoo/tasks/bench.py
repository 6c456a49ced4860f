"""`-m bench`: measure which sparsity pattern makes training steps of a config's model faster on this machine."""

import math
import os
import shlex
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from modelzoo.backends import peaks
from modelzoo.backends.graphs import WARM
from modelzoo.backends.peaks import Peak
from modelzoo.backends.select import Choice, select_device
from modelzoo.config.errors import UserError
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.trainer import Config
from modelzoo.data import manifest
from modelzoo.host import load_average
from modelzoo.planning import plan
from modelzoo.planning.stored import group_sizes
from modelzoo.progress import Progress, format_amount, format_size
from modelzoo.sparsity import schedules
from modelzoo.sparsity.select import check_sides
from modelzoo.train_state import TrainState
from modelzoo.training.build import Options, build_run
from modelzoo.training.runs.length import count_micro_batches, total_steps

PATTERNS = (
    {"storage": "masked"},
    {"storage": "packed"},
    {"block": (32, 1), "storage": "packed"},
    {"block": (32, 32), "storage": "packed"},
    {"block": (64, 64), "storage": "packed"},
    {"shared_inputs": 4, "storage": "packed"},
)
TOKENS = 4096  # a step on more tokens takes longer and gives the same ratios
WEIGHTS = 60_000_000  # a larger model is measured on its first layers: each variant has its own weights
SECONDS, ROUNDS, FEWEST = 60.0, 15, 5


def bench_patterns(config: Config, options: Options, params: str) -> None:
    """Time a training step of `config` dense, under unstructured masks and in patterns, and print which is fastest.

    Args:
        params: the config's path, for the command to run next.

    Raises:
        UserError: the config cannot train, or the target is no device of this machine.
    """
    init = config.trainer.init
    choice = select_device(options.target, init)
    level, filters = _level(config)
    config, cut = _cut(config)
    batch, parts = _batch(config)
    rows, length = batch["input_ids"].shape
    load, cores = load_average(), os.cpu_count() or 1
    crowded = load is not None and load > cores and not choice.backend.asynchronous
    busy = "; the machine is busy, measure again when it is not" if crowded else ""
    at = "" if load is None else f" at load {load:.1f}"
    print(f"{choice.describe()}\nmachine    {cores} cores{at}{busy}")
    print(
        f"step       {rows} x {length} tokens{f' in {parts} micro-batches' if parts > 1 else ''}, {cut}, "
        f"sparsity {level:.4g}"
    )
    own = [{"block": g.block, "shared_inputs": g.shared_inputs} for g in init.sparsity if g.pattern and not g.nm]
    variants, skipped = {"dense": _run(config, choice, ())}, []
    for pattern in (*PATTERNS, *({**p, "storage": "packed"} for p in own)):
        group = SparsityGroup.model_validate({"sparsity": level, "param_filter": filters, **pattern})
        name = group.pattern or ("unstructured" if group.storage == "masked" else f"storage: {group.storage}")
        try:
            for _, sizes in group_sizes(init.model_copy(update={"sparsity": (group,)})):
                check_sides(group, sizes)
            variants[name] = _run(config, choice, (group,))
        except UserError as e:
            skipped.append(f"left out   {name}: {e}")
    steps: dict[str, Callable] = {}
    for name, run in variants.items():  # a backend for each: a GPU's replays the steps of one run
        backend = select_device(options.target, init).backend
        steps[name] = lambda b=backend, r=run: b.train_step(r, batch, parts)
    times = _rounds(steps, WARM + 1 if choice.backend.asynchronous else 1)
    peak = peaks.find_peak(choice.backend)
    flops = {n: r.ledger.sparse / r.step for n, r in variants.items()}
    print(_table(times, {n: _bytes(r) for n, r in variants.items()}, rows * length, flops, peak))
    print("\n".join([*skipped, *_advice(times, params)]))


def _level(config: Config) -> tuple[float, tuple[str, ...] | None]:
    """The sparsity to measure at, which is that of the config's first group at the end, and its filter."""
    groups = config.trainer.init.sparsity
    if not groups:
        return 0.75, None
    level = schedules.held(groups[0], total_steps(config) or 0)
    return (level if 0 < level < 1 else 0.75), groups[0].param_filter


def _cut(config: Config) -> tuple[Config, str]:
    """The config with as many layers as fit in memory several times over, and their number as text."""
    m = config.trainer.init.model
    per_layer = plan.make_plan(config).total / m.num_hidden_layers
    layers = max(1, min(m.num_hidden_layers, int(WEIGHTS // per_layer)))
    layers_text = f"layers: {layers}" if layers == m.num_hidden_layers else f"layers: {layers} of {m.num_hidden_layers}"
    return _with_init(config, model=m.model_copy(update={"num_hidden_layers": layers})), layers_text


def _with_init(config: Config, **sections) -> Config:
    trainer = config.trainer
    return config.model_copy(
        update={"trainer": trainer.model_copy(update={"init": trainer.init.model_copy(update=sections)})}
    )


def _run(config: Config, choice: Choice, groups: tuple[SparsityGroup, ...]) -> TrainState:
    return build_run(_with_init(config, sparsity=groups), choice)


def _batch(config: Config) -> tuple[dict[str, Tensor], int]:
    """Random tokens in the shape of the config's batch, at most `TOKENS` of them, and its micro-batches."""
    fit, length = config.trainer.fit, manifest.find_context(config)
    rows, parts = (fit.train_dataloader.batch_size, count_micro_batches(config)) if fit is not None else (8, 1)
    if rows * length > TOKENS:
        rows, parts = max(1, min(rows // parts, TOKENS // length)), 1
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(config.trainer.init.model.vocab_size, (rows, length + 1), generator=draw, dtype=torch.int32)
    ones = torch.ones(rows, length, dtype=torch.int32)
    return {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous(), "attention_mask": ones}, parts


def _rounds(variants: Mapping[str, Callable], warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each variant's step by round. They take turns in a rotating order: noise falls on all alike.

    Args:
        warm: steps before: a GPU's host compiles its layers in the first, and is ahead of it once they are captured.
    """
    names, times = list(variants), {name: [] for name in variants}
    last = math.inf
    for _ in range(warm):
        begin = time.perf_counter()
        for name in names:
            variants[name]()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        last = time.perf_counter() - begin  # says how many rounds fit
    count = min(ROUNDS, max(FEWEST, int(SECONDS / last)))
    progress, done = Progress(count * len(names)), 0
    for i in range(count):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            begun = time.perf_counter()
            variants[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begun)
            done += 1
            progress.update(done, name)
    progress.close()
    return times


def _ratios(times: Mapping[str, list[float]], name: str) -> tuple[float, float, float]:
    """Quartiles of how many times faster than dense, round by round: low, median, high."""
    low, median, high = statistics.quantiles([d / s for d, s in zip(times["dense"], times[name], strict=True)], n=4)
    return low, median, high


def _bytes(run: TrainState) -> int:
    """Bytes of weights, gradients and optimizer state."""
    moments = (x for entries in run.optimizer.state.values() for x in entries.values() if isinstance(x, Tensor))
    trained = (p for p in run.model.parameters() if p.requires_grad)
    tensors = [*run.model.parameters(), *trained, *moments]
    return sum(x.numel() * x.element_size() for x in tensors)


def _table(
    times: Mapping[str, list[float]],
    memory: Mapping[str, int],
    tokens: int,
    flops: Mapping[str, float],
    peak: Peak | None,
) -> str:
    """A line a pattern.

    Args:
        flops: of a step, as counted for live weights.
    """
    mfu = "" if peak is None else f"  {'MFU':>6}"
    lines = [
        f"{'pattern':22} {'ms/step':>9} {'tokens/s':>9}{mfu}  {'weights, gradients, moments':>27}   times dense's speed"
    ]
    for name, seconds in times.items():
        middle, (low, ratio, high) = statistics.median(seconds), _ratios(times, name)
        share = "" if peak is None else f"  {flops[name] / middle / peak.flops:>6.1%}"
        rate, size = format_amount(tokens / middle), format_size(memory[name])
        lines.append(
            f"{name:22} {middle * 1e3:9.1f} {rate:>9}{share}  {size:>27}   "
            + ("1" if name == "dense" else f"{ratio:.2f}  [{low:.2f} to {high:.2f}]")
        )
    if peak is not None:
        lines.append(f"MFU        of {peak.what}; FLOPs of live weights, as counted")
    return "\n".join(lines)


def _advice(times: Mapping[str, list[float]], params: str) -> list[str]:
    """The fastest pattern, if one is clearly faster than dense, and what to run next."""
    if not (patterns := [n for n in times if n != "dense"]):
        return ["done       no pattern could be timed here: each is left out, for the reason in its line"]
    best = max(patterns, key=lambda n: _ratios(times, n)[1])
    low, ratio, _ = _ratios(times, best)
    if low <= 1.0:
        return [f"done       no pattern is clearly faster than dense here ({best}: {ratio:.2f}x)"]
    return [
        f"done       fastest: {best}, {ratio:.2f} times dense's speed; what patterns cost in quality: docs/training.md",
        f"next       put `{best}` into trainer.init.sparsity and run python run.py -p {shlex.quote(params)} -m train",
    ]
