"""The `optimizer` and `sparsity` sections of older dialects."""

import re
from typing import Any

from modelzoo.config.legacy.base import Upgrade, remark
from modelzoo.config.loading.explain import did_you_mean
from modelzoo.config.loading.yaml12 import Document, Note
from modelzoo.config.values.patterns import REGULAR

CLASSES = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}
NAMES = {  # older names of optimizer arguments
    "weight_decay_rate": "weight_decay",
    "epsilon": "eps",
    "use_bias_correction": "correct_bias",
    "use_nesterov": "nesterov",
}
ARGUMENTS = ("betas", "eps", "weight_decay", "correct_bias", "amsgrad", "momentum", "dampening", "nesterov", "maximize")
PRECISION = (
    "loss_scaling_factor",
    "initial_loss_scale",
    "steps_per_increase",
    "min_loss_scale",
    "max_loss_scale",
    "max_gradient_norm",
    "max_gradient_value",
)
SCHEDULERS = {
    name.lower().removesuffix("lr"): name
    for name in (
        "ConstantLR",
        "PolynomialLR",
        "LinearLR",
        "ExponentialLR",
        "InverseExponentialTimeDecayLR",
        "InverseSquareRootDecayLR",
        "CosineDecayLR",
        "PiecewiseConstantLR",
        "MultiStepLR",
        "StepLR",
        "CosineAnnealingLR",
        "CosineAnnealingWarmRestarts",
        "MultiplicativeLR",
        "CyclicLR",
        "OneCycleLR",
    )
}
SCHEDULE_NAMES = {
    "steps": "total_iters",
    "decay_steps": "total_iters",
    "values": "learning_rates",
    "boundaries": "milestones",
    "t_max": "T_max",
    "t_0": "T_0",
    "t_mult": "T_mult",
}


def spell_class(doc: Document) -> None:
    """Read `adamw` as `AdamW`, which some of Model Zoo's files of releases 2.4 to 2.10 write so."""
    init = doc.data.get("trainer", {}) if isinstance(doc.data, dict) else {}
    init = init.get("init") if isinstance(init, dict) else None
    found = init.get("optimizer") if isinstance(init, dict) else None
    if not isinstance(found, dict) or len(found) != 1:
        return
    (given,) = found
    if isinstance(given, str) and (name := CLASSES.get(given)) is not None:
        path = ("trainer", "init", "optimizer")
        found[name] = found.pop(given)
        remark(doc, (*path, given), (*path, name))
        doc.notes.append(Note("moved", f"{doc.mark((*path, given))}: {'.'.join(path)}.{given}: is now {name}"))


def optimizer(up: Upgrade) -> None:
    """`optimizer` to trainer.init.optimizer, .schedulers and .precision."""
    section, given = "optimizer", up.old.pop("optimizer")
    if not isinstance(given, dict):
        up.refuse((section,), f"a mapping of keys to values is wanted, got {given!r}")
        return
    given = dict(given)
    asked = given.pop("optimizer_type", None)
    kind = CLASSES.get(str(asked).lower())
    if kind is None:
        problem = "missing" if asked is None else f"{asked!r} is not supported"
        up.refuse((section, "optimizer_type"), f"{problem}; known: {', '.join(CLASSES.values())}")
        return
    up.note("moved", (section, "optimizer_type"), f"is now trainer.init.optimizer.{kind}")
    place = f"init.optimizer.{kind}"
    up.put(place, {}, (section,), kind="")
    for key, value in given.items():
        path = (section, key)
        name = NAMES.get(key, key)
        if key in PRECISION:
            if value is not None:
                up.put(f"init.precision.{key}", value, path)
        elif name in ARGUMENTS:
            if name != key and name in given:
                up.refuse(path, f"is another name of {name}; give one of them")
                continue
            up.put(f"{place}.{name}", value, path, kind="moved" if name != key else "")
        elif key in ("beta1", "beta2"):
            betas = [given.get("beta1", 0.9), given.get("beta2", 0.999)]
            up.put(f"{place}.betas", betas, path)
        elif key == "grad_accum_steps":
            up.put("init.loop.grad_accum_steps", value, path)
        elif key in ("log_summaries", "ws_summary"):
            up.note("idle", path, "no effect: the gradient norm is always logged")
        elif key == "disable_lr_steps_reset" and not value:
            up.note("idle", path, "False asks for nothing: each scheduler counts from its own start")
        elif key not in ("learning_rate", "adjust_learning_rate"):
            known = [*NAMES, *ARGUMENTS, *PRECISION, "beta1", "beta2", "learning_rate", "adjust_learning_rate"]
            why = (
                "asks for schedulers that count from the run's start" if key == "disable_lr_steps_reset" else "unknown"
            )
            up.refuse(path, f"{why}{did_you_mean(key, known) if why == 'unknown' else ', which are not here'}")
    if "learning_rate" in given:
        _learning_rate(up, given["learning_rate"])


