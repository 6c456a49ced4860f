"""Optimizer, learning rates, sparsity and loss scale as cerebras.pytorch has them, made from our config."""

import inspect
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from modelzoo.backends.csx.library import cstorch
from modelzoo.config.errors import UserError
from modelzoo.config.required import require_optimizer
from modelzoo.config.sections import optim as o
from modelzoo.config.sections import sparsity_schedules as s
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.trainer import Init
from modelzoo.models.shapes import list_parameters
from modelzoo.names import name_mask
from modelzoo.optim.groups import param_groups
from modelzoo.optim.lr import DEFAULT_LR
from modelzoo.sparsity.mup import density_ratios
from modelzoo.sparsity.schedules import is_update, updates_before
from modelzoo.sparsity.select import live_counts, select_parameters


def make_optimizer(init: Init, model: nn.Module, kinds: Mapping[str, str]) -> cstorch.optim.Optimizer:
    """cerebras.pytorch's optimizer of the config's name, with the same groups as ours."""
    config = require_optimizer(init).value
    ratios = density_ratios(list_parameters(init.model), init.sparsity)
    groups = [
        {"params": g["params"], "weight_decay": g["weight_decay"], "adjust_learning_rate": g["lr_scale"]}
        for g in param_groups(model, kinds, config.weight_decay, init.model, ratios)
    ]
    rate = DEFAULT_LR if config.lr is None else config.lr
    for g in groups:
        g["lr"] = rate * g["adjust_learning_rate"]
    if isinstance(config, o.SGD):
        return cstorch.optim.SGD(
            groups, lr=rate, momentum=config.momentum, dampening=config.dampening, nesterov=config.nesterov
        )
    extra = {"betas": config.betas, "eps": config.eps}
    if isinstance(config, o.AdamW):
        made = cstorch.optim.AdamW(groups, lr=rate, correct_bias=config.correct_bias, **extra)
    elif not config.correct_bias:
        raise UserError("trainer.init.optimizer.Adam.correct_bias: false is AdamW's alone on CSX")
    else:
        made = cstorch.optim.Adam(groups, lr=rate, **extra)
    made.betas = config.betas
    return made


def make_schedulers(init: Init, optim: cstorch.optim.Optimizer) -> list:
    """cerebras.pytorch's learning-rate schedule of the same name, muP's scales around it; none for a constant rate."""
    if not init.schedulers:
        return []
    made = _scheduler(init.schedulers[0], optim)
    if any(g["adjust_learning_rate"] != 1.0 for g in optim.param_groups):
        if isinstance(made, cstorch.optim.lr_scheduler.ChainedLR):
            raise UserError("trainer.init.schedulers: ChainedLR does not go with muP's scales on CSX")
        if not isinstance(made, cstorch.optim.lr_scheduler.ScalePerParamLR):
            made = cstorch.optim.lr_scheduler.ScalePerParamLR(optim, made)
    return [made]


def _scheduler(config: o.Scheduler, optim: cstorch.optim.Optimizer):
    kind, value = getattr(cstorch.optim.lr_scheduler, config.name), config.value
    if isinstance(value, o.SequentialLR):
        return kind(optim, [_scheduler(x, optim) for x in value.schedulers], list(value.starts[1:]))
    if isinstance(value, o.CosineAnnealingWarmRestarts):
        raise UserError(
            "trainer.init.schedulers.CosineAnnealingWarmRestarts: cerebras.pytorch 2.10.0 stays at the top rate after "
            "the first restart; use CosineAnnealingLR, or a SequentialLR of CosineDecayLRs"
        )
    if isinstance(value, o.ChainedLR):
        return kind([_scheduler(x, optim) for x in value.schedulers])
    if isinstance(value, o.ScalePerParamLR):
        return kind(optim, _scheduler(value.scheduler, optim))
    given = {k: list(v) if isinstance(v, tuple) else v for k, v in value.model_dump().items()}
    taken = inspect.signature(kind).parameters
    return kind(optim, **{k: v for k, v in given.items() if k in taken and k != "param_group_tags"})


def advance_scheduler(scheduler, steps: int) -> None:
    """Put a schedule, and those it holds, where `steps` steps leave them."""
    inner = list(getattr(scheduler, "_schedulers", ()))
    starts = (0, *getattr(scheduler, "_milestones", [0] * len(inner)))  # chained ones all begin at 0
    for x, start in zip(inner, starts):
        advance_scheduler(x, max(0, steps - start))
    if (nested := getattr(scheduler, "_scheduler_nested", None)) is not None:
        advance_scheduler(nested, steps)
    scheduler.last_epoch.fill_(steps)
    if not cstorch.use_cs():
        scheduler.update_last_value()


