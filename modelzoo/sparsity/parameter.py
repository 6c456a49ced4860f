"""One sparse weight: stored whole under a mask, or as its live blocks alone. Both move masks and state the same way."""

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modelzoo.kernels.blocks import tiling
from modelzoo.kernels.blocks.layout import Layout, layout_of, pack, repack, unpack
from modelzoo.kernels.compiled.rows import zero_dead
from modelzoo.kernels.products import packed, semi_structured
from modelzoo.sparsity import masks


class SparseParameter:
    """A weight that is stored whole, with its mask.

    Attributes:
        name: the parameter's name. weight: [out, in], zero where it is dead.
        block: (rows, columns) that live or die together.
        order: of the inputs in which blocks are formed, [in] int64; None where they are formed of inputs as they are.
        mask: [out, in] bool. keep: the mask as bits by the weight's axes, kept because every step needs it.
        live: how many weights live.
        dense_grad: on RigL's update steps, the gradient of dead weights too, of the weight's form.
        step_grad: the gradient with which the step was taken, where others may have changed the weight's since.
    """

    step_grad: Tensor | None = None

    def __init__(self, name: str, weight: nn.Parameter, block: Sequence[int] = (1, 1)):
        self.name, self.weight, self.block = name, weight, (block[0], block[1])
        self.order: Tensor | None = None
        self.dense_grad: Tensor | None = None
        self.set_mask(torch.ones(self.shape, dtype=torch.bool, device=weight.device))

    def turned(self, x: Tensor) -> Tensor:
        """An [out, in] by the axes that the module has for it, or the other way round."""
        return x

    def set_mask(self, mask: Tensor) -> None:
        """Record a mask [out, in]; the weight stays as it is."""
        self.mask, self.keep, self.live = mask, masks.bits(self.turned(mask).contiguous()), int(mask.sum())
        self._places: Tensor | None = None

    def live_places(self) -> Tensor | None:
        """Flat positions of the live weights, where dead ones are stored; found once a mask, kept for every step."""
        if self._places is None:
            self._places = self.keep.view(-1).nonzero().squeeze(1)
        return self._places

    def probe(self) -> Tensor | None:
        """What collects the dense gradient in its `.grad`, apart from the weight; None where the weight's has it."""
        return None

    @property
    def shape(self) -> torch.Size:
        """(out, in), however the weight is stored."""
        return self.weight.shape

    @property
    def area(self) -> int:
        """Weights in a block."""
        return self.block[0] * self.block[1]

    @property
    def grain(self) -> tuple[int, int]:
        """The (rows, columns) that live or die together in any order of inputs."""
        return self.block if self.order is None else (self.block[0], 1)

    def scores(self, x: Tensor) -> Tensor:
        """Scores of blocks from an [out, in], one by one where weights live alone."""
        return tiling.scores(x, self.block, self.order)

    def spread(self, live: Tensor) -> Tensor:
        """The mask [out, in] of live blocks."""
        return tiling.spread(live, self.block, self.order)

    def gathered(self, mask: Tensor) -> Tensor:
        """The blocks of a mask [out, in] that have a live weight."""
        return tiling.gathered(mask, self.block, self.order)

    def whole(self, x: Tensor) -> Tensor:
        """`x`, the weight or something of its form (gradient, moments), as [out, in]: the form of checkpoints."""
        return x

    def stored(self, x: Tensor) -> Tensor:
        """An [out, in] in the weight's own form."""
        return x

    def move(self, mask: Tensor, state: MutableMapping[str, Any], weight: Tensor | None = None) -> None:
        """Change the mask. What is dead becomes zero, what grows starts at zero, in the optimizer's `state` too.

        Its blocks are of inputs in `order` as that is now.

        Args:
            mask: [out, in] bool, True where weights live.
            weight: [out, in] to take values from; default: its own.
        """
        if weight is not None:
            self.weight.copy_(self.stored(weight))
        self.set_mask(mask)
        self.mask_weight()
        if self.weight.grad is not None:
            zero_dead(self.weight.grad, self.keep)
        self.mask_state(state)

    def mask_weight(self) -> None:
        """Zero what is dead."""
        zero_dead(self.weight, self.keep)

    def mask_state(self, state: MutableMapping[str, Any]) -> None:
        """Zero what is dead in optimizer state."""
        for tensor in state.values():
            if isinstance(tensor, Tensor) and tensor.shape == self.weight.shape:
                tensor.masked_fill_(self.keep == 0, 0)

    def watch(self) -> None:
        """Before a forward pass: the dense gradient will be asked for."""

    def mask_gradient(self, dense: bool) -> float | None:
        """Zero the gradient of what is dead; with `dense`, keep it in `dense_grad` first.

        Returns:
            The sum of squares of what is left, where it could be had on the way.
        """
        if self.weight.grad is None:
            return None
        self.dense_grad = self.weight.grad.clone() if dense else None
        return zero_dead(self.weight.grad, self.keep)

    def drop_gradient(self) -> None:
        """Forget the kept gradients."""
        self.dense_grad = self.step_grad = None

    def whole_gradient(self) -> Tensor | None:
        """The kept gradient, [out, in]."""
        return self.dense_grad

    def live_gradient(self) -> Tensor | None:
        """The gradient with which the step was taken, [out, in], zero where the weight is dead."""
        grad = self.weight.grad if self.step_grad is None else self.step_grad
        return None if grad is None else self.whole(grad)

    def digest(self) -> str:
        """The hash of the mask and of the order of its inputs, as this process found it."""
        return masks.digest(self.mask, self.order)


