"""Our checkpoint as Model Zoo's state dict and back: its names for weights and masks, its numbering of parameters.

The zoo numbers optimizer state by parameter groups: weight-decayed first, then the rest; within each by muP's learning
rate scale (1.0 last); within that in its model's order, which is ours with `ln_f` before the layers. It keeps
beta ** (step + 1) where we keep the step. What it has no place for (ages of regrown weights, our JSON state) is under
a key of our own, `mediswift`, which its loaders pass over; with it, a run goes there and back bit by bit.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.config.sections.base import OneOf
from modelzoo.config.sections.model import MUP_GROUPS, GPTConfig
from modelzoo.config.trainer import Init
from modelzoo.config.values.patterns import matches
from modelzoo.finite import are_finite
from modelzoo.interop.mdl.file import OURS, Leaf, Link, read_mdl
from modelzoo.models.shapes import list_parameters
from modelzoo.names import HEAD, HEAD_WEIGHT, WORDS_WEIGHT, is_mask, name_mask, name_weight
from modelzoo.optim.adam import FOREVER
from modelzoo.optim.groups import lr_scale
from modelzoo.optim.lr import rate_at
from modelzoo.planning.start_checkpoint import check_state
from modelzoo.reading import parse_json
from modelzoo.training.checkpoints import checkpoint
from modelzoo.training.checkpoints.snapshot import EXPLORED, ORDERS
from modelzoo.training.checkpoints.state_json import CheckpointState

OURS = OURS
SECTIONS = ("model", "optimizer", "global_step", OURS)
FINAL, TWIN = "model.ln_f.", "model.transformer_decoder.norm."  # one norm, which the zoo's model holds by both names
OF_THIS_MACHINE = ("config", "config_sha256", "logs")  # of state.json: paths, a cluster's section, a folder's logs
SHARED = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # state of the same name and meaning on both sides


def load_checkpoint(path: str, init: Init, dataset: str | None) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The checkpoint at `path`, a step folder or a `.mdl`, as files and state. Other arguments as in `from_zoo`."""
    if not path.endswith(".mdl"):
        return checkpoint.load(path)
    return convert_from_zoo(path, read_mdl(path, SECTIONS), init, dataset)


def list_parameter_groups(c: GPTConfig) -> list[tuple[bool, float, list[str]]]:
    """The zoo's parameter groups: whether weights decay, the learning rate's scale, parameter names in its order."""
    shapes = list_parameters(c)
    layers = [n for n in shapes if ".layers." in n]
    order = [n for n in shapes if n not in layers and not n.startswith(HEAD)]
    order += layers + [n for n in shapes if n.startswith(HEAD)]
    scales = [
        lr_scale(n, c)
        for patterns in MUP_GROUPS.values()
        for n in order
        if any(matches(n, p) for p in patterns) and lr_scale(n, c) != 1.0
    ]
    found = []
    for decays in (True, False):
        for scale in dict.fromkeys([*scales, 1.0]):
            names = [
                n
                for n in order
                if (shapes[n].kind not in ("bias", "norm")) is decays and math.isclose(lr_scale(n, c), scale)
            ]
            if names:
                found.append((decays, scale, names))
    return found


def convert_to_zoo(files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], init: Init) -> dict[str, Any]:
    """A loaded checkpoint of ours as the zoo's nested state, for `mdl.write`.

    Args:
        init: the run's config: the zoo's loader takes the optimizer's settings from the file.
    """
    saved = check_state(state, "the checkpoint")
    c = saved.model
    if foreign := sorted(n for n in files["model"] if name_weight(n) not in list_parameters(c)):
        raise UserError(
            f"{foreign[0][:120]!a}: Model Zoo's GPT has no such parameter; export to a Hugging Face folder instead"
        )
    weights, moments = files["model"], files.get("optimizer", {})
    model: dict[str, Any] = dict(weights)
    if c.share_embedding_weights:
        model[HEAD_WEIGHT] = Link(f"model.{WORDS_WEIGHT}")
    for name in [n for n in weights if n.startswith(FINAL)]:
        model[TWIN + name.removeprefix(FINAL)] = Link(f"model.{name}")
    found = list_parameter_groups(c)
    names = [n for _, _, group in found for n in group]
    step = saved.global_step - saved.skipped
    entries = {i: _their_moments(n, moments, init) for i, n in enumerate(names)}
    extras = {k: x for k, x in moments.items() if k.rpartition("/")[2] not in SHARED}
    sparsity = [{} if g.algorithm == "static" else {"step": torch.tensor(step), "sparsity": {}} for g in init.sparsity]
    return {
        "model": model,
        "optimizer": {"state": {i: e for i, e in entries.items() if e}, "param_groups": _settings(found, init, step)},
        "global_step": saved.global_step,
        **({"sparsity": sparsity} if sparsity else {}),
        OURS: {
            "state": json.dumps({k: v for k, v in state.items() if k not in OF_THIS_MACHINE}),
            "names": json.dumps(names),
            "optimizer": extras,
            **{key: dict(found) for key in (EXPLORED, ORDERS) if (found := files.get(key))},
        },
    }


