"""The arithmetic of a config before anything runs: parameters, FLOPs, memory, steps, tokens. No torch."""

from typing import NamedTuple

from modelzoo.backends.batch_shares import check_rows, count_slices, sums_exactly
from modelzoo.config.errors import UserError
from modelzoo.config.sections.model import MUP_GROUPS
from modelzoo.config.trainer import Config, Init
from modelzoo.config.values.patterns import check_match
from modelzoo.data.manifest import find_context
from modelzoo.models.shapes import frozen, list_parameters, list_with_adapters
from modelzoo.planning.memory import Layout, count_memory
from modelzoo.planning.stored import group_sizes
from modelzoo.sparsity import flops, schedules
from modelzoo.sparsity.select import check_sides, group_counts
from modelzoo.training.runs.length import total_steps

SAMPLES = 300  # levels of each group at which masks are counted, where a schedule takes more, for the mean FLOPs


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
        bytes=count_memory(config, msl, find_layout(config, find_kind(init, target), 1)),
    )


def find_kind(init: Init, target: str) -> str:
    """The kind of device that the command line and the config name; where they leave it open, this machine's CPU."""
    asked = init.backend.backend_type if target == "auto" else target
    return "CPU" if asked == "auto" else asked


def find_layout(config: Config, kind: str, devices: int, sharded: bool = False) -> Layout:
    """How `devices` of `kind` train a run together.

    Raises:
        UserError: the batch cannot be shared out among them.
    """
    fit, backend = config.trainer.fit, config.trainer.init.backend
    if fit is None:
        return Layout(kind, devices, None, sharded)
    batch = fit.train_dataloader.batch_size
    check_rows(batch, devices)
    exact = not sharded and sums_exactly(backend.reduction, kind, devices)
    return Layout(kind, devices, count_slices(batch, devices, backend.slices) if exact else None, sharded)
