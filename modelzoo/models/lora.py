"""LoRA: low-rank updates of frozen linear weights (arXiv 2106.09685), initialised and scaled as PEFT does."""

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzoo.config.sections.adapters import LoRA
from modelzoo.draws import make_generator
from modelzoo.models.gpt import GPTModel
from modelzoo.names import LORA_A, LORA_B, is_lora


class LoRALinear(nn.Linear):
    """A linear with `lora_A` [r, in] and `lora_B` [out, r] next to its weight: y = W x + b + alpha / r * B A x.

    The weight keeps its name and place, masks included: what is dead in W stays dead there.
    """

    def __init__(self, linear: nn.Linear, config: LoRA):
        nn.Module.__init__(self)  # not Linear's: the weight is there already
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.dropout = config.scale, config.dropout
        self.lora_A = nn.Parameter(linear.weight.new_empty(config.r, self.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(self.out_features, config.r))

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        low = F.linear(F.dropout(input, self.dropout, self.training) if self.dropout else input, self.lora_A)
        return super().forward(input) + F.linear(low, self.lora_B) * self.scale


def attach(model: GPTModel, config: LoRA, targets: Iterable[str], seed: int) -> None:
    """Replace the modules `targets` (`shapes.find_lora_targets`) by LoRA's. At the start they compute what they did.

    A is drawn from PEFT's kaiming uniform, keyed by seed and name; B is zero.
    """
    for name in targets:
        parent, _, last = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear), name  # `find_lora_targets` names no other
        made = LoRALinear(linear, config)
        setattr(model.get_submodule(parent), last, made)
        if made.weight.device.type not in ("meta", "lazy"):
            bound = 1 / math.sqrt(made.in_features)  # kaiming_uniform with a = sqrt(5)
            with torch.no_grad():
                drawn = torch.rand(made.lora_A.shape, generator=make_generator(seed, name))
                made.lora_A.copy_(drawn * (2 * bound) - bound)


def merge(weights: Mapping[str, Tensor], config: LoRA) -> dict[str, Tensor]:
    """Add every update to its weight: W + alpha / r * B A, summed in float64.

    Returns:
        Weights by name, without LoRA's entries. Masked zeros do not stay zero.
    """
    out = {n: w for n, w in weights.items() if not is_lora(n)}
    for name in [n.removesuffix(LORA_A) for n in weights if n.endswith(LORA_A)]:
        a, b = weights[name + LORA_A].double(), weights[name + LORA_B].double()
        w = out[f"{name}.weight"]
        out[f"{name}.weight"] = (w.double() + config.scale * (b @ a)).to(w.dtype)
    return out
