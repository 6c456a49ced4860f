"""HDF5 shards in Model Zoo's layout, written whole to a temporary name, checksummed, then renamed."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelzoo.config.errors import UserError
from modelzoo.data import format as fmt

BATCH = 1 << 22  # ints shuffled and compressed at once


def write_shard(path: str, examples: np.ndarray, compression: str) -> dict:
    """Write examples [n, rows, msl] int32; returns {"file", "sha256", "data_sha256", "n_examples", "bytes"}.

    The same examples give the same bytes (no time stamps). `gzip` is compressed by zlib-ng behind HDF5's shuffle
    filter: several times faster than HDF5's own, and any HDF5 reader undoes it. (ISA-L is no alternative: from level
    1 on its output for the same input differs now and then.)
    """
    import h5py

    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.tmp")
    examples = np.ascontiguousarray(examples, np.dtype("<i4"))
    n, rows, msl = examples.shape
    options = {
        "none": {},
        "gzip": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
        "lzf": {"compression": "lzf", "shuffle": True},
    }[compression]
    try:
        with h5py.File(temporary, "w", libver="earliest") as f:
            f.attrs[fmt.N_EXAMPLES] = n
            data = f.create_dataset(fmt.DATASET, (n, rows, msl), "<i4", chunks=(1, rows, msl), **options)
            if compression == "gzip":
                _write_compressed(data, examples)
            else:
                data[...] = examples
        with open(temporary, "r+b") as f:
            os.fsync(f.fileno())
            digest = hashlib.file_digest(f, "sha256").hexdigest()
            size = f.seek(0, os.SEEK_END)
        os.replace(temporary, path)
    except OSError as e:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise UserError(f"{path}: cannot be written: {e.strerror or e}; free some space and run again") from None
    return {
        "file": os.path.basename(path),
        "sha256": digest,
        "data_sha256": hashlib.sha256(examples.data).hexdigest(),
        "n_examples": n,
        "bytes": size,
    }


def _write_compressed(data, examples: np.ndarray) -> None:
    from zlib_ng import zlib_ng

    n, rows, msl = examples.shape
    step = max(1, BATCH // (rows * msl))
    for start in range(0, n, step):
        batch = examples[start : start + step]
        # HDF5's shuffle: all first bytes of the chunk's integers, then all second bytes, and so on.
        shuffled = np.ascontiguousarray(
            batch.reshape(len(batch), -1).view(np.uint8).reshape(len(batch), rows * msl, 4).transpose(0, 2, 1)
        ).reshape(len(batch), -1)
        for k, chunk in enumerate(shuffled):
            data.id.write_direct_chunk((start + k, 0, 0), zlib_ng.compress(chunk, 1))


@dataclass
class ShardWriter:
    """Collects examples and writes a shard whenever `shard_tokens` are full. `done` lists what was written."""

    folder: str
    process: int
    rows: int
    msl: int
    shard_tokens: int
    compression: str

    def __post_init__(self):
        self.limit = max(1, self.shard_tokens // self.msl)
        self.pending: list[np.ndarray] = []
        self.count = 0
        self.done: list[dict] = []

    def add(self, examples: np.ndarray) -> None:
        while len(examples):
            take = examples[: self.limit - self.count]
            examples = examples[len(take) :]
            self.pending.append(take)
            self.count += len(take)
            if self.count == self.limit:
                self.flush()

    def flush(self) -> None:
        if not self.count:
            return
        name = fmt.SHARD_NAME.format(process=self.process, chunk=len(self.done))
        os.makedirs(self.folder, exist_ok=True)
        examples = np.concatenate(self.pending)
        self.pending, self.count = [], 0
        self.done.append(
            write_shard(os.path.join(self.folder, name), examples, self.compression)
            | {"loss_tokens": int(examples[:, 1].sum(dtype=np.int64))}
        )


def write_json(path: str, value: object, sort: bool = True) -> None:
    """Whole or not at all: temporary name, fsync, rename."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=sort, ensure_ascii=False) + "\n").encode())