def _optimizer(init: Init) -> OneOf:
    """The config's optimizer, without which no run has moments."""
    assert init.optimizer is not None
    return init.optimizer


def _their_moments(name: str, moments: Mapping[str, Tensor], init: Init) -> dict[str, Tensor]:
    found = {entry: moments[f"{name}/{entry}"] for entry in SHARED if f"{name}/{entry}" in moments}
    o = _optimizer(init).value
    if f"{name}/step" in moments and o.correct_bias:
        step = float(moments[f"{name}/step"]) + 1
        for i, beta in enumerate(o.betas, 1):
            found[f"beta{i}_power"] = torch.tensor(beta**step, dtype=torch.float32)
    return found


def _settings(found, init: Init, step: int) -> list[dict[str, Any]]:
    o, scaled, first, done = _optimizer(init).value, any(s != 1.0 for _, s, _ in found), 0, []
    lr = rate_at(init, step)
    for decays, scale, names in found:
        decay = o.weight_decay if decays else 0.0
        own: dict[str, Any] = {"lr": lr * scale}
        if _optimizer(init).name == "SGD":
            own |= {"momentum": o.momentum, "dampening": o.dampening, "weight_decay": decay, "nesterov": o.nesterov}
            own |= {"maximize": False}
        else:
            l2 = _optimizer(init).name == "Adam"
            own |= {"betas": tuple(o.betas), "eps": o.eps, "correct_bias": o.correct_bias, "amsgrad": False}
            own |= {"weight_decay": 0.0 if l2 else decay, "l2_regularization_rate": decay if l2 else 0.0}
        if scaled:
            own["adjust_learning_rate"] = scale
        done.append({**own, "params": list(range(first, first + len(names)))})
        first += len(names)
    return done


def convert_from_zoo(path: str, leaves: Mapping[str, Leaf], init: Init, dataset: str | None):
    """The zoo's leaves (`mdl.read` with SECTIONS) as files and state of a checkpoint of ours.

    Args:
        init: the config of the run that will continue it.
        dataset: fingerprint of the data whose position `global_step` counts; None leaves the position unknown.

    Raises:
        UserError: weights, masks or optimizer state that don't fit the config.
    """
    state = _json(path, leaves, f"{OURS}.state")
    sizes = {n: s.size for n, s in list_parameters(init.model).items()}
    model = _model(path, leaves, init.model, sizes)
    names = _json(path, leaves, f"{OURS}.names")
    if state is not None:
        check_state(state, path)
        CheckpointState.parse(path, state)
    if names is None:
        names = [n for _, _, g in list_parameter_groups(init.model) for n in g]
    elif not isinstance(names, list) or not all(isinstance(n, str) and n in sizes for n in names):
        raise UserError(f"{path}: {OURS}.names: are not the names of the config's parameters; it is of another model")
    moments = _our_moments(path, leaves, names, sizes, init, state is not None)
    if state is None:
        finite = are_finite(x for n, x in model.items() if not is_mask(n))
        place, count = dataset or f"unknown ({path})", _count_steps(path, leaves)
        state = CheckpointState.of(init, global_step=count, dataset=place, finite=finite).as_json()
    files = {"model": model, "optimizer": moments}
    for key, dtype in ((EXPLORED, torch.uint8), (ORDERS, torch.int32)):
        if found := _read_records(path, leaves, sizes, key, dtype):
            files[key] = found
    return files, state


