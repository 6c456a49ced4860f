"""Peak bytes of live tensors: a storage counts from the operation that makes it until nothing refers to it."""

from collections.abc import Iterable

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Count tensors that are made in the body, by their storages.

    Attributes:
        peak: the most bytes that were live after an operation.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        """`known`: tensors that were there before, and do not count."""
        super().__init__()
        self.peak, self._live, self._known = 0, {}, [StorageWeakRef(x.untyped_storage()) for x in known]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and (ref := StorageWeakRef(x.untyped_storage())) not in self._known:
                self._live[ref] = x.untyped_storage().nbytes()
        self._live = {ref: size for ref, size in self._live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._live.values()))
        return found
