"""The weights of any torch module: which are matrices that may be sparse, by what their modules are."""

from typing import NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from modelzoo.config.errors import UserError


class Weight(NamedTuple):
    """A parameter of a module.

    Attributes:
        size: (out, in) of a matrix, however it is stored; else its shape.
        kind: linear (of a Linear or a Conv1D of Hugging Face, and trained), embedding, head, frozen, other, or dense:
            marked so by `requires_dense`, cerebras.pytorch's word for a parameter or module that stays whole.
        transposed: whether the module stores it as [in, out].
    """

    size: tuple[int, ...]
    kind: str
    transposed: bool = False


def unwrap(module: nn.Module) -> nn.Module:
    """The module that torch.compile or DistributedDataParallel has wrapped: its names are those of the weights."""
    while True:
        if isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        elif isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
        else:
            return module


def list_weights(module: nn.Module) -> dict[str, Weight]:
    """Every parameter of `module` by its first name.

    A matrix is what a linear module holds under `weight`, and no embedding or output head holds too.

    Raises:
        UserError: a parameter has no shape yet, or is shared out among processes.
    """
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for m in module.modules():
        for key, p in m.named_parameters(recurse=False):
            owners.setdefault(p, []).append(m if key == "weight" else module)
    head = _find_head(module)
    found = {}
    for name, p in module.named_parameters():
        if is_lazy(p):
            raise UserError(f"{name}: has no shape before the first batch; put one through the module first")
        if hasattr(p, "placements"):
            raise UserError(
                f"{name}: is shared out among processes (DTensor); sparse training here takes whole weights"
            )
        found[name] = _describe(p, owners[p], head)
    return found


def _describe(p: nn.Parameter, owners: list[nn.Module], head: nn.Parameter | None) -> Weight:
    shape = tuple(p.shape)
    if any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in owners):
        return Weight(shape, "embedding")
    if p is head:
        return Weight(shape, "head")
    if any(getattr(x, "requires_dense", False) for x in (p, *owners)):
        return Weight(shape, "dense")
    turned = all(is_conv1d(m) for m in owners)
    if len(shape) != 2 or not (turned or all(isinstance(m, nn.Linear) for m in owners)):
        return Weight(shape, "other")
    kind = "linear" if p.requires_grad and p.is_floating_point() else "frozen"
    return Weight(shape[::-1] if turned else shape, kind, turned)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the Conv1D of Hugging Face, a linear whose weight is [in, out]; torch's own is another class."""
    return any((c.__module__, c.__name__) == ("transformers.pytorch_utils", "Conv1D") for c in type(module).__mro__)


def _find_head(module: nn.Module) -> nn.Parameter | None:
    """The weight that gives a language model's scores, where the module names it as Hugging Face's do."""
    ask = getattr(module, "get_output_embeddings", None)
    try:
        weight = getattr(ask(), "weight", None) if callable(ask) else None
    except (NotImplementedError, AttributeError):  # models without a head
        return None
    return weight if isinstance(weight, nn.Parameter) else None