def _read_records(
    path: str, leaves: Mapping[str, Leaf], sizes: Mapping[str, tuple[int, ...]], key: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What our own section holds of each parameter under `key`: which weights were ever live, or orders of inputs."""
    start = f"{OURS}.{key}."
    found = {k.removeprefix(start): x for k, x in leaves.items() if k.startswith(start)}
    for name, x in found.items():
        if name not in sizes or not isinstance(x, Tensor) or x.dtype != dtype or x.dim() != 1:
            raise UserError(f"{path}: {start}{name}: is no record of a parameter of the config's model")
    return {n: x.contiguous() for n, x in found.items() if isinstance(x, Tensor)}


def _json(path: str, leaves: Mapping[str, Leaf], key: str) -> Any:
    """The value of a leaf that holds JSON; None where there is no such leaf."""
    text = leaves.get(key)
    if text is None:
        return None
    try:
        return parse_json(text if isinstance(text, str) else "")
    except ValueError as e:
        raise UserError(f"{path}: {key}: is not valid JSON ({e})") from None


def _number(path: str, key: str, value: Leaf) -> float:
    """A leaf that is one number."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UserError(f"{path}: {key}: is no number")
    return number


def _count_steps(path: str, leaves: Mapping[str, Leaf]) -> int:
    """`global_step`; 0 where there is none."""
    if (value := leaves.get("global_step")) is None:
        return 0
    count = _number(path, "global_step", value)
    if not 0 <= count < 2**63 or count != int(count):
        raise UserError(f"{path}: global_step: {count!r} is no count of steps")
    return int(count)


def _model(path: str, leaves, c: GPTConfig, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    found = {k.removeprefix("model."): v for k, v in leaves.items() if k.startswith("model.")}
    if not found:
        raise UserError(f"{path}: holds no model")
    if not any(k.startswith("model.") for k in found):  # releases before 1.9 wrote no inner prefix
        found = {f"model.{k}": v for k, v in found.items()}
    for twin in [k for k in found if k.startswith(TWIN)]:
        found.setdefault(FINAL + twin.removeprefix(TWIN), found.pop(twin))
    tied = found.pop(HEAD_WEIGHT, None) if c.share_embedding_weights else None
    out: dict[str, Tensor] = {}
    for name, x in found.items():
        weight = name_weight(name)
        if weight not in sizes or not isinstance(x, Tensor):
            raise UserError(f"{path}: has {name}, which the config's model has not")
        if tuple(x.shape) != sizes[weight]:
            raise UserError(f"{path}: {name} is {list(x.shape)}, the config's model has {list(sizes[weight])}")
        if not (x.is_floating_point() or (name != weight and x.dtype in (torch.bool, torch.uint8))):
            raise UserError(f"{path}: {name} is of {x.dtype}; weights are floating-point and masks bool")
        out[name] = (x.bool() if name != weight else x.float()).contiguous()
    words = found.get(WORDS_WEIGHT)
    if tied is not None and not (isinstance(tied, Tensor) and isinstance(words, Tensor) and _same(tied, words)):
        raise UserError(f"{path}: {HEAD_WEIGHT} differs from the embedding; set model.share_embedding_weights: false")
    if missing := sorted(sizes.keys() - out.keys()):
        raise UserError(f"{path}: lacks {missing[0]} and {len(missing) - 1} more; it is of another model")
    return _nan_masks(out)


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))


def _nan_masks(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Release 1.9 kept no masks: a pruned weight is NaN there. A weight that is partly NaN gets its mask from that."""
    for name in [n for n in model if not is_mask(n) and name_mask(n) not in model]:
        off = torch.isnan(model[name])
        if off.any() and not off.all() and model[name].dim() == 2:
            model[name], model[name_mask(name)] = model[name].masked_fill(off, 0.0), ~off
    return model


def _our_moments(path: str, leaves, names: list[str], sizes, init: Init, ours: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key in [k for k in leaves if k.startswith(f"{OURS}.optimizer.")]:
        name, _, entry = key.removeprefix(f"{OURS}.optimizer.").rpartition("/")
        if name not in sizes or not isinstance(x := leaves[key], Tensor) or (x.dim() and tuple(x.shape) != sizes[name]):
            raise UserError(f"{path}: {key}: is no state of a parameter of the config's model")
        found[f"{name}/{entry}"] = x.contiguous()
    for key, x in leaves.items():
        if not key.startswith("optimizer.state."):
            continue
        number, _, entry = key.removeprefix("optimizer.state.").partition(".")
        if not (number.isascii() and number.isdecimal() and len(number) < 9 and int(number) < len(names)):
            raise UserError(f"{path}: {key}: the config's model has {len(names)} parameters; it is of another model")
        name = names[int(number)]
        if entry in SHARED:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise UserError(f"{path}: {key}: is no tensor of floating-point numbers")
            if tuple(x.shape) != sizes[name]:
                raise UserError(
                    f"{path}: {key} is {list(x.shape)}, but {name} has {list(sizes[name])}: the optimizer's parameters "
                    "are in another order than Model Zoo 2.10's; take the weights alone with --weights"
                )
            found[f"{name}/{entry}"] = x.float().masked_fill(torch.isnan(x), 0.0)
        elif entry == "beta2_power" and not ours:
            found[f"{name}/step"] = torch.tensor(_step(_number(path, key, x), init, _count_steps(path, leaves)))
    own = init.optimizer
    if own is not None and own.name != "SGD" and not ours and not own.value.correct_bias:
        found |= {f"{k.rpartition('/')[0]}/step": torch.tensor(FOREVER) for k in list(found) if k.endswith("/exp_avg")}
    return found


def _step(power: float, init: Init, global_step: int) -> float:
    """The step count behind beta2 ** (step + 1); the file's global step where float32 has lost it."""
    betas = getattr(init.optimizer.value, "betas", None) if init.optimizer else None
    beta = betas[1] if betas else 0.0
    if 1e-30 < power < 1.0 and 0 < beta < 1:
        return float(round(math.log(power) / math.log(beta)) - 1)
    return float(global_step)
