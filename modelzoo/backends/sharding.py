"""`backend.parallel: shard`: each rank holds its share of weights, gradients, Adam moments and masks (FSDP2).

torch's `fully_shard` gathers a layer's weights before they are used and frees them afterwards, and sums gradients into
the shares. All else (masks, clipping, the optimizer, checkpoints) sees this rank's rows as plain tensors. A whole
tensor exists at mask updates and checkpoints only, one at a time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modelzoo.backends.base import Backend
from modelzoo.config.errors import UserError
from modelzoo.config.sections.sparsity_schedules import Constant
from modelzoo.config.trainer import Init
from modelzoo.distributed import Ranks
from modelzoo.kernels.blocks.layout import layout_of
from modelzoo.models.decoder import DecoderLayer
from modelzoo.models.gpt import GPTModel
from modelzoo.sparsity import masks
from modelzoo.sparsity.attach import Sparsity
from modelzoo.sparsity.parameter import PackedLinear, PackedParameter, SparseParameter


def check(init: Init) -> None:
    """Refuse what cannot be shared out among ranks.

    Raises:
        UserError: names the key.
    """
    for i, group in enumerate(init.sparsity):
        if group.algorithm == "sr_ste":
            raise UserError(
                f"trainer.init.sparsity.{i}.algorithm: sr_ste keeps weights apart that are not shared out among ranks; "
                "take backend.parallel: replicate"
            )
        changes = group.init_method == "from_zeros" or (
            group.storage == "packed" and not isinstance(group.sparsity, Constant)
        )
        if group.may_pack and changes:
            raise UserError(
                f"trainer.init.sparsity.{i}.storage: packed weights whose number of live blocks changes cannot be "
                "shared out among ranks; take storage: masked, or backend.parallel: replicate"
            )
    for key, given in (("soft_prompt", init.soft_prompt), ("backend.torch_compile", init.backend.torch_compile)):
        if given:
            raise UserError(f"trainer.init.{key}: does not go with backend.parallel: shard; leave one of them out")


class ModelShares:
    """This rank's rows of every parameter of a model.

    Attributes:
        parameters: plain tensors by name, which share their memory with the model's own.
    """

    def __init__(self, backend: Backend, model: GPTModel, sparsity: Sparsity):
        """Share out `model` and the masks of `sparsity`, which are the same on all ranks."""
        self.ranks = backend.ranks
        shapes = {n: p.shape for n, p in model.named_parameters()}
        _shard(model, backend)
        self._leaves = dict(model.named_parameters())
        with torch.no_grad():
            self.parameters = {
                n: nn.Parameter(_local(p), requires_grad=p.requires_grad) for n, p in self._leaves.items()
            }
        self._shapes = {p: shapes[n] for n, p in self.parameters.items()}
        sparsity.replace(self._share)
        self._sparse = {p.weight: p for p in sparsity.parameters}
        sparsity.notes.append(f"storage    each of {self.ranks.size} processes holds a share of weights and moments")

    def _share(self, p: SparseParameter) -> SparseParameter:
        if isinstance(p, PackedParameter):
            return SharedPacked(p, self.parameters[p.name], self.ranks)
        return SharedParameter(p, self.parameters[p.name], self.ranks)

    def whole(self, weight: nn.Parameter, x: Tensor) -> Tensor:
        """`x`, one of `parameters` or something of its form (moments), of all ranks. All must call it."""
        if x.shape != weight.shape:
            return x
        sparse = self._sparse.get(weight)
        return self.ranks.gather_rows(x, self._shapes[weight]) if sparse is None else sparse.whole(x)

    def stored(self, weight: nn.Parameter, x: Tensor) -> Tensor:
        """The inverse: this rank's rows of `x`."""
        if x.shape != self.shape(weight):
            return x
        sparse = self._sparse.get(weight)
        return self.ranks.share_rows(x) if sparse is None else sparse.stored(x)

    def shape(self, weight: nn.Parameter) -> torch.Size:
        """The whole shape of one of `parameters`."""
        sparse = self._sparse.get(weight)
        return self._shapes[weight] if sparse is None else sparse.shape

    def take_gradients(self) -> None:
        """Move this rank's rows of the gradients from the model to `.grad` of `parameters`."""
        for name, leaf in self._leaves.items():
            grad, leaf.grad = leaf.grad, None
            self.parameters[name].grad = None if grad is None else _local(grad)


