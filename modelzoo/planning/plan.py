"""The arithmetic of a config before anything runs: parameters, FLOPs, memory, steps, tokens. No torch."""

import math
from typing import NamedTuple

from modelzoo.backends import arithmetic
from modelzoo.config import sparsity as c
from modelzoo.config.errors import UserError
from modelzoo.config.model import MUP_GROUPS
from modelzoo.config.patterns import check_match
from modelzoo.config.trainer import Config, Init
from modelzoo.data.manifest import find_context
from modelzoo.models.shapes import frozen, list_parameters, list_with_adapters
from modelzoo.sparsity import flops, schedules
from modelzoo.sparsity.select import block_of, check_sides, group_counts, select_parameters
from modelzoo.training.run_length import total_steps

INDEX = 12  # bytes that say where a live block is: its row, its column and its place by column
SAMPLES = 1000  # levels of sparsity at which masks are counted, where a schedule takes more, for the mean FLOPs


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


def group_sizes(init: Init) -> list[tuple[c.SparsityGroup, dict[str, tuple[int, ...]]]]:
    """Each sparsity group with the sizes of the parameters it acts on."""
    shapes = list_parameters(init.model)
    return [
        (g, {n: shapes[n].size for n in names})
        for g, names in zip(init.sparsity, select_parameters(shapes, init.sparsity), strict=True)
    ]


def count_first_masks(init: Init) -> dict[str, int]:
    """Live weights that a run begins with, by the name of each sparse parameter."""
    return {n: k for g, sizes in group_sizes(init) for n, k in group_counts(g, sizes, schedules.held(g, 0)).items()}


def check_sparsity(init: Init, max_steps: int | None) -> None:
    """Refuse patterns that match nothing, and a sparsity schedule that would empty a weight within the run."""
    for name, group in (init.model.lr_adjustment_groups or {}).items():
        key = f"trainer.init.model.lr_adjustment_groups.{name}.param_filter_patterns"
        own = [p for p in group.patterns if p not in MUP_GROUPS[name]]  # the zoo's own fit models of every kind
        check_match(key, own, list_parameters(init.model), "parameter")
    for group, sizes in group_sizes(init):
        check_sides(group, sizes)
        highest, step = schedules.check_schedule(group, max_steps or 0)
        counts = group_counts(group, sizes, highest)
        empty = next((n for n, k in counts.items() if k == 0), None)
        if empty is not None and group.init_method != "from_zeros":
            raise UserError(
                f"trainer.init.sparsity ({group.algorithm}): sparsity {highest:.6g} at step {step} leaves no live "
                f"weight in {empty} {sizes[empty]}; lower it"
            )


def make_plan(config: Config, target: str = "auto") -> Plan:
    """The plan of `config` on `target`, the command line's. Reads no data beyond manifests."""
    init, fit = config.trainer.init, config.trainer.fit
    shapes, off = list_with_adapters(init), frozen(init)
    steps, msl = total_steps(config), find_context(config)
    batch = fit.train_dataloader.batch_size if fit else None
    live = count_first_masks(init)
    whole = flops.count_run(init.model, shapes, msl, group_sizes(init), steps or 1, off, SAMPLES)
    total = sum(s.numel for s in shapes.values())
    sparse_total = sum(shapes[n].numel for n in live)
    trained = sum(s.numel for n, s in shapes.items() if n not in off)
    return Plan(
        total=total,
        sparse_total=sparse_total,
        live=total - sparse_total + sum(live.values()),
        trained=trained,
        steps=steps,
        tokens=steps * batch * msl if steps and batch else None,
        context=msl,
        dense=flops.count_per_token(init.model, shapes, msl, frozen=off),
        start=flops.count_per_token(init.model, shapes, msl, live, off),
        mean=whole[0] / (steps or 1),
        bytes=_memory(config, total, trained, msl, _kind(init, target)),
    )


def _kind(init: Init, target: str) -> str:
    """The kind of device that the command line and the config name; where they leave it open, this machine's CPU."""
    asked = init.backend.backend_type if target == "auto" else target
    return "CPU" if asked == "auto" else asked


def _memory(config: Config, total: int, trained: int, msl: int, kind: str) -> dict[str, int]:
    """Bytes of a training run on one device. Activations are an estimate: what backward needs of a micro-batch."""
    init, fit = config.trainer.init, config.trainer.fit
    m, half = init.model, 4 if arithmetic.expect_arithmetic(kind, init.precision).dtype == "float32" else 2
    moments = 2 if init.optimizer is None or init.optimizer.name != "SGD" else bool(init.optimizer.value.momentum)
    gone, masks = count_stored(init, ("packed",))
    micro = 0
    if fit is not None:
        asked = fit.train_dataloader.micro_batch_size
        micro = asked if isinstance(asked, int) else fit.train_dataloader.batch_size // init.loop.grad_accum_steps
    kept = {"layer": 4 * m.hidden_size, "attention": 5 * half * m.inner_dim}  # of a layer, a token; others come again
    whole = 8 * m.hidden_size + half * (2 * m.hidden_size + 5 * m.inner_dim + 2 * m.filter_size)
    mode = init.backend.activation_checkpointing
    per_layer = {"none": whole, "layer": kept["layer"], "attention": whole - kept["attention"]}[mode]
    again = {"none": 0, "layer": whole, "attention": kept["attention"]}[mode]  # of the layer whose turn it is
    per_token = m.num_hidden_layers * per_layer + again
    return {
        "weights": 4 * (total - gone),
        "gradients": 4 * (trained if init.base_frozen else trained - gone),
        "optimizer": 4 * moments * (trained if init.base_frozen else trained - gone),
        "masks": masks,
        "activations (estimate)": micro * msl * per_token,
    }


def count_stored(init: Init, packed: tuple[str, ...]) -> tuple[int, int]:
    """Dead weights that are not stored at the start, and the bytes of masks (or indices) and ages, off the CS-2.

    Args:
        packed: the values of `storage` that count as storing live blocks alone.
    """
    gone = masks = 0
    for group, sizes in group_sizes(init):
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
