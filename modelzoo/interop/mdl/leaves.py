"""The leaves of a `.mdl`: how each is stored and described, and read back. See `mdl` for the file around them.

Anyone may have written the file: what describes a leaf goes through a schema, and what it declares must be stored.
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

import h5py
import numpy as np
import torch
from pydantic import AllowInfNan, Field
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.data import storage
from modelzoo.reading import parse_json
from modelzoo.records import Record, check_record

RTFX = {  # the appliance's number for each dtype it takes
    torch.bool: 1,
    torch.int16: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.uint8: 6,
    torch.float16: 10,
    torch.float32: 11,
    torch.float64: 12,
    torch.bfloat16: 15,
}
NAMES = {str(dtype): dtype for dtype in RTFX}
MAX_CHUNK = 1 << 32  # bytes of a tensor that are packed as one: HDF5's own limit
_META, _OTHER = ".__metadata__", "is not what Model Zoo writes"
Leaf = Tensor | bool | int | float | str | None
Shape = list[Annotated[int, Field(ge=0, lt=2**40)]]


class Link(str):
    """A leaf that is another leaf's key: one tensor under two names."""


class _Scalar(Record):
    scalar_value: bool | int | Annotated[float, AllowInfNan(True)]


class _Text(Record):
    string_value: str


class _Linked(Record):
    key: str


class _Full(Record):
    shape: Shape
    fill_value: bool | int | float | None
    dtype: str


class _Stored(Record):
    dtypes: Annotated[list[str], Field(min_length=1)]
    shapes: list[Shape] | None = None


class _Array(Record):
    is_bfloat16: bool | None = None


class _Wanted(NamedTuple):
    """A file, and what is read of it."""

    path: str
    file: h5py.File
    holds: Callable[[str], bool]  # whether a key is read

    def tensor(self, key: str, dtype: torch.dtype | None) -> Tensor:
        data = storage.find_dataset(self.path, self.file, key)
        storage.check_storage(self.path, data, MAX_CHUNK)
        return _make_tensor(f"{self.path}: {key}", data[...], dtype)

    def full(self, key: str, shape: list[int], fill: Any, dtype: torch.dtype | None) -> Tensor:
        """A tensor of one value, which takes no memory until it is copied."""
        if dtype is None or math.prod(shape) >= 2**40:
            raise UserError(f"{self.path}: {key}: declares {shape}; {_OTHER}")
        return torch.full((), fill or 0, dtype=dtype).expand(shape)