def sparsify(init: Init, model: nn.Module, optim, shapes, masks: Mapping[str, Tensor]) -> list:
    """Attach cerebras.pytorch's sparsity, from our config, to the parameters that we choose, with our first masks.

    Guards its faults: whole numbers and unknown names never reach `configure`, a group names its weights one by one
    (bare algorithms would take biases, and the default filter takes `wte`), and schedules that end have an end.

    Returns:
        (algorithm, group) pairs.
    """
    found, whole = [], cstorch.sparse.Group()
    weights = dict(model.named_parameters())
    for group, names in zip(init.sparsity, select_parameters(shapes, init.sparsity), strict=True):
        made = cstorch.sparse.configure({**sparsity_block(group), "param_filter": names})
        algorithm = made[0]
        if group.distribution != "uniform":
            if not isinstance(group.sparsity, s.Constant):
                raise UserError(
                    f"trainer.init.sparsity.distribution: {group.distribution} takes a constant level on CSX"
                )
            counts = live_counts({n: shapes[n].size for n in names}, group.sparsity.value, group.distribution)
            # Half a weight more keeps its float32 truncation on the right side.
            algorithm.sparsity = {weights[n]: 1 - (counts[n] + 0.5) / shapes[n].numel for n in names}
        found.append((algorithm, group))
        whole.extend(made)
    if not found:
        return []
    model.apply(whole)
    if not init.base_frozen:  # masks of frozen weights neither change nor have optimizer state
        optim.apply(whole)
    for algorithm, _ in found:
        for name, sparse in algorithm.sparse_params.items():
            sparse.init_method = partial(_first_mask, mask=masks.get(name_mask(name)))
        drop = getattr(algorithm, "drop_fraction", None)
        if drop is not None:  # its cache takes a step counter changed in place for the same step
            optim.register_step_post_hook(lambda *_, drop=drop: drop.cache_clear())
    return found


def _first_mask(weight: Tensor, device=None, mask: Tensor | None = None) -> Tensor:
    device = weight.device if device is None else device
    if mask is None:
        return cstorch.ones_like(weight, dtype=torch.bool).to(device)
    return mask.clone().to(device)


def sparsity_block(group: SparsityGroup) -> dict:
    """One group in `cerebras.pytorch.sparse.configure`'s own words, less its filter."""
    block = {"algorithm": group.algorithm, "sparsity": _schedule(group.sparsity)}
    if group.update is not None:
        update = group.update
        block["update"] = (
            {"steps": list(update.steps)}
            if update.steps is not None
            else {"freq": update.freq or 1, "start": update.start, "stop": update.stop}
        )
    if group.drop_fraction is not None:
        block["drop_fraction"] = _schedule(group.drop_fraction)
    for key in ("balance_in_groups", "balance_out_groups"):
        if (value := getattr(group, key)) is not None:
            block[key] = value
    return block


def _schedule(schedule):
    if isinstance(schedule, s.Constant):
        return float(schedule.value)
    if isinstance(schedule, s.Cycling):
        return [float(v) for v in schedule.values]
    given = schedule.model_dump(exclude_none=True)
    if isinstance(schedule, s.Linear) and schedule.final is not None:
        given["type"] = "ramp"
    return given


def advance_sparsity(algorithm, group: SparsityGroup, steps: int) -> None:
    """Put an algorithm's counters where `steps` updates leave them (its own load_state_dict loses cycling's place)."""
    if group.algorithm == "static":
        return
    algorithm.step.fill_(steps)
    drop = getattr(algorithm, "drop_fraction", None)
    for schedule in {id(x): x for x in (*algorithm.sparsity.values(), drop)}.values():
        if schedule is not None and hasattr(schedule, "index"):
            # Masks' schedules move on at step 0 too, if that is an update step; drop fractions do not.
            done = updates_before(group.update, steps + 1)
            if schedule is drop and is_update(group.update, 0):
                done -= 1
            schedule.index.fill_(done % len(schedule.values))


def make_grad_scaler(init: Init, scale: float):
    """The wafer's loss scale, started at the host's where that has run already."""
    p = init.precision
    first = p.initial_loss_scale if not scale or scale == 1.0 else scale
    return cstorch.amp.GradScaler(
        loss_scale=p.loss_scaling_factor,
        init_scale=first,
        steps_per_increase=p.steps_per_increase,
        min_loss_scale=p.min_loss_scale,
        max_loss_scale=p.max_loss_scale,
    )
