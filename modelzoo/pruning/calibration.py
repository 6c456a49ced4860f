"""Calibration text: which examples, and what each linear of a layer is given by them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modelzoo.config.errors import UserError
from modelzoo.data.hdf5 import Shards
from modelzoo.draws import make_generator
from modelzoo.finite import are_finite
from modelzoo.models.gpt import GPT


class Rows(NamedTuple):
    """A batch of calibration examples on its way through the layers.

    Attributes:
        hidden: [b, t, hidden_size] float32 on the host: the outputs of the layers so far.
        batch: token ids, loss mask, and the rest of the shards' rows.
        known: [b, t] bool: positions up to the last one that counts; behind it is padding. tokens: how many these are.
    """

    hidden: Tensor
    batch: dict[str, Tensor]
    known: Tensor
    tokens: int


def draw_examples(total: int, samples: int, seed: int) -> list[int]:
    """Numbers of `samples` of `total` examples, none twice, by seed."""
    return torch.randperm(total, generator=make_generator(seed, "calibration", total))[:samples].tolist()


@torch.no_grad()
def read_rows(model: GPT, shards: Shards, examples: list[int], size: int, device: torch.device) -> list[Rows]:
    """The examples in batches of `size`, as the first layer reads them.

    Raises:
        UserError: of `Shards.read`, or no token of them counts.
    """
    found = []
    for batch in shards.holding.watch(shards.read(examples[i : i + size]) for i in range(0, len(examples), size)):
        known = (batch["attention_mask"] > 0).flip(1).cumsum(1).flip(1) > 0
        found.append(Rows(_enter(model, batch, device)[0].cpu(), batch, known, int(known.sum())))
    if not any(part.tokens for part in found):
        raise UserError(f"{shards.files[0].path}: no token of the calibration text counts (its loss mask is all 0)")
    return found


def _enter(model: GPT, batch: dict[str, Tensor], device: torch.device):
    put = {name: x.to(device) for name, x in batch.items()}
    return model.enter(put["input_ids"], put.get("position_ids"), put.get("attention_span"))


@torch.no_grad()
def pass_layer(model: GPT, layer: nn.Module, part: Rows, device: torch.device) -> Tensor:
    """The layer's outputs for a batch, [b, t, hidden_size] on the device."""
    # anew from the ids: rotary angles and masks of all batches would be held as long as their activations
    _, rope, mask = _enter(model, part.batch, device)
    return layer(part.hidden.to(device), rope, mask)


class Inputs:
    """X^T X of the inputs of some linears, [in, in] float64 each; linears that read the same tensor share one.

    A batch is multiplied in float32 and added in float64: its own rounding is far below the damping. In a `with`
    block the linears' inputs are watched.
    """

    def __init__(self, linears: Mapping[str, nn.Module]):
        self.linears = linears
        self._grams: dict[str, Tensor] = {}  # by the first linear that reads the input
        self._first: dict[str, str] = {}
        self._seen: list[tuple[Tensor, str]] = []  # inputs of the batch that is under way
        self._known = torch.empty(0)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "Inputs":
        self._hooks = [m.register_forward_pre_hook(self._watch(name)) for name, m in self.linears.items()]
        return self

    def __exit__(self, *_: object) -> None:
        self._seen = []
        for hook in self._hooks:
            hook.remove()

    def begin(self, known: Tensor) -> None:
        """Expect the inputs of a batch, of whose positions [b, t] those that are `known` count."""
        self._known, self._seen = known, []

    def gram(self, name: str) -> Tensor:
        """X^T X of the linear `name`.

        Raises:
            UserError: it is not finite.
        """
        gram = self._grams[self._first[name]]
        if not are_finite([gram]):
            raise UserError(
                f"{name}: its inputs on the calibration text are not finite; the model overflows in float32"
            )
        return gram

    def source(self, name: str) -> str:
        """The first linear that reads the input of `name`."""
        return self._first[name]

    def _watch(self, name: str) -> Callable:
        def take(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            first = next((other for seen, other in self._seen if seen is x), None)
            self._first[name] = first or name
            if first is not None:
                return
            self._seen.append((x, name))
            tokens = x[self._known.to(x.device)].float()
            product = (tokens.t() @ tokens).double()
            self._grams[name] = self._grams[name].add_(product) if name in self._grams else product

        return take