def read_leaves(path: str, file: h5py.File, holds: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    """Format 0.5: the leaves whose keys `holds`, by key; a `Link` is not followed.

    Raises:
        UserError: one that is described in another way, or that only pickle could read.
    """
    wanted = _Wanted(path, file, holds)
    for attribute in map(str, file.attrs):
        key = attribute.removesuffix(_META)
        if attribute == key or attribute.startswith("__") and "." not in attribute or not holds(key):
            continue
        if len(key) > 400 or not key.isprintable():
            raise UserError(f"{path}: {key[:80]!a}: is no name; {_OTHER}")
        text: Any = file.attrs[attribute]
        found = parse_json(text, nonfinite=True)
        about = found.get(attribute) if isinstance(found, dict) else None
        if not isinstance(about, dict):
            raise UserError(f"{path}: {key}: is nested in a way that this version does not read")
        yield key, _read_leaf(wanted, key, about)


def _read_leaf(wanted: _Wanted, key: str, about: dict[str, Any]) -> Any:
    path, kind = wanted.path, about.get("__TYPE__")
    schema = lambda s: check_record(about, s, f"{path}: {key}", _OTHER)
    if kind == "ScalarSerializer":
        return schema(_Scalar).scalar_value
    if kind == "StringSerializer":
        return schema(_Text).string_value
    if kind == "NoneSerializer":
        return None
    if kind == "LinkedObject":
        return Link(schema(_Linked).key)
    if kind == "DeferredFullTensor":
        full = schema(_Full)
        return wanted.full(key, full.shape, full.fill_value, NAMES.get(full.dtype))
    if kind == "TorchTensorSerializer" and about.get("__NUMPY__"):
        stored = schema(_Stored)
        if stored.dtypes[0] not in NAMES:
            raise UserError(f"{path}: {key}: has dtype {stored.dtypes[0][:40]!a}; {_OTHER}")
        x = wanted.tensor(key, NAMES[stored.dtypes[0]])
        if stored.shapes and stored.shapes[0] != list(x.shape):
            raise UserError(f"{path}: {key}: is described as {stored.shapes[0]} and holds {list(x.shape)}")
        return x
    if kind == "NumpyArraySerializer":
        return wanted.tensor(key, torch.bfloat16 if schema(_Array).is_bfloat16 else None)
    raise UserError(_refuse(path, key, kind))


def read_old_leaves(path: str, file: h5py.File, holds: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    """Formats 0.1 to 0.4, where each leaf is a dataset that says its own kind; otherwise as `read_leaves`."""
    wanted = _Wanted(path, file, holds)
    for key in filter(holds, map(str, file)):
        data = storage.find_dataset(path, file, key)
        about: Any = data.attrs
        if "__TYPE__" in about:  # a later format's, whose other leaves would be passed over
            raise UserError(f"{path}: {key}: is of a later format than the file says; take another copy of it")
        kind = about.get("__H5_TYPE__")
        bits = torch.bfloat16 if about.get("is_bfloat16") else None
        if kind == "StringH5Type" or about.get("is_string"):
            yield key, str(about["string_value" if kind else "string_val"])
        elif kind == "NoneH5Type" or about.get("is_none"):
            yield key, None
        elif kind == "ScalarH5Type" or about.get("is_scalar"):
            yield key, wanted.tensor(key, None).item()
        elif kind in ("FullTensorH5Type", "DeferredFullTensor") or about.get("is_constructible"):
            shape, dtype = [int(n) for n in about["shape"]], bits or torch.from_numpy(np.zeros(1, data.dtype)).dtype
            yield key, wanted.full(key, shape, about["fill_value"].item(), dtype)
        elif kind in ("TorchTensorH5Type", "NumpyArrayH5Type") or kind is None and "filepath" not in about:
            yield key, wanted.tensor(key, bits)
        else:
            raise UserError(_refuse(path, key, kind or "external file"))


def _refuse(path: str, key: str, kind: Any) -> str:
    kind = str(kind)[:60]
    if kind.startswith("Object"):
        return f"{path}: {key}: is a pickled object, which could run code; it is not loaded"
    return (
        f"{path}: {key}: is stored as {kind!a}, which points outside this file or cannot be read without "
        "cerebras_pytorch"
    )


def _make_tensor(where: str, array: np.ndarray, dtype: torch.dtype | None) -> Tensor:
    """`array` as a tensor of `dtype`; bfloat16 is stored as its bits."""
    array = np.array(array)  # a copy that can be written to, scalars included
    if dtype is torch.bfloat16 and array.dtype.itemsize == 2:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16).view(array.shape)
    found = torch.from_numpy(array)
    if dtype is not None and (found.is_floating_point() != dtype.is_floating_point or found.is_complex()):
        raise UserError(f"{where}: is described as {dtype} and holds {found.dtype}")
    return found if dtype is None else found.to(dtype)


def describe_leaf(key: str, value: Leaf) -> dict[str, Any]:
    """What format 0.5 says of a leaf, next to it."""
    if isinstance(value, Tensor):
        if value.dtype not in RTFX:
            raise TypeError(f"{key}: {value.dtype} has no place in a .mdl")
        kind = {"dtypes": [str(value.dtype)], "rtfx_dtypes": [RTFX[value.dtype]], "__TYPE__": "TorchTensorSerializer"}
        return {"__TORCH__": True, "shapes": [list(value.shape)], **kind, "__NUMPY__": True, "compressed": False}
    if isinstance(value, Link):
        return {"key": str(value), "__LINKED__": True, "__TYPE__": "LinkedObject", "__NONE__": True}
    if isinstance(value, str):
        return {"string_value": value, "__TYPE__": "StringSerializer", "__NONE__": True}
    if value is None:
        return {"__TYPE__": "NoneSerializer", "__NONE__": True}
    return {"scalar_value": value, "__TYPE__": "ScalarSerializer", "__NONE__": True}


def as_array(x: Tensor) -> np.ndarray:
    """A tensor's numbers on the CPU, one after the other; bfloat16 as its bits."""
    x = x.detach().cpu().contiguous()
    return (x.view(torch.int16) if x.dtype is torch.bfloat16 else x).numpy()