def write_bytes(path: str, data: bytes) -> None:
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}.tmp")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise UserError(f"{path}: cannot be written: {e.strerror or e}") from None


def seal(value: dict) -> dict:
    """The value with a hash of itself, so that a changed digit in a manifest is found too."""
    return value | {"self_sha256": _own_hash(value)}


def sealed(value: dict) -> bool:
    return isinstance(value, dict) and value.get("self_sha256") == _own_hash(
        {k: v for k, v in value.items() if k != "self_sha256"}
    )


def _own_hash(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: is not readable JSON ({e})") from None


def open_shard(path: str):
    """Open a shard that anyone may have written; returns (file, dataset).

    Raises:
        UserError: no HDF5, no `data`, links out of the file, external or virtual storage, or an absurd shape.
    """
    import h5py

    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401  (Model Zoo's lz4 and others; plain gzip needs none)
    try:
        file = h5py.File(path, "r")
    except OSError as e:
        raise UserError(f"{path}: is no readable HDF5 file ({str(e).splitlines()[0]})") from None
    try:
        link = file.get(fmt.DATASET, getlink=True)
        if link is None:
            raise UserError(f"{path}: holds no dataset '{fmt.DATASET}'; not a Model Zoo shard")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path}: '{fmt.DATASET}' is a link to elsewhere; refused")
        data = file[fmt.DATASET]
        if not isinstance(data, h5py.Dataset):
            raise UserError(f"{path}: '{fmt.DATASET}' is no dataset; not a Model Zoo shard")
        if data.external or data.is_virtual:
            raise UserError(f"{path}: '{fmt.DATASET}' keeps its values in other files; refused")
        _check_shape(path, file, data)
    except UserError:
        file.close()
        raise
    return file, data


def _check_shape(path: str, file, data) -> None:
    if data.dtype.kind not in "iu":
        raise UserError(f"{path}: '{fmt.DATASET}' holds {data.dtype}, not integers")
    if data.ndim not in (1, 3):
        raise UserError(
            f"{path}: '{fmt.DATASET}' has shape {data.shape}; expected [n, 3, msl], [n, 5, msl] or [tokens]"
        )
    if data.ndim == 3 and data.shape[1] not in (len(fmt.ROWS), len(fmt.VSL_ROWS)):
        raise UserError(f"{path}: examples have {data.shape[1]} rows; expected 3 (or 5 with document boundaries)")
    if data.chunks and int(np.prod(data.chunks, dtype=object)) * data.dtype.itemsize > 1 << 30:
        raise UserError(f"{path}: chunks of {data.chunks} are over 1 GiB; refused")
    # An empty or tiny file can declare any shape: HDF5 then invents fill values for what was never stored.
    stored = data.id.get_storage_size()
    size = int(np.prod(data.shape, dtype=object)) * data.dtype.itemsize
    if size > 1 << 20 and size > 2000 * max(stored, 1):
        raise UserError(f"{path}: declares {size / 1e6:.0f} MB but stores {stored} bytes; refused")
    declared = file.attrs.get(fmt.N_EXAMPLES)
    if declared is not None and data.ndim == 3 and int(declared) != data.shape[0]:
        raise UserError(f"{path}: attribute {fmt.N_EXAMPLES} = {declared} but {data.shape[0]} examples are there")


def shard_files(folder: str) -> list[str]:
    """Paths of the folder's shards, sorted by name as the readers sort them."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder")
    return sorted(
        os.path.join(folder, n) for n in os.listdir(folder) if n.endswith(fmt.SHARD_SUFFIXES) and not n.startswith(".")
    )


def batches(path: str, step_ints: int = 1 << 22) -> Iterator[np.ndarray]:
    """A shard's examples in batches of bounded size."""
    file, data = open_shard(path)
    with file:
        per = int(np.prod(data.shape[1:])) if data.ndim == 3 else 1
        step = max(1, step_ints // per)
        for start in range(0, data.shape[0], step):
            try:
                yield data[start : start + step]
            except OSError as e:
                raise UserError(f"{path}: examples {start}.. cannot be read ({str(e).splitlines()[0]})") from None
