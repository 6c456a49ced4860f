"""Model Zoo's checkpoint file (`.mdl`): a nested state as flat HDF5, read and written without pickle.

Every leaf of the state has the key of its path ("optimizer.state.3.exp_avg"). Tensors are datasets under the lz4 filter
(hdf5plugin's 32004; scalars bare); bfloat16 is stored as its bits in int16. Numbers, text and None are JSON in the
file's attributes ("<key>.__metadata__"), and `__spec__` says how the leaves nest. Layout of format 0.5 after
cerebras_pytorch 2.10.0's storage package; older formats are read too. What only pickle could read is refused.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.data import storage
from modelzoo.files import replacing

VERSION = 0.5
MAX_CHUNK = 1 << 32  # bytes of a tensor that are packed as one: HDF5's own limit
CSTORCH = "2.10.0"  # whose layout is written
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
Leaf = Tensor | bool | int | float | str | None


class Link(str):
    """A leaf that is another leaf's key: one tensor under two names."""


def read(path: str, sections: Sequence[str]) -> dict[str, Leaf]:
    """The leaves under `sections` (top-level keys) by their flat keys, tensors on the CPU.

    Raises:
        UserError: no whole `.mdl`, a newer format, or a leaf in `sections` that only pickle could read.
    """
    _filter(path)
    try:
        with storage.open_file(path) as file:
            version = float(file.attrs.get("__version__", 0.1))
            if version > VERSION:
                raise UserError(f"{path}: .mdl format {version}; this version reads up to {VERSION}")
            if version == VERSION and not file.attrs.get("__SUCCESS__", False):
                raise UserError(f"{path}: was not written to its end; take the checkpoint before")
            wanted = lambda key: key.split(".")[0] in sections
            leaves = _leaves(path, file, wanted) if version == VERSION else _old_leaves(path, file, wanted)
            return _linked(path, dict(leaves))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except storage.FAILURES as e:
        raise UserError(f"{path}: cannot be read as a Model Zoo checkpoint ({storage.explain(e)})") from None


def _filter(path: str) -> None:
    try:
        import hdf5plugin  # noqa: F401  registers the lz4 filter with HDF5
    except ImportError:
        raise UserError(f"{path}: .mdl files need hdf5plugin; pip install hdf5plugin") from None


def _leaves(path: str, file: h5py.File, wanted) -> Iterator[tuple[str, Any]]:
    for attribute in map(str, file.attrs):
        key = attribute.removesuffix(".__metadata__")
        if attribute == key or attribute.startswith("__") and "." not in attribute or not wanted(key):
            continue
        text: Any = file.attrs[attribute]
        about = json.loads(text).get(attribute)
        if about is None:
            raise UserError(f"{path}: {key}: is nested in a way that this version does not read")
        kind = about.get("__TYPE__")
        if kind == "ScalarSerializer":
            yield key, about["scalar_value"]
        elif kind == "StringSerializer":
            yield key, about["string_value"]
        elif kind == "NoneSerializer":
            yield key, None
        elif kind == "LinkedObject":
            yield key, Link(about["key"])
        elif kind == "DeferredFullTensor":
            yield key, torch.full(tuple(about["shape"]), about["fill_value"] or 0, dtype=NAMES[about["dtype"]])
        elif kind == "TorchTensorSerializer" and about.get("__NUMPY__"):
            yield key, _tensor(_dataset(path, file, key)[...], NAMES[about["dtypes"][0]])
        elif kind == "NumpyArraySerializer":
            yield key, _tensor(_dataset(path, file, key)[...], torch.bfloat16 if about.get("is_bfloat16") else None)
        else:
            raise UserError(_refusal(path, key, kind))


def _old_leaves(path: str, file: h5py.File, wanted) -> Iterator[tuple[str, Any]]:
    """Formats 0.1 to 0.4: each leaf is a dataset that says its own kind."""
    for key in map(str, file):
        if not wanted(key):
            continue
        data = _dataset(path, file, key)
        about: Any = data.attrs
        kind = about.get("__H5_TYPE__")
        bits = torch.bfloat16 if about.get("is_bfloat16") else None
        if kind == "StringH5Type" or about.get("is_string"):
            yield key, str(about["string_value" if kind else "string_val"])
        elif kind == "NoneH5Type" or about.get("is_none"):
            yield key, None
        elif kind == "ScalarH5Type" or about.get("is_scalar"):
            yield key, data[...].item()
        elif kind in ("FullTensorH5Type", "DeferredFullTensor") or about.get("is_constructible"):
            dtype = bits or _tensor(np.zeros(1, data.dtype), None).dtype
            yield key, torch.full(tuple(int(n) for n in about["shape"]), about["fill_value"].item(), dtype=dtype)
        elif kind in ("TorchTensorH5Type", "NumpyArrayH5Type") or kind is None and "filepath" not in about:
            yield key, _tensor(data[...], bits)
        else:
            raise UserError(_refusal(path, key, kind or "external file"))