def _learning_rate(up: Upgrade, rate: Any) -> None:
    path = ("optimizer", "learning_rate")
    if isinstance(rate, str):  # 1e-4 in quotes: the older loaders took text for a number here
        try:
            rate = float(rate)
        except ValueError:
            up.refuse(path, f"takes a number or a list of schedulers, got {rate!r}")
            return
    if isinstance(rate, int | float):
        up.put("init.schedulers", [{"ConstantLR": {"learning_rate": rate}}], None)
        remark(up.doc, path, ("trainer", "init", "schedulers"))
        up.note("changed", path, "is now trainer.init.schedulers: ConstantLR")
        return
    many = rate if isinstance(rate, list) else [rate]
    if not all(isinstance(r, dict) for r in many):
        up.refuse(path, f"takes a number or a list of schedulers, got {rate!r}")
        return
    main = {str(r.get("main_scheduler", "sequential")).lower().removesuffix("lr") for r in many}
    if main - {"sequential", "chained"} or len(main) > 1:
        up.refuse(path, f"main_scheduler is sequential or chained, one for all, got {', '.join(sorted(main))}")
        return
    outer = "ChainedLR" if main == {"chained"} else "SequentialLR"
    single = len(many) == 1 and outer == "SequentialLR"
    base = ("trainer", "init", "schedulers", 0) if single else ("trainer", "init", "schedulers", 0, outer, "schedulers")
    done = []
    for i, scheduler in enumerate(many):
        old = (*path, i) if isinstance(rate, list) else path
        done.append(_scheduler(up, scheduler, old, base if single else (*base, i)))
    up.put("init.schedulers", done if single else [{outer: {"schedulers": done}}], path, kind="")
    up.note("moved", path, "is now trainer.init.schedulers" + ("" if single else f": {outer}"))


def _scheduler(up: Upgrade, given: dict[str, Any], old: tuple, new_path: tuple) -> dict[str, Any]:
    asked = str(given.get("scheduler"))
    name = SCHEDULERS.get(asked.lower().removesuffix("lr"))
    if name is None:
        up.refuse((*old, "scheduler"), f"unknown {asked!r}{did_you_mean(asked, list(SCHEDULERS.values()))}")
        return {}
    new: dict[str, Any] = {}
    for key, value in given.items():
        if key in ("scheduler", "main_scheduler"):
            continue
        path, to = (*old, key), SCHEDULE_NAMES.get(key, key)
        if key == "alpha" and "end_learning_rate" in given:
            up.note("idle", path, "no effect, in its own release either: end_learning_rate says where the rate ends")
            continue
        if to != key:
            up.note("moved", path, f"is now {name}.{to}")
        new[to] = value
        remark(up.doc, path, (*new_path, name, to))
    remark(up.doc, old, (*new_path, name))
    return {name: new}


def sparsity(up: Upgrade) -> None:
    """`sparsity` to trainer.init.sparsity: `schedule` as the update, regular expressions as re:..., 1.9's groups."""
    given = up.old.pop("sparsity")
    place, path = "init.sparsity", ("sparsity",)
    if isinstance(given, dict):
        groups = _groups(up, given, path)
        up.put(place, groups[0] if len(groups) == 1 else groups, path)
    elif isinstance(given, list):
        groups = [
            _groups(up, g, (*path, i)) if isinstance(g, dict) else [g]  # the schema refuses what is no mapping
            for i, g in enumerate(given)
        ]
        up.put(place, [g for found in groups for g in found], path)
    else:
        up.put(place, given, path)


def _groups(up: Upgrade, given: dict[str, Any], path: tuple) -> list[dict[str, Any]]:
    group = dict(given)
    for key, why in (("add_summaries", "sparsity is always logged"), ("dump_masks", "masks are in the checkpoint")):
        if key in group:
            group.pop(key)
            up.note("idle", (*path, key), f"no effect: {why}")
    for old, new in (("in_groups", "balance_in_groups"), ("out_groups", "balance_out_groups")):
        if old in group:
            group[new] = group.pop(old)
            up.note("moved", (*path, old), f"is now {new}")
    schedule = group.get("schedule")
    if isinstance(schedule, dict) and "type" not in schedule or isinstance(schedule, list) and "sparsity" in group:
        if "update" in group:
            up.refuse((*path, "schedule"), "is another name of `update` here; give one of them")
        group["update"] = {"steps": schedule} if isinstance(schedule, list) else group.pop("schedule")
        group.pop("schedule", None)
        remark(up.doc, (*path, "schedule"), ("trainer", "init", *path, "update"))
        up.note("moved", (*path, "schedule"), "is now update (when masks change)")
    patterns = group.pop("param_name_patterns", None)
    if patterns is None:
        return [group]
    where = (*path, "param_name_patterns")
    if "param_filter" in group:
        up.refuse(where, "is another name of param_filter; give one of them")
    if isinstance(patterns, dict):
        up.note("changed", where, f"is now {len(patterns)} groups with param_filter")
        return [
            {**group, **(own if isinstance(own, dict) else {}), "param_filter": _filter(up, where, [pattern])}
            for pattern, own in patterns.items()
        ]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = _filter(up, where, patterns)
    up.note("changed", where, f"is now param_filter: {', '.join(found)}")
    return [{**group, "param_filter": found}]


def _filter(up: Upgrade, path: tuple, patterns: list) -> list[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as e:
            up.refuse(path, f"{pattern!r} is no regular expression ({e})")
    return [f"{REGULAR}{pattern}" for pattern in patterns]
