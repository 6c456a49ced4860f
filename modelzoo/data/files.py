"""The shard files of a data folder: find them, check them before a run, and read their checksums."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.data import format as f
from modelzoo.data.folder import list_shards, open_shard, read_manifest


class Shard(NamedTuple):
    """What is known of a shard before its examples are read."""

    path: str
    examples: int
    msl: int
    rows: int  # 3, 5 (VSL), or 0 for a corpus of plain tokens


def find_shards(data_dir: Sequence[str]) -> list[str]:
    """The shard files of the folders, sorted by name within each folder.

    Raises:
        UserError: a folder is missing or holds no shard.
    """
    files = []
    for folder in data_dir:
        if os.path.isfile(folder):
            files.append(folder)
            continue
        found = list_shards(folder)
        if not found:
            raise UserError(f"{folder}: holds no HDF5 shard ({', '.join(f.SHARD_SUFFIXES)})")
        files += found
    return files


def inspect_shards(path: str, msl: int | None = None) -> Shard:
    """A shard's shape, with everything checked that can be checked without reading its examples.

    Raises:
        UserError: of `open_shard`; no examples, or of another length than `msl`.
    """
    file, data = open_shard(path)
    with file:
        shape = data.shape
    if len(shape) == 1:
        if msl is None:
            raise UserError(f"{path}: is a corpus of plain tokens; give max_sequence_length to cut it")
        return _nonempty(Shard(path, max(0, (shape[0] - 1) // msl), msl, 0))
    if msl is not None and shape[2] != msl:
        raise UserError(f"{path}: sequences of {shape[2]} tokens, but max_sequence_length is {msl}")
    return _nonempty(Shard(path, shape[0], shape[2], shape[1]))


def _nonempty(shard: Shard) -> Shard:
    if shard.examples == 0 or shard.msl == 0:
        raise UserError(f"{shard.path}: holds no example")
    return shard


def read_checksums(folder: str) -> dict[str, str | None]:
    """SHA-256 of each shard's tokens, by file name, as preprocessing notes it."""
    shards = read_manifest(folder).get("shards", [])
    return {s["file"]: s.get("data_sha256") for s in shards if isinstance(s, dict) and "file" in s}
