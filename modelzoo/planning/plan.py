"""The arithmetic of a config before anything runs: parameters, FLOPs, memory, steps, tokens. No torch."""

import math
from typing import NamedTuple

from modelzoo.backends import arithmetic
from modelzoo.config import sparsity as c
from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config, Init
from modelzoo.data.manifest import context
from modelzoo.models.shapes import parameters, trains, with_adapters
from modelzoo.sparsity import flops, schedules
from modelzoo.sparsity.select import block_of, check_sides, group_counts, select
from modelzoo.training.run_length import total_steps

INDEX = 12  # bytes that say where a live block is: its row, its column and its place by column
SAMPLES = 1000  # steps at which a longer run's sparsity is looked at for the mean FLOPs


class Plan(NamedTuple):
    """The arithmetic of a run. FLOPs are training FLOPs (forward and backward)."""

    total: int  # parameters
    sparse_total: int  # of which under a mask's control
    live: int  # parameters that are on at the start
    trained: int  # parameters that train
    steps: int | None
    tokens: int | None
    context: int
    dense: flops.Cost  # per token
    start: flops.Cost  # per token with the first masks
    mean: float  # per token, over the run's schedule
    bytes: dict[str, int]


def groups(init: Init) -> list[tuple[c.SparsityGroup, dict[str, tuple[int, ...]]]]:
    """Each sparsity group with the sizes of the parameters it acts on."""
    shapes = parameters(init.model)
    return [
        (g, {n: shapes[n].size for n in names})
        for g, names in zip(init.sparsity, select(shapes, init.sparsity), strict=True)
    ]


def first_masks(init: Init) -> dict[str, int]:
    """Live weights that a run begins with, by the name of each sparse parameter."""
    return {n: k for g, sizes in groups(init) for n, k in group_counts(g, sizes, schedules.held(g, 0)).items()}


def check(init: Init, max_steps: int | None) -> None:
    """Refuse sparsity that selects nothing, or whose schedule would empty a weight within the run."""
    for group, sizes in groups(init):
        check_sides(group, sizes)
        highest, step = schedules.check(group, max_steps or 0)
        counts = group_counts(group, sizes, highest)
        empty = next((n for n, k in counts.items() if k == 0), None)
        if empty is not None and group.init_method != "from_zeros":
            raise UserError(
                f"trainer.init.sparsity ({group.algorithm}): sparsity {highest:.6g} at step {step} leaves no live "
                f"weight in {empty} {sizes[empty]}; lower it"
            )


def make(config: Config, target: str = "auto") -> Plan:
    """The plan of `config` on `target`, the command line's. Reads no data beyond manifests."""
    init, fit = config.trainer.init, config.trainer.fit
    m = init.model
    shapes = with_adapters(init)
    adapters = sum(s.numel for s in shapes.values() if s.kind == "adapter")
    chosen = groups(init)
    steps, msl = total_steps(config), context(config)
    batch = fit.train_dataloader.batch_size if fit else None
    weights = {n: s.numel for n, s in shapes.items() if s.kind == "linear"}
    live = first_masks(init)

    def cost(counts: dict[str, int]) -> flops.Cost:
        sides = m.num_hidden_layers, m.inner_dim, msl, m.hidden_size, m.vocab_size
        return flops.per_token(counts, *sides, init.base_frozen, adapters)

    dense, start = cost(weights), cost({n: live.get(n, k) for n, k in weights.items()})
    total = sum(s.numel for s in shapes.values())
    sparse_total = sum(shapes[n].numel for n in live)
    trained = sum(s.numel for s in shapes.values() if trains(init, s.kind))
    return Plan(
        total=total,
        sparse_total=sparse_total,
        live=total - sparse_total + sum(live.values()),
        trained=trained,
        steps=steps,
        tokens=steps * batch * msl if steps and batch else None,
        context=msl,
        dense=dense,
        start=start,
        mean=start.total  # frozen masks do not change
        if init.base_frozen
        else dense.total - sum(_mean_saving(g, sizes, weights, steps or 1) for g, sizes in chosen),
        bytes=_memory(config, total, trained, msl, _kind(init, target)),
    )


def _mean_saving(group: c.SparsityGroup, sizes: dict, weights: dict[str, int], steps: int) -> float:
    """FLOPs per token that `group`'s masks save on average over a run; RigL's updates give some of it back."""
    seen: dict[float, int] = {}  # a schedule takes few values, and counting is exact and slow

    def live_at(step: int) -> int:
        s = schedules.held(group, step)
        if s not in seen:
            seen[s] = sum(k for n, k in group_counts(group, sizes, s).items() if n in weights)
        return seen[s]

    samples = min(steps, SAMPLES)
    live = sum(live_at((2 * i + 1) * steps // (2 * samples)) for i in range(samples)) / samples
    dense, sparse = 6.0 * sum(weights[n] for n in sizes if n in weights), 6.0 * live
    if group.algorithm == "rigl":
        sparse = flops.rigl_average(sparse, dense, sum(1 for _ in schedules.update_steps(group.update, steps)), steps)
    return dense - sparse


def _kind(init: Init, target: str) -> str:
    """The kind of device that the command line and the config name; where they leave it open, this machine's CPU."""
    asked = init.backend.backend_type if target == "auto" else target
    return "CPU" if asked == "auto" else asked


def _memory(config: Config, total: int, trained: int, msl: int, kind: str) -> dict[str, int]:
    """Bytes of a training run on one device. Activations are an estimate: what backward needs of a micro-batch."""
    init, fit = config.trainer.init, config.trainer.fit
    m, half = init.model, 4 if arithmetic.expected(kind, init.precision).dtype == "float32" else 2
    moments = 2 if init.optimizer is None or init.optimizer.name != "SGD" else bool(init.optimizer.value.momentum)
    gone, masks = stored(init, ("packed",))
    micro = 0
    if fit is not None:
        asked = fit.train_dataloader.micro_batch_size
        micro = asked if isinstance(asked, int) else fit.train_dataloader.batch_size // init.loop.grad_accum_steps
    per_token = m.num_hidden_layers * (
        8 * m.hidden_size + half * (2 * m.hidden_size + 5 * m.inner_dim + 2 * m.filter_size)
    )
    return {
        "weights": 4 * (total - gone),
        "gradients": 4 * (trained if init.base_frozen else trained - gone),
        "optimizer": 4 * moments * (trained if init.base_frozen else trained - gone),
        "masks": masks,
        "activations (estimate)": micro * msl * per_token,
    }


def stored(init: Init, packed: tuple[str, ...]) -> tuple[int, int]:
    """Dead weights that are not stored at the start, and the bytes of masks (or indices) and ages, off the CS-2.

    Args:
        packed: the values of `storage` that are taken to mean live blocks alone.
    """
    gone = masks = 0
    for group, sizes in groups(init):
        total = sum(math.prod(size) for size in sizes.values())
        counts = group_counts(group, sizes, schedules.held(group, 0))
        live = sum(counts.values())
        ages = 4 * (group.algorithm != "static")
        if group.may_pack and group.storage in packed:
            blocks = sum(k // math.prod(block_of(group, sizes[n])) for n, k in counts.items())
            gone, masks = gone + total - live, masks + ages * live + INDEX * blocks
        else:
            masks += (2 + ages) * total
    return gone, masks