class SharedParameter(SparseParameter):
    """A weight under a mask, of both of which this rank holds its rows. What goes in and out of it is whole.

    Attributes:
        part: this rank's rows of the mask, bool.
    """

    def __init__(self, masked: SparseParameter, weight: nn.Parameter, ranks: Ranks):
        self.name, self.block, self.order, self.dense_grad = masked.name, masked.block, masked.order, None
        self.weight, self.ranks, self._shape = weight, ranks, masked.shape
        self.set_mask(masked.mask)

    def set_mask(self, mask: Tensor) -> None:
        self.part = self.stored(mask).to(self.weight.device, copy=True)
        self.keep, self.live = masks.bits(self.part), int(mask.sum())
        self._digest = masks.digest(mask, self.order)  # of the whole: a gathered mask would be the same everywhere

    @property
    def mask(self) -> Tensor:
        return self.whole(self.part)

    @property
    def shape(self) -> torch.Size:
        return self._shape

    def whole(self, x: Tensor) -> Tensor:
        return self.ranks.gather_rows(x, self._shape)

    def stored(self, x: Tensor) -> Tensor:
        return self.ranks.share_rows(x)

    def mask_state(self, state) -> None:
        for tensor in state.values():
            if isinstance(tensor, Tensor) and tensor.shape == self.weight.shape:
                tensor.masked_fill_(~self.part, 0)

    def live_places(self) -> None:  # the library sends whole rows
        return None

    def whole_gradient(self) -> Tensor | None:
        return None if self.dense_grad is None else self.whole(self.dense_grad)

    def digest(self) -> str:
        return self._digest


class SharedPacked(PackedParameter):
    """A weight that is stored as its live blocks, of which this rank holds its share. All know where blocks are."""

    def __init__(self, p: PackedParameter, weight: nn.Parameter, ranks: Ranks):
        self.name, self.block, self.order, self.module, self.dense_grad = p.name, p.block, p.order, p.module, None
        self.weight, self.ranks = weight, ranks
        self.module.layout = self.layout.to(weight.device)

    @property
    def live(self) -> int:
        return self.layout.nnz * self.area

    def whole(self, x: Tensor) -> Tensor:
        return super().whole(self.ranks.gather_rows(x, torch.Size((self.layout.nnz, *self.block))))

    def stored(self, x: Tensor) -> Tensor:
        return self.ranks.share_rows(super().stored(x))

    def move(self, mask, state, weight=None):
        layout = layout_of(self.gathered(mask), self.block, self.order)
        if layout.nnz != self.layout.nnz:
            raise UserError(
                f"{self.name}: {layout.nnz} live blocks where {self.layout.nnz} are shared out among ranks; take "
                "trainer.init.sparsity.storage: masked, or backend.parallel: replicate"
            )
        before, self.weight.grad = self.layout, None
        kept = [x for x in state.values() if isinstance(x, Tensor) and x.shape == self.weight.shape]
        for x in [self.weight, *kept]:  # one at a time is whole
            self.module.layout = before
            found = self.whole(x.detach()) if weight is None or x is not self.weight else weight
            self.module.layout = layout
            x.copy_(self.stored(found))

    def whole_gradient(self) -> Tensor | None:
        return None if self.dense_grad is None else self.ranks.sum(self.dense_grad)  # each rank's is of its own rows


def _local(x: Any) -> Tensor:
    """This rank's rows of a tensor of `fully_shard`'s."""
    return x.to_local()


def _shard(model: GPTModel, backend: Backend) -> None:
    """Share out a model's parameters: a group for the linears of each layer, and one for the rest.

    Linears travel in the type in which they are multiplied. Norms and embeddings stay float32, as without shards, and
    so do live blocks, whose kernels take them so.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = backend.ranks.mesh(backend.device.type)
    low = None if backend.dtype == torch.float32 else backend.dtype
    products = MixedPrecisionPolicy(low, torch.float32, cast_forward_inputs=False)
    rest = MixedPrecisionPolicy(None, torch.float32, cast_forward_inputs=False)
    for layer in model.modules():
        if isinstance(layer, DecoderLayer):
            blocked = any(isinstance(m, PackedLinear) for m in layer.modules())
            fully_shard([layer.self_attn, layer.ffn], mesh=mesh, mp_policy=rest if blocked else products)
    fully_shard(model, mesh=mesh, mp_policy=rest)
    register_fsdp_forward_method(model, "score")
    for module in model.modules():  # a setting does not go down to submodules
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the loss is divided by the whole batch's tokens already
            module.set_force_sum_reduction_for_comms(True)


def clip_norm(ranks: Ranks, grads: Sequence[Tensor], limit: float) -> Tensor:
    """Shorten a gradient, of which each rank has a share, to norm `limit`; returns the norm it had, float64."""
    squares = [torch.linalg.vector_norm(g).double().square() for g in grads]
    norm = ranks.sum(torch.stack(squares).sum()).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0).float()
    torch._foreach_mul_(list(grads), factor)  # pyright: ignore[reportPrivateImportUsage]  as in clipping
    return norm