class TransposedParameter(SparseParameter):
    """A weight that its module stores as [in, out], as Hugging Face's Conv1D does."""

    @property
    def shape(self) -> torch.Size:
        return torch.Size(reversed(self.weight.shape))

    def turned(self, x: Tensor) -> Tensor:
        return x.t()

    def whole(self, x: Tensor) -> Tensor:
        return x.t()

    def stored(self, x: Tensor) -> Tensor:
        return x.t()

    def whole_gradient(self) -> Tensor | None:
        return None if self.dense_grad is None else self.dense_grad.t()


class RefinedParameter(SparseParameter):
    """A weight whose dead places train too, apart from it: it is zero there but for the optimizer's step.

    Attributes:
        dormant: the values of dead weights, of the weight's form; zero where it lives.
        decay: times these, is added to their gradients.
    """

    def __init__(self, name: str, weight: nn.Parameter, decay: float):
        self.dormant, self.decay = torch.zeros_like(weight, requires_grad=False), decay
        super().__init__(name, weight)

    def wake(self) -> None:
        """Put the dead weights where the optimizer steps; `move` takes them away again."""
        if self.weight.grad is not None:
            self.weight.grad.add_(self.dormant, alpha=self.decay)
        self.weight.add_(self.dormant)

    def move(self, mask, state, weight=None):
        if weight is not None:
            self.weight.copy_(weight)
        self.dormant.copy_(self.weight.masked_fill(mask, 0.0))
        super().move(mask, state)

    def mask_state(self, state) -> None:
        """Dead weights have moments of their own."""

    def mask_gradient(self, dense: bool) -> None:  # dead weights have gradients of their own
        return None

    def whole_gradient(self) -> Tensor | None:
        return self.weight.grad


class PackedLinear(nn.Module):
    """A linear whose weight is its live blocks, [nnz, rows, columns], under the name that the whole weight had."""

    def __init__(self, linear: nn.Linear, layout: Layout):
        super().__init__()
        self.layout = layout
        self.probe: Tensor | None = None
        values = pack(linear.weight.detach(), layout)
        self.weight = nn.Parameter(values, requires_grad=linear.weight.requires_grad)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return packed.linear(x, self.weight, self.layout, self.bias, self.probe)


class SemiStructuredLinear(nn.Linear):
    """A linear with a 2:4 weight that is multiplied compressed. The weight itself is whole: the very one it had."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)  # not Linear's: the weight is there already
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return semi_structured.linear(input, self.weight, self.bias)


class PackedParameter(SparseParameter):
    """A weight that is stored as its live blocks: gradient and optimizer state exist for these alone."""

    def __init__(self, masked: SparseParameter, module: PackedLinear):
        self.name, self.weight, self.block, self.order = masked.name, module.weight, masked.block, masked.order
        self.module, self.dense_grad, self.moves = module, None, 0

    @property
    def layout(self) -> Layout:
        """Where the live blocks are."""
        return self.module.layout

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.layout.shape)

    @property
    def mask(self) -> Tensor:
        return self.layout.mask()

    @property
    def live(self) -> int:
        return self.weight.numel()

    def whole(self, x: Tensor) -> Tensor:
        return unpack(x, self.layout)

    def stored(self, x: Tensor) -> Tensor:
        here = self.weight.device  # packed where it is: of a checkpoint in host memory, live blocks alone are sent
        return pack(x, self.layout.to(x.device)).to(here)

    def move(self, mask, state, weight=None):
        before, now = self.layout, layout_of(self.gathered(mask), self.block, self.order)
        kept = [k for k, x in state.items() if isinstance(x, Tensor) and x.shape == self.weight.shape]
        self.module.layout = now
        self.moves += 1
        values = self.weight.detach()
        values = repack(values, before, now) if weight is None else self.stored(weight.to(values.dtype))
        # .data: the optimizer and the model know the weight by its object, whatever its blocks are now
        self.weight.data, self.weight.grad = values, None
        for key in kept:
            state[key] = repack(state[key], before, now)

    def mask_weight(self) -> None:
        """Nothing dead is stored."""

    def mask_state(self, state) -> None:
        """Nothing dead is stored."""

    def live_places(self) -> None:  # nothing dead is stored
        return None

    def probe(self) -> Tensor | None:
        return self.module.probe

    def watch(self) -> None:
        self.module.probe = packed.probe(self.layout)

    def mask_gradient(self, dense: bool) -> None:  # nothing dead is there to be zeroed
        probe, self.module.probe = self.module.probe, None
        self.dense_grad = probe.grad if dense and probe is not None else None

    def drop_gradient(self) -> None:
        self.module.probe = self.dense_grad = self.step_grad = None
