"""What is pruned: a run's dense weights, the config that training goes on with, and the plan for each weight."""

import shlex
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12
from modelzoo.config.loading.load import dump, validate
from modelzoo.config.sections.sparsity import SparsityGroup
from modelzoo.config.sections.sparsity_schedules import Constant
from modelzoo.config.trainer import Config
from modelzoo.evaluation.inference.exported_files import is_exported
from modelzoo.models.shapes import check_weights, list_parameters
from modelzoo.names import layer_of, split_masks
from modelzoo.planning.start_checkpoint import check_state, find_checkpoint
from modelzoo.pruning.choose import Plan, make_algorithm
from modelzoo.reading import exists
from modelzoo.sparsity.select import check_sides, group_counts, select_parameters
from modelzoo.training.checkpoints import checkpoint
from modelzoo.training.checkpoints.state_json import read_config
from modelzoo.training.runs.folder import RunFolder
from modelzoo.training.runs.new import load_with_model


class Source(NamedTuple):
    """A checkpoint to prune: its weights by name, and its run's config (or the one that is to follow).

    Attributes:
        asked: whether the config's sparsity is what to prune to: a config that was named, or a dense model's own.
    """

    path: str
    weights: dict[str, Tensor]
    config: Config
    asked: bool


def read_source(path: str, params: str | None) -> Source:
    """The model that a run folder, or a step folder, holds.

    Args:
        params: the config to go on with, whose model is the checkpoint's; default: the run's.

    Raises:
        UserError: there is none, it has adapters, it is not finite, or no config goes with it.
    """
    if path.endswith(".mdl"):
        raise UserError(
            f"{path}: import it first: python run.py import {shlex.quote(path)} RUN -p CONFIG; then prune RUN"
        )
    if is_exported(path):
        raise UserError(f"{path}: is an exported model; import it first: python run.py import {shlex.quote(path)} RUN")
    found = find_checkpoint(path)
    files, state = checkpoint.load(found, only="model")
    saved = check_state(state, found)
    if saved.lora is not None or saved.soft_prompt is not None:
        what = "LoRA adapters" if saved.lora is not None else "a soft prompt"
        raise UserError(f"{found}: has {what}, which pruning would leave behind; prune the run that it began from")
    if not saved.finite:
        raise UserError(f"{found}: has weights that are not finite; name an earlier checkpoint")
    weights, masks = split_masks(files["model"])
    check_weights({n: x.shape for n, x in weights.items()}, saved.model, found)
    if masks:
        off, total = sum(int((~x).sum()) for x in masks.values()), sum(x.numel() for x in masks.values())
        print(
            f"note       {found} is sparse already: {off:,} of {total:,} weights under its {len(masks)} masks are off. "
            "These masks are not kept: what is off counts as a weight of 0, which goes first",
            file=sys.stderr,
        )
    config = _find_config(found, state, saved.model.model_dump(mode="json"), params)
    return Source(found, weights, config, params is not None or not masks)


def _find_config(path: str, state: Mapping[str, Any], model: Mapping[str, Any], params: str | None) -> Config:
    own = RunFolder.containing(path).config
    if params is not None or exists(own):
        config = load_with_model(params or own, model)
    elif (config := read_config(path, state)) is None:
        raise UserError(f"{path}: no config.yaml goes with it; name the config to go on with by -p")
    init = config.trainer.init
    if config.trainer.finetune is not None or init.lora is not None or init.soft_prompt is not None:
        where = params or (own if exists(own) else path)
        raise UserError(f"{where}: is not a config of pre-training; name one with -p, and fine-tune what comes of it")
    return config


