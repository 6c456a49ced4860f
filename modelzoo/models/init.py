"""Weight initialisation by Model Zoo's names and defaults, muP's scaling included."""

import math

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.config.sections.initializer import Initializer
from modelzoo.config.sections.model import GPTConfig


@torch.no_grad()
def fill_parameter(weight: Tensor, init: Initializer) -> None:
    """Draw `weight` in place from the distribution that `init` names."""
    name, mode = init.name.replace("glorot", "xavier"), init.mode
    if init.val is not None:  # constant, which alone takes one
        weight.fill_(init.val)
    elif name == "ones":
        weight.fill_(1.0)
    elif name == "zeros":
        weight.zero_()
    elif name == "eye":
        nn.init.eye_(weight)
    elif name == "uniform":
        weight.uniform_(-0.05 if init.a is None else init.a, 0.05 if init.b is None else init.b)
    elif name == "normal":
        weight.normal_(init.mean, init.std)
    elif name == "truncated_normal":
        low, high = (-2 * init.std if init.a is None else init.a), (2 * init.std if init.b is None else init.b)
        nn.init.trunc_normal_(weight, init.mean, init.std, low, high)
    elif name.startswith("xavier"):
        getattr(nn.init, f"{name}_")(weight, gain=init.gain)
    elif name.startswith("kaiming"):
        getattr(nn.init, f"{name}_")(weight, a=init.a or 0.0, mode=mode, nonlinearity=init.nonlinearity)
    else:
        _variance_scaling(weight, init)


def _variance_scaling(weight: Tensor, init: Initializer) -> None:
    fan_out, fan_in = weight.shape
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[init.mode]
    std = math.sqrt(init.scale / max(1.0, fan))
    kind = init.distribution or ("uniform" if init.name == "lecun_uniform" else "truncated_normal")
    if kind == "uniform":
        weight.uniform_(-math.sqrt(3) * std, math.sqrt(3) * std)
    elif kind == "normal":
        weight.normal_(0.0, std)
    else:
        nn.init.trunc_normal_(weight, std=std / 0.87962566103423978)  # std of a unit normal cut at +-2


def _scaled(init: Initializer, by: float) -> Initializer:
    if by == 1.0:
        return init
    if init.name not in ("normal", "truncated_normal"):
        raise UserError(f"trainer.init.model: muP scales normal and truncated_normal initializers, not {init.name}")
    cut = {k: getattr(init, k) * by for k in "ab" if getattr(init, k) is not None}
    return init.model_copy(update={"std": init.std * by, **cut})


def initialize(model: nn.Module, c: GPTConfig) -> None:
    """Draw every weight; biases are zero and norms one. Order of draws is the order of parameters.

    Width and depth factors are those of Model Zoo's muP (GPT2LMHeadModel.__init__).
    """
    default = Initializer(name="truncated_normal", std=c.initializer_range)
    depth = (2 * c.num_hidden_layers) ** -0.5
    width = (c.hidden_size / c.mup_base_hidden_size) ** -0.5 if c.mup_base_hidden_size else 1.0
    ffn_width = (c.filter_size / c.mup_base_filter_size) ** -0.5 if c.mup_base_filter_size else 1.0
    attention = c.initializer or default
    ffn = c.ffn_initializer or c.initializer or default
    output = c.output_layer_initializer
    if c.parallel:  # the zoo's gptj has other defaults (GPTJModel.__init__)
        output = output or default
        ffn, ffn_output = c.ffn_initializer or output, c.ffn_output_layer_initializer or output
        if c.mup:
            attention, ffn = _scaled(attention, width), _scaled(ffn, width)
            output, ffn_output = _scaled(output, width * depth), _scaled(ffn_output, ffn_width * depth)
    elif c.mup:
        attention, ffn = _scaled(attention, width), _scaled(ffn, width)
        output = _scaled(output or default, width * depth)
        ffn_output = _scaled(c.ffn_output_layer_initializer or default, ffn_width * depth)
    else:
        if output is None and c.initializer is None:
            output = _scaled(default, depth)
        # With `initializer` given and no other, a block's last matrix is drawn like its first ones.
        ffn_output = c.ffn_output_layer_initializer or output or ffn
        output = output or attention
    embedding = c.embedding_initializer or default
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            fill_parameter(weight, Initializer(name="zeros" if name.endswith("bias") else "ones"))
        elif "lm_head" in name:  # untied: Model Zoo draws it from a plain normal, whatever the embeddings' initializer
            fill_parameter(weight, Initializer(name="normal", std=c.initializer_range))
        elif "embedding" in name:
            fill_parameter(weight, embedding)
        elif "proj_output" in name:
            fill_parameter(weight, output)
        elif "ffn.ffn.1" in name:
            fill_parameter(weight, ffn_output)
        else:
            fill_parameter(weight, ffn if "ffn.ffn.0" in name else attention)
