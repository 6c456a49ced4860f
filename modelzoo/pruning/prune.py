"""Prune a dense model layer by layer: each layer's linears by what the layers before it, already pruned, give them."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modelzoo.models.gpt import GPTModel
from modelzoo.names import layer_of, name_mask
from modelzoo.progress import Progress, format_amount
from modelzoo.pruning.calibration import Inputs, Rows, pass_layer
from modelzoo.pruning.choose import Kept, Plan, keep_largest, keep_wanda
from modelzoo.pruning.sparsegpt import factor_inverse, measure_error, prune_in_best_order, prune_matrix
from modelzoo.pruning.unfinished import Unfinished

METHODS = ("magnitude", "wanda", "sparsegpt")


class Pruned(NamedTuple):
    """A weight after pruning.

    Attributes:
        live: weights that stay, of total. mask: [out, in]. order: of inputs, in which its blocks are, where it has one.
        error: ||W X - W' X|| / ||W X|| over the calibration tokens, where there are
            some; of_magnitude: the same, had the largest weights stayed.
    """

    name: str
    live: int
    total: int
    mask: Tensor
    order: Tensor | None = None
    error: float | None = None
    of_magnitude: float | None = None


@torch.no_grad()
def prune_by_magnitude(weights: Mapping[str, Tensor], plans: Sequence[Plan]) -> list[Pruned]:
    """Zero all but the largest of some weights, in place. No text is needed."""
    found = []
    for plan in plans:
        kept = keep_largest(plan, weights[plan.name])
        weights[plan.name].masked_fill_(~kept.mask, 0.0)
        found.append(_record(plan, kept))
    return found


@torch.no_grad()
def prune_model(
    model: GPTModel, plans: Sequence[Plan], method: str, rows: list[Rows], damping: float, device: torch.device,
    done: Unfinished,
) -> list[Pruned]:  # fmt: skip
    """Prune linears of the decoder's layers in place, in the layers' order.

    Held are the activations between two layers of all calibration tokens, on the host, and the Hessians of one layer.
    As in the papers' code, these are of one pass before any of the layer's weights is pruned; what the next layer reads
    is of another pass, after all are.

    Args:
        model: on `device`. plans: of weights in layers. method: of METHODS. damping: of SparseGPT.
        rows: the calibration text as the first layer reads it; its activations are replaced.
        done: takes each layer when it is pruned, and gives those that were before a kill: the next ones read the same.
    """
    of_layer: dict[int, list[Plan]] = {}
    for plan in plans:
        number = layer_of(plan.name)
        assert number is not None  # the caller took weights of layers
        of_layer.setdefault(number, []).append(plan)
    layers, last, found = model.model.transformer_decoder.layers, max(of_layer), list[Pruned]()
    todo = {n: mine for n, mine in of_layer.items() if not done.has(n)}
    meter = Meter(len(rows) * (len(todo) + last) + sum(map(len, todo.values())))
    for number in range(last + 1):
        layer, mine, text = layers[number], of_layer.get(number, []), f"layer {number + 1}/{len(layers)}"
        if mine and (kept := done.load(number)) is not None:
            found += _take_layer(layer, *kept)
        elif mine:
            linears = {p.name: model.get_submodule(p.name.removesuffix(".weight")) for p in mine}
            with Inputs(linears) as inputs:
                for part in rows:
                    inputs.begin(part.known)
                    pass_layer(model.model, layer, part, device)
                    meter.count(f"{text}, its inputs", part.tokens)
            factors: dict[str, Tensor] = {}  # of the inputs that several linears share
            for plan in mine:
                found.append(_prune_linear(plan, linears[plan.name], inputs, method, damping, factors))
                meter.count(f"{text}, {plan.name.removesuffix('.weight').rpartition('.')[2]}")
            _keep_layer(done, number, layer, found[-len(mine) :])
        for i, part in enumerate(rows if number < last else ()):
            rows[i] = part._replace(hidden=pass_layer(model.model, layer, part, device).cpu())
            meter.count(f"{text}, its outputs", part.tokens)
    meter.close()
    return found


def _prune_linear(
    plan: Plan, linear: nn.Module, inputs: Inputs, method: str, damping: float, factors: dict[str, Tensor]
) -> Pruned:
    weight, gram, source = linear.get_parameter("weight"), inputs.gram(plan.name), inputs.source(plan.name)
    kept = keep_largest(plan, weight)
    left = torch.where(kept.mask, weight, 0.0)
    of_magnitude = measure_error(weight, left, gram)
    if method == "wanda":
        kept = keep_wanda(plan, weight, gram.diagonal().sqrt())
        left = torch.where(kept.mask, weight, 0.0)
    elif method == "sparsegpt" and plan.live < plan.total:
        if source not in factors:
            factors[source] = factor_inverse(gram, damping)
        if plan.group.permute_inputs is None:
            left, mask = prune_matrix(plan, weight.double(), factors[source])
            kept = Kept(mask, None)
        else:
            left, *found = prune_in_best_order(plan, weight.double(), gram, factors[source], damping)
            kept = Kept(*found)
    error = of_magnitude if method == "magnitude" else measure_error(weight, left, gram)
    weight.copy_(left)
    return _record(plan, kept)._replace(error=error, of_magnitude=of_magnitude)


def _record(plan: Plan, kept: Kept) -> Pruned:
    order = None if kept.order is None else kept.order.int().cpu()
    return Pruned(plan.name, int(kept.mask.sum()), plan.total, kept.mask.cpu(), order)


def _keep_layer(done: Unfinished, number: int, layer: nn.Module, pruned: Sequence[Pruned]) -> None:
    facts = [{k: x for k, x in p._asdict().items() if k not in ("mask", "order")} for p in pruned]
    tensors = {**dict(layer.named_parameters()), **{name_mask(p.name): p.mask for p in pruned}}
    tensors |= {_name_order(p.name): p.order for p in pruned if p.order is not None}
    done.save(number, tensors, facts)


def _take_layer(layer: nn.Module, tensors: Mapping[str, Tensor], facts: Sequence[Mapping[str, Any]]) -> list[Pruned]:
    for name, p in layer.named_parameters():
        p.copy_(tensors[name])
    return [
        Pruned(**each, mask=tensors[name_mask(each["name"])], order=tensors.get(_name_order(each["name"])))
        for each in facts
    ]


def _name_order(parameter: str) -> str:
    return f"{parameter}_order"


class Meter:
    """The live line of a pruning: work done of all, with tokens/s of the passes through layers."""

    def __init__(self, whole: int):
        self.live, self.done, self.tokens, self.seconds, self.since = Progress(whole), 0, 0, 0.0, time.perf_counter()

    def count(self, text: str, tokens: int = 0) -> None:
        """A piece of work is done: a batch of so many tokens through a layer, or a matrix."""
        now = time.perf_counter()
        if tokens:
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + now - self.since
        self.done, self.since = self.done + 1, now
        rate = f"  {format_amount(self.tokens / self.seconds)} tokens/s a layer" if self.seconds else ""
        self.live.update(self.done, f"{text}{rate}")

    def close(self) -> None:
        """End the line."""
        self.live.close()