def _refusal(path: str, key: str, kind: str | None) -> str:
    if kind and kind.startswith("Object"):
        return f"{path}: {key}: is a pickled object, which could run code; it is not loaded"
    return (
        f"{path}: {key}: is stored as {kind}, which points outside this file or cannot be read without cerebras_pytorch"
    )


def _dataset(path: str, file: h5py.File, key: str) -> h5py.Dataset:
    """The dataset itself: a link or raw data in another file would read what the user did not name."""
    link = file.get(key, getlink=True)
    found = file.get(key) if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise UserError(_refusal(path, key, "a missing dataset" if link is None else "a link to another file"))
    storage.check_storage(path, found, MAX_CHUNK)
    return found


def _tensor(array: np.ndarray, dtype: torch.dtype | None) -> Tensor:
    if dtype is torch.bfloat16 and array.dtype.itemsize == 2:
        return (
            torch.from_numpy(np.ascontiguousarray(array).view(np.int16).copy()).view(torch.bfloat16).view(array.shape)
        )
    found = torch.from_numpy(np.array(array))  # a copy that can be written to, scalars included
    return found if dtype is None else found.to(dtype)


def _linked(path: str, leaves: dict[str, Any]) -> dict[str, Leaf]:
    for key, value in leaves.items():
        seen = {key}
        while isinstance(value, Link):
            if value in seen:
                raise UserError(f"{path}: {key}: links to itself")
            seen.add(value)
            if value not in leaves:
                break  # a number that equals one of another section: both were written once
            value = leaves[value]
        leaves[key] = value
    if strayed := {k: v for k, v in leaves.items() if isinstance(v, Link)}:
        others = read(path, sorted({v.split(".")[0] for v in strayed.values()}))
        leaves.update({k: others[v] for k, v in strayed.items()})
    return leaves


def write(path: str, state: Mapping[str, Any]) -> None:
    """Write a nested state (dicts, lists, tuples; leaves as in `Leaf`, or `Link`) as format 0.5, whole or not at all.

    Raises:
        UserError: the file exists already or cannot be written.
    """
    _filter(path)
    import hdf5plugin

    if os.path.exists(path):
        raise UserError(f"{path}: exists; give another name, or remove it first")
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with replacing(path, durable=True) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["__version__"], file.attrs["__cstorch_version__"] = VERSION, CSTORCH
            file.attrs["__spec__"] = json.dumps(_spec(state), indent=4)
            for key, value in _flat(state):
                about = _about(key, value)
                if isinstance(value, Tensor):
                    _write_tensor(file, key, value, about, hdf5plugin.LZ4())
                meta = {"__spec__": _spec({key: None}), "__objects__": [key], f"{key}.__metadata__": about}
                file.attrs[f"{key}.__metadata__"] = json.dumps(meta, indent=4)
            file.attrs["__SUCCESS__"] = True
    except OSError as e:
        raise UserError(f"{path}: not written: {e.strerror or e}") from None


def _write_tensor(file: h5py.File, key: str, value: Tensor, about: dict[str, Any], lz4) -> None:
    x = value.detach().cpu().contiguous()
    array = (x.view(torch.int16) if x.dtype is torch.bfloat16 else x).numpy()
    data = file.create_dataset(key, data=array, **(lz4 if array.ndim else {}))
    data.attrs.update(about)
    data.attrs["__NUMPY__"] = True


def _about(key: str, value: Leaf) -> dict[str, Any]:
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


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Leaf]]:
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for k, v in items:
            yield from _flat(v, f"{key}.{k}" if key else str(k))
    else:
        yield key, value


def _spec(value: Any) -> list[Any]:
    """The nesting twice over, as the format wants it: a tree of "*" for people, torch's tree spec for the loader."""
    return [_stars(value), json.dumps([1, _tree(value)])]


def _stars(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _stars(v) for k, v in value.items()}
    return [_stars(v) for v in value] if isinstance(value, list | tuple) else "*"


def _tree(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        kind, context, children = "builtins.dict", json.dumps(list(value)), value.values()
    elif isinstance(value, list | tuple):
        kind, context, children = f"builtins.{type(value).__name__}", "null", value
    else:
        return {"type": None, "context": None, "children_spec": []}
    return {"type": kind, "context": context, "children_spec": [_tree(v) for v in children]}