def choose_groups(found: Source, flags: Mapping[str, Any], params: str | None) -> tuple[SparsityGroup, ...]:
    """The sparsity groups to prune to: one of the command's flags, or those of the config.

    Args:
        flags: keys of a group, those that were given. params: the config that was named, if one was.

    Raises:
        UserError: a config that was named has its own as well, there are none, or the flags do not go together.
    """
    own = found.config.trainer.init.sparsity if found.asked else ()
    if flags and own and params is not None:
        flag = "--" + next(iter(flags)).replace("permute_inputs", "permute")
        raise UserError(
            f"{params}: has a sparsity section, which says what to prune to; leave {flag} out, or remove it"
        )
    if own and not flags:
        return own
    if "sparsity" not in flags and "nm" not in flags:
        raise UserError(
            "--sparsity: missing; for example --sparsity 0.5, --nm 2:4, or -p CONFIG with a sparsity section"
        )
    first = {"init_method": "topk"} if "permute_inputs" in flags else {}  # an order is of masks by scores
    return put_groups(found.config, [{**flags, **first}]).trainer.init.sparsity


def put_groups(config: Config, groups: list[dict[str, Any]], **init: Any) -> Config:
    """The config with another sparsity section, and other keys of `trainer.init`."""
    doc = yaml12.parse(dump(config), "run.py prune")
    doc.data["trainer"]["init"].update(sparsity=groups, **init)
    return validate(doc, Config)


def make_config(found: Source, groups: tuple[SparsityGroup, ...], out: str, params: str | None) -> Config:
    """The config of the run at `out`, which begins with what pruning to `groups` leaves.

    Its checkpoints are in its own folder, wherever the dense run kept its own.
    """
    section = found.config.trainer.init.checkpoint
    if params is None:
        section = section.model_copy(update={"checkpoint_root": None})
    keys = {"model_dir": out, "checkpoint": section.model_dump(mode="json")}
    return put_groups(found.config, [begin_from_zeros(g) for g in groups], **keys)


def begin_from_zeros(group: SparsityGroup) -> dict[str, Any]:
    """A group whose first masks are what pruning left: the weights that are not 0, or as many of the largest."""
    counted = isinstance(group.sparsity, Constant) and group.nm is None and group.mup_base_density is None
    method = "from_zeros" if counted else "topk"
    return {**group.model_dump(mode="json", exclude_unset=True), "init_method": method}


def make_plans(config: Config, groups: tuple[SparsityGroup, ...], method: str) -> list[Plan]:
    """The plan of each weight of `groups`, by whose rules live weights are counted.

    Raises:
        UserError: a filter matches nothing, a pattern does not divide, nothing is to be pruned, or `method` needs
            what a weight has not.
    """
    init, plans = config.trainer.init, list[Plan]()
    shapes = list_parameters(init.model)
    for i, (group, names) in enumerate(zip(groups, select_parameters(shapes, groups), strict=True)):
        sizes = {n: shapes[n].size for n in names}
        check_sides(group, sizes)
        algorithm = make_algorithm(group, init.seed)
        level = algorithm.target(0)
        if level == 0:
            raise UserError(f"trainer.init.sparsity.{i}: begins at sparsity 0, so there is nothing to prune to")
        if method == "sparsegpt" and (group.balance_in_groups or group.balance_out_groups):
            raise UserError(f"trainer.init.sparsity.{i}: balanced groups go with --method magnitude or wanda")
        counts = group_counts(group, sizes, level)
        for name, size in sizes.items():
            if len(size) != 2:
                raise UserError(f"{name} {size}: is no matrix; leave it out of trainer.init.sparsity.{i}.param_filter")
            if method != "magnitude" and not is_read(name, shapes[name].kind):
                raise UserError(f"{name}: is no linear of a layer, whose inputs {method} needs; use --method magnitude")
            if counts[name] == 0:
                raise UserError(f"no live weight would be left in {name} {size}; lower the sparsity")
            plans.append(Plan.of(name, (size[0], size[1]), counts[name], algorithm))
    return plans


def is_read(name: str, kind: str) -> bool:
    """Whether a weight is a linear's in a layer, so that calibration text has inputs for it."""
    return kind == "linear" and layer_of(name) is not None
