"""A GPU that is none: tensors that say they are on `cuda:0`, compute on the CPU, and refuse to mix with the CPU's own.

Training steps, mask updates, checkpoints and generation run through it whole, backward included, so that a tensor made
on the wrong device, read by a CPU kernel, or turned into NumPy is found on a machine without a GPU. What it cannot
show is arithmetic and speed of a GPU: tests/gpu does.

To C++ a tensor of it is on the device `meta`, whose factories and copies all come to `StandIn` as operators.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from modelzoo.backends.local import Local
from modelzoo.models.gpt import GPTModel

GPU = torch.device("cuda", 0)
META = torch.device("meta")
aten = torch.ops.aten
# Operators that take tensors of two devices: copies, and indices on the host.
MIXED = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
ALIKE = {aten.cat.default, aten.stack.default}  # do not take even a CPU's tensor without dimensions


class OnGPU(Tensor):
    """A tensor of the stand-in, whose values `held` has on the CPU."""

    held: Tensor
    device = property(lambda self: GPU)  # pyright: ignore[reportAssignmentType]
    is_cuda = property(lambda self: True)  # pyright: ignore[reportAssignmentType]
    is_cpu = property(lambda self: False)  # pyright: ignore[reportAssignmentType]
    is_meta = property(lambda self: False)  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, held: Tensor):
        sizes = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, device=META, **sizes)  # pyright: ignore

    def __init__(self, held: Tensor):
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the stand-in")


def _here(x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.held if isinstance(x, OnGPU) else x


class _Operators(TorchDispatchMode):
    """Compute on the CPU, and keep apart what is on which device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, OnGPU)]
        here = [x for x in tensors if not isinstance(x, OnGPU) and (x.dim() or func in ALIKE)]
        if there and here and func not in MIXED:
            shapes = [tuple(x.shape) for x in here]
            raise RuntimeError(f"{func}: expected all tensors on the same device, but {shapes} are on the CPU")
        device = next((x for x in leaves if isinstance(x, torch.device)), None)  # by name, or in inference by place
        to_gpu = bool(there) if device is None else device == META
        if func is aten.copy_.default or func in (aten.index_put_.default, aten.index.Tensor):
            to_gpu = isinstance(args[0], OnGPU)
            assert to_gpu or func is aten.copy_.default or not there, f"{func}: indices on the GPU of a CPU's tensor"
        found = func(*tree_map(_here, args), **tree_map(_here, kwargs))
        if not to_gpu:
            return found
        known = {id(x.held): x for x in there}  # what an operator changes in place is the very tensor

        def there_again(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return known[id(x)] if id(x) in known else OnGPU(x)

        return tree_map(there_again, found)


def _moved(x: Any) -> Any:
    """`x`, a device that is the GPU as C++ knows it."""
    if isinstance(x, torch.device) and x.type == "cuda":
        return META
    return META if isinstance(x, str) and x.partition(":")[0] == "cuda" else x


class _Functions(TorchFunctionMode):
    """What never becomes an operator: devices by name, looks into memory, `.data`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name, first = getattr(func, "__name__", ""), args[0] if args else None
        if isinstance(first, OnGPU):
            if name == "tolist":
                return first.held.tolist()
            if name in ("data_ptr", "numpy", "__array__", "untyped_storage"):
                raise TypeError(f"Tensor.{name} of a tensor on the GPU")
            if func == Tensor.data.__set__:  # pyright: ignore
                func(*args)
                first.held = args[1].held
                return None
            if name in ("__getitem__", "__setitem__"):
                at = args[1] if isinstance(args[1], tuple) else (args[1],)
                args = first, tuple(torch.tensor(x) if isinstance(x, list | range) else x for x in at), *args[2:]
        if name == "pin_memory":
            return first
        if func is Tensor.backward:  # in which functions of our own run again
            with self:
                ones = torch.ones_like(first) if kwargs["gradient"] is None else kwargs["gradient"]
                return _engine_run_backward((first,), (ones,), False, False, (), True, True)
        kwargs.pop("pin_memory", None)
        if func in (torch.autocast, torch.device) or name in ("is_autocast_enabled", "get_autocast_dtype"):
            return func(*args, **kwargs)
        if name == "tensor" and "device" in kwargs:  # made on the host, and copied
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(_moved(device))
        return func(*map(_moved, args), **{key: _moved(x) for key, x in kwargs.items()})


class _Event:
    """torch.cuda.Event where nothing is ever under way."""

    def __init__(self, **_):
        pass

    def record(self, *_) -> None:
        pass

    def synchronize(self) -> None:
        pass


CARD = {
    "get_device_capability": lambda *_: (9, 0),
    "get_device_name": lambda *_: "a stand-in",
    "is_bf16_supported": lambda **_: True,
    "max_memory_allocated": lambda *_: 1 << 30,
    "is_available": lambda: True,
    "is_current_stream_capturing": lambda: False,  # which torch built for CUDA asks a driver
    "device_count": lambda: 1,
    "Event": _Event,
}


def _place(self: Local, model: GPTModel, move: bool = True) -> GPTModel:
    placed = PLACE(self, model, move)
    if model.model.config.share_embedding_weights:  # on a GPU the parameter stays the same object
        placed.model.lm_head.weight = placed.model.embedding_layer.word_embeddings.weight
    return placed


PLACE = Local.place


def _enter(self: torch.inference_mode) -> None:
    self._inference_mode_context = torch.no_grad()  # pyright: ignore[reportAttributeAccessIssue]
    self._inference_mode_context.__enter__()


@contextmanager
def standing_in() -> Iterator[SimpleNamespace]:
    """`Local(torch.device("cuda"), ...)` runs on the stand-in, in the body; nothing else does."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **CARD))
        stack.enter_context(mock.patch.object(Local, "place", _place))
        stack.enter_context(mock.patch.object(Local, "_takes_graphs", lambda *_: False))  # nothing here can capture
        stack.enter_context(mock.patch.dict(sys.modules, {"triton": None}))  # whose kernels ask for memory of a GPU
        # tensors of inference mode go past the modes here
        stack.enter_context(mock.patch.object(torch.inference_mode, "__enter__", _enter))
        stack.enter_context(_Functions())
        stack.enter_context(_Operators())
        yield SimpleNamespace(device=torch.device("cuda"))
