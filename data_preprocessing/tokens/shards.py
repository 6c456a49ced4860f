"""HDF5 shards in Model Zoo's layout, written whole to a temporary name, checksummed, then renamed."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from modelzoo import files
from modelzoo.config.errors import UserError
from modelzoo.data import format as fmt
from modelzoo.data import storage
from modelzoo.data.folder import open_shard
from modelzoo.sink import Sink

BATCH = 1 << 22  # ints shuffled and compressed at once


def write_shard(path: str, examples: np.ndarray, compression: str) -> dict:
    """Write examples [n, rows, msl] int32; returns {"file", "sha256", "data_sha256", "n_examples", "bytes"}.

    The same examples give the same bytes (no time stamps). `gzip` is compressed by zlib-ng behind HDF5's shuffle
    filter: several times faster than HDF5's own, and any HDF5 reader undoes it. (ISA-L is no alternative: from level
    1 on its output for the same input differs now and then.)
    """
    import h5py

    examples = np.ascontiguousarray(examples, np.dtype("<i4"))
    n, rows, msl = examples.shape
    options = {
        "none": {},
        "gzip": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
        "lzf": {"compression": "lzf", "shuffle": True},
    }[compression]
    try:
        with files.replacing(path, durable=True) as temporary:
            with Sink(temporary) as sink, h5py.File(sink, "w", libver="earliest") as f:
                f.attrs[fmt.N_EXAMPLES] = n
                data = f.create_dataset(fmt.DATASET, (n, rows, msl), "<i4", chunks=(1, rows, msl), **options)
                if compression == "gzip":
                    _write_compressed(data, examples)
                else:
                    data[...] = examples
            sink.check()
            digest, size = files.sha256(temporary), os.path.getsize(temporary)
    except OSError as e:
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
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        files.write_bytes(path, data, durable=True)
    except OSError as e:
        raise UserError(f"{path}: cannot be written: {e.strerror or e}") from None


def batches(path: str, step_ints: int = 1 << 22) -> Iterator[np.ndarray]:
    """A shard's examples in batches of bounded size, in the type that they are stored in.

    Raises:
        UserError: of `open_shard`; examples that cannot be read, or that are not stored.
    """
    file, data = open_shard(path)
    with file:
        per = max(1, math.prod(data.shape[1:]))
        step = max(1, step_ints // per)
        for start in range(0, data.shape[0], step):
            yield storage.read_values(path, data, start, step, f"examples {start}..")
