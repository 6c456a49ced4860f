"""Optimizers over named parameters: who decays, whose learning rate muP scales, and the torch classes behind them."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import nn

from modelzoo.config.sections import optim as c
from modelzoo.config.sections.model import MUP_GROUPS, GPTConfig
from modelzoo.config.values.patterns import matches
from modelzoo.optim.adam import AgedAdam


def lr_scale(name: str, model: GPTConfig, density: Mapping[str, float] = MappingProxyType({})) -> float:
    """What multiplies the learning rate of parameter `name`: muP's 1 / width factor for decoder weights, else 1.

    `density` (`sparsity.mup.density_ratios`) divides it: sparse muP.

    The model's defaults (Model Zoo's GPT2LMHeadModel) hold unless `lr_adjustment_groups` overrides a group's scale.
    """
    scales = dict.fromkeys(MUP_GROUPS, 1.0)
    if model.mup_base_hidden_size is not None and model.mup_base_filter_size is not None:
        scales["decoder_attention"] = scales["decoder_input_ffn"] = model.mup_base_hidden_size / model.hidden_size
        scales["decoder_output_ffn"] = model.mup_base_filter_size / model.filter_size
    patterns: dict[str, tuple[str, ...]] = dict(MUP_GROUPS)
    for group, override in (model.lr_adjustment_groups or {}).items():
        scales[group], patterns[group] = override.scale, override.patterns
    scale = 1.0
    for group, chosen in patterns.items():
        if any(matches(name, pattern) for pattern in chosen):
            scale *= scales[group]
    return scale / density.get(name, 1.0)


def param_groups(
    model: nn.Module | Mapping[str, nn.Parameter],
    kinds: Mapping[str, str],
    decay: float,
    config: GPTConfig,
    density: Mapping[str, float] = MappingProxyType({}),
) -> list[dict]:
    """Parameters that train by (weight decay, LR scale).

    Biases and norms do not decay, as in Model Zoo, nor do soft prompts (few vectors, and zero is no good place for
    one); embeddings and LoRA's matrices do.

    Args:
        model: or its parameters by name.
        kinds: parameter name to kind (`models.shapes`).
    """
    named = model.named_parameters() if isinstance(model, nn.Module) else model.items()
    groups: dict[tuple[float, float], dict] = {}
    for name, p in named:
        if not p.requires_grad:
            continue
        key = (0.0 if kinds[name] in ("bias", "norm", "prompt") else decay, lr_scale(name, config, density))
        group = groups.setdefault(key, {"params": [], "names": [], "weight_decay": key[0], "lr_scale": key[1]})
        group["params"].append(p)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(
    config: c.Optimizer,
    model: nn.Module | Mapping[str, nn.Parameter],
    kinds: Mapping[str, str],
    model_config: GPTConfig,
    aged: list[nn.Parameter],
    density: Mapping[str, float] = MappingProxyType({}),
    warmup: Mapping[nn.Parameter, int] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """The optimizer that `config` names, fused where torch has it.

    Args:
        aged: weights whose places change during training; Adam corrects their bias by their own age.
        density: density over base density by name, where the learning rate is corrected for it (sparse muP).
        warmup: of `aged`: steps over which Adam's updates of regrown weights rise to their full size.
    """
    o = config.value
    groups = param_groups(model, kinds, o.weight_decay, model_config, density)
    if isinstance(o, c.Adam):
        return AgedAdam(
            groups,
            betas=o.betas,
            eps=o.eps,
            decoupled=isinstance(o, c.AdamW),
            correct_bias=o.correct_bias,
            aged=aged,
            warmup=warmup,
            raw_eps=o.compat is not None,
        )
    return torch.optim.SGD(groups, lr=0.0, momentum=o.momentum, dampening=o.dampening, nesterov=o.nesterov, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Put the step's learning rate, times each group's scale, where torch reads it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
