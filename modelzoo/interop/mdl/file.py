"""Model Zoo's checkpoint file (`.mdl`): a nested state as flat HDF5, read and written without pickle.

Every leaf of the state has the key of its path ("optimizer.state.3.exp_avg"). Tensors are datasets under the lz4 filter
(hdf5plugin's 32004; scalars bare); bfloat16 is stored as its bits in int16. Numbers, text and None are JSON in the
file's attributes ("<key>.__metadata__"), and `__spec__` says how the leaves nest. Layout of format 0.5 after
cerebras_pytorch 2.10.0's storage package; older formats are read too. What only pickle could read is refused.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import h5py
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.data import storage
from modelzoo.files import replacing
from modelzoo.interop.mdl.leaves import Leaf, Link, as_array, describe_leaf, read_leaves, read_old_leaves
from modelzoo.interop.mdl.seal import check_seal, rehearse_reading, write_seal
from modelzoo.reading import exists, parse_json
from modelzoo.sink import Sink

VERSION = 0.5
CSTORCH = "2.10.0"  # whose layout is written
OURS = "mediswift"  # the section that Model Zoo does not have


def read_mdl(path: str, sections: Sequence[str]) -> dict[str, Leaf]:
    """The leaves under `sections` (top-level keys) by their flat keys, tensors on the CPU.

    Raises:
        UserError: no whole `.mdl`, a newer format, a leaf in `sections` that only pickle could read, or one that was
            changed since this trainer wrote the file.
    """
    _register_filter(path)
    if not check_seal(path):
        rehearse_reading(path, lambda: _read(path, sections))
    return _read(path, sections)


def _read(path: str, sections: Sequence[str]) -> dict[str, Leaf]:
    with storage.explaining(path, "cannot be read as a Model Zoo checkpoint"), storage.open_file(path) as file:
        version = float(file.attrs.get("__version__", 0.1))
        if not 0 < version <= VERSION:
            raise UserError(f"{path}: .mdl format {version}; this version reads up to {VERSION}")
        if version == VERSION and not file.attrs.get("__SUCCESS__", False):
            raise UserError(f"{path}: was not written to its end; take the checkpoint before")
        wanted, found, done = set(sections), {}, set()
        while wanted:  # a number that equals one of another section was written once, there
            done |= wanted
            holds = lambda key, wanted=wanted: key.split(".")[0] in wanted
            found.update((read_leaves if version == VERSION else read_old_leaves)(path, file, holds))
            if version == VERSION:
                _check_names(path, file, found.keys(), wanted)
            wanted = {v.split(".")[0] for v in found.values() if isinstance(v, Link)} - done
        return {key: _follow(path, key, found) for key in found if key.split(".")[0] in sections}


def _register_filter(path: str) -> None:
    try:
        import hdf5plugin  # noqa: F401  registers the lz4 filter with HDF5
    except ImportError:
        raise UserError(f"{path}: .mdl files need hdf5plugin; pip install hdf5plugin") from None


def _check_names(path: str, file: h5py.File, found: Collection[str], sections: Collection[str]) -> None:
    """Refuse a file that lacks a leaf which its `__spec__` names; Model Zoo's own loader needs them all."""
    text: Any = file.attrs["__spec__"]
    spec = parse_json(text)
    stars = spec[0] if isinstance(spec, list) and spec else None
    named = {key for key, _ in _flat(stars) if key.split(".")[0] in sections} if isinstance(stars, dict) else set()
    if lacking := sorted(named - set(found)):
        raise UserError(f"{path}: lacks {lacking[0]}, which it names; take another copy of it")


def _follow(path: str, key: str, leaves: Mapping[str, Any]) -> Leaf:
    """The leaf `key`, or what it links to."""
    value, seen = leaves[key], {key}
    while isinstance(value, Link):
        if value in seen:
            raise UserError(f"{path}: {key}: links to itself")
        if value not in leaves:
            raise UserError(f"{path}: {key}: links to {value[:80]!a}, which is not there")
        seen.add(value)
        value = leaves[value]
    return value


def write_mdl(path: str, state: Mapping[str, Any]) -> None:
    """Write a nested state (dicts, lists, tuples; leaves as in `Leaf`, or `Link`) as format 0.5, whole or not at all.

    Raises:
        UserError: the file exists already or cannot be written.
    """
    _register_filter(path)
    import hdf5plugin

    if exists(path):
        raise UserError(f"{path}: exists; give another name, or remove it first")
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with replacing(path, durable=True) as temporary:
            with Sink(temporary) as sink, h5py.File(sink, "w") as file:
                file.attrs["__version__"], file.attrs["__cstorch_version__"] = VERSION, CSTORCH
                file.attrs["__spec__"] = json.dumps(_spec(state), indent=4)
                for key, value in _flat(state):
                    about = describe_leaf(key, value)
                    if isinstance(value, Tensor):
                        _write_tensor(file, key, value, about, hdf5plugin.LZ4())
                    meta = {"__spec__": _spec({key: None}), "__objects__": [key], f"{key}.__metadata__": about}
                    file.attrs[f"{key}.__metadata__"] = json.dumps(meta, indent=4)
                    sink.check()
                file.attrs["__SUCCESS__"] = True
            sink.check()
            write_seal(temporary)
    except OSError as e:
        raise UserError(f"{path}: not written ({e.strerror or e}); nothing of it was kept") from None


def _write_tensor(file: h5py.File, key: str, value: Tensor, about: dict[str, Any], lz4) -> None:
    array = as_array(value)
    data = file.create_dataset(key, data=array, **(lz4 if array.ndim else {}))
    data.attrs.update(about)
    data.attrs["__NUMPY__"] = True


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
