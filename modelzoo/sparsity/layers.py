"""The sparse weights of any module as a table: live weights, and training FLOPs where a shape tells them."""

from typing import NamedTuple

from torch import nn

from modelzoo.sparsity.attach import Sparsity
from modelzoo.sparsity.modules import is_conv1d
from modelzoo.sparsity.parameter import PackedLinear


class Layer(NamedTuple):
    """A sparse weight.

    Attributes:
        shape: (out, in) of a matrix, however it is stored.
        live: weights that are on. total: all.
        flops: of training for one row of input (a token), multiplied by live weights alone, in the step to come;
            dense_flops: had all been on. None where rows of input do not tell (convolutions, embeddings). Counted as
            `sparsity.flops` does: 6 a weight, 4 where it does not train, RigL's updates with their dense gradient.
    """

    name: str
    shape: tuple[int, ...]
    live: int
    total: int
    flops: int | None
    dense_flops: int | None

    @property
    def sparsity(self) -> float:
        """Share of the weights that is off."""
        return 1 - self.live / self.total


def describe_layers(module: nn.Module, sparsity: Sparsity, steps: int) -> list[Layer]:
    """The sparse weights in order, after `steps` optimizer steps."""
    found = []
    for group in sparsity.groups:
        asks = group.algorithm.needs_gradient and group.is_update(steps + 1)
        for p in group.parameters:
            owner = module.get_submodule(p.name.rpartition(".")[0])
            multiplies = isinstance(owner, nn.Linear | PackedLinear) or is_conv1d(owner)
            total, known = p.shape.numel(), multiplies and len(p.shape) == 2
            passes = 6 if p.weight.requires_grad else 4
            dead = 2 * (total - p.live) if asks and p.weight.requires_grad else 0
            flops = (passes * p.live + dead, passes * total) if known else (None, None)
            found.append(Layer(p.name, tuple(p.shape), p.live, total, *flops))
    return found


def format_layers(layers: list[Layer]) -> str:
    """A table of layers and their sum; FLOPs are of training, for one row of input."""
    flops = lambda n: "-" if n is None else f"{n:,}"
    rows = [("weight", "shape", "live", "off", "FLOPs", "dense")]
    for layer in layers:
        shape = " x ".join(map(str, layer.shape))
        rows.append((layer.name, shape, f"{layer.live:,}", f"{layer.sparsity:.2%}", flops(layer.flops),
                     flops(layer.dense_flops)))  # fmt: skip
    live, total = sum(x.live for x in layers), sum(x.total for x in layers)
    known = [x for x in layers if x.flops is not None]
    sums = [sum(y for x in known if (y := getattr(x, key)) is not None) for key in ("flops", "dense_flops")]
    off = f"{1 - live / max(total, 1):.2%}"
    rows.append((f"{len(layers)} weights", "", f"{live:,}", off, flops(sums[0]), flops(sums[1])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
