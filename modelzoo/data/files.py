"""The shard files of a data folder: found, checked before a run, and what their manifest says of them."""

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import h5py

from modelzoo.config.errors import UserError
from modelzoo.data import format as f


class Shard(NamedTuple):
    path: str
    examples: int
    msl: int
    rows: int  # 3, 5 (VSL), or 0 for a corpus of plain tokens


def find(data_dir: Sequence[str]) -> list[str]:
    """The shard files of the folders, sorted by name within each folder.

    Raises:
        UserError: a folder is missing or holds no shard.
    """
    files = []
    for folder in data_dir:
        if os.path.isfile(folder):
            files.append(folder)
            continue
        if not os.path.isdir(folder):
            raise UserError(
                f"{folder}: no such data folder; make it with `python -m data_preprocessing`, or mend data_dir"
            )
        found = sorted(n for n in os.listdir(folder) if n.endswith(f.SHARD_SUFFIXES))
        if not found:
            raise UserError(f"{folder}: holds no HDF5 shard ({', '.join(f.SHARD_SUFFIXES)})")
        files += [os.path.join(folder, n) for n in found]
    return files


def inspect(path: str, msl: int | None = None) -> Shard:
    """A shard's shape, with everything checked that can be checked without reading its examples.

    Raises:
        UserError: truncated, not HDF5, links that lead outside the file, wrong rank, rows or type, no examples.
    """
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get(f.DATASET, getlink=True), h5py.HardLink):
                raise UserError(f"{path}: has no dataset '{f.DATASET}' of its own (keys: {', '.join(file) or 'none'})")
            data = file[f.DATASET]
            if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
                raise UserError(
                    f"{path}: '{f.DATASET}' is not plain data in this file; external and virtual data is refused"
                )
            shape, kind, declared = data.shape, data.dtype, file.attrs.get(f.N_EXAMPLES)
    except UserError:
        raise
    except (OSError, KeyError, RuntimeError) as e:
        reason = "truncated" if "truncated" in str(e) else "not a readable HDF5 file"
        raise UserError(
            f"{path}: {reason}; make this shard again (`python -m data_preprocessing verify` finds such)"
        ) from None
    if kind.kind not in "iu":
        raise UserError(f"{path}: '{f.DATASET}' holds {kind}, not integers")
    if len(shape) == 1:
        if msl is None:
            raise UserError(f"{path}: is a corpus of plain tokens; give max_sequence_length to cut it")
        return _nonempty(Shard(path, max(0, (shape[0] - 1) // msl), msl, 0))
    if len(shape) != 3 or shape[1] not in (len(f.ROWS), len(f.VSL_ROWS)):
        raise UserError(
            f"{path}: '{f.DATASET}' is {list(shape)}; shards are [n, {len(f.ROWS)} or {len(f.VSL_ROWS)}, msl]"
        )
    if declared is not None and declared != shape[0]:
        raise UserError(f"{path}: says n_examples = {declared} but holds {shape[0]}; make this shard again")
    if msl is not None and shape[2] != msl:
        raise UserError(f"{path}: sequences of {shape[2]} tokens, but max_sequence_length is {msl}")
    return _nonempty(Shard(path, shape[0], shape[2], shape[1]))


def _nonempty(shard: Shard) -> Shard:
    if shard.examples == 0 or shard.msl == 0:
        raise UserError(f"{shard.path}: holds no example")
    return shard


def manifest(folder: str) -> dict:
    try:
        with open(os.path.join(folder, f.MANIFEST), encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise UserError(f"{os.path.join(folder, f.MANIFEST)}: cannot be read ({str(e)[:80]})") from None
    return found if isinstance(found, dict) else {}


def checksums(folder: str) -> dict[str, str | None]:
    """SHA-256 of each shard's tokens, by file name, as preprocessing notes it."""
    shards = manifest(folder).get("shards", [])
    return {s["file"]: s.get("data_sha256") for s in shards if isinstance(s, dict) and "file" in s}
