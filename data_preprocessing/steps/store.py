"""What one step leaves on disk for the next: the texts and facts of a unit, markers, and lists of dropped records.

OUT/work/extract/00003.text         kept texts end to end, UTF-8
OUT/work/extract/00003.npz          arrays over the unit's records (Extracted)
OUT/work/extract/00003.tsv          the facts that are text, one line per record (FACTS)
OUT/work/extract/00003.*.npy        with near duplicates: signatures and their bands (minhash)
OUT/work/{step}/00003.json          the marker: written last, so a step without it is run again; it seals the others
OUT/work/{keys,texts,groups}/00003.npy  records that a bucket drops (drops)
OUT/work/near/00003.npy             pairs of records that are alike
"""

import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data_preprocessing.inputs import streams
from data_preprocessing.tokens.shards import write_json
from modelzoo.config.errors import UserError
from modelzoo.files import replacing
from modelzoo.reading import exists, open_regular, parse_json, read_bytes
from modelzoo.records import SEAL, is_sealed, seal

COST = "cost"  # the key of what a call cost, in its marker
FACTS = ("key", "pmid", "pmcid", "version", "year", "language", "licence", "kinds", "file", "member")
LEFT = {
    "extract": (".text", ".tsv", ".npz", ".sig.npy", ".bands.npy", ".bounds.npy", ".kept.npy"),
    **dict.fromkeys(("keys", "texts", "near", "groups"), (".npy",)),
}  # by step, what a call may leave for later steps


@dataclass
class Extracted:
    """Arrays over a unit's n records; `lengths` is in bytes and 0 for a dropped record."""

    keys: np.ndarray  # u8, hash of the key
    versions: np.ndarray  # i4
    dates: np.ndarray  # i4, yyyymmdd or 0
    years: np.ndarray  # i2
    reasons: np.ndarray  # u1, codes of filters.REASONS
    lengths: np.ndarray  # i8
    hashes: np.ndarray  # u8 [n, 2], of the text
    prompts: np.ndarray  # i8, how many bytes of the text are its prompt (prompt/completion)
    deleted: np.ndarray  # u8, keys that the unit orders to delete
    deleted_at: np.ndarray  # i8, how many records of the unit came before the order


def unit_path(work: str, step: str, index: int | str, suffix: str) -> str:
    """The path of what `step` leaves for a unit or bucket, or under a name."""
    return os.path.join(work, step, f"{f'{index:05d}' if isinstance(index, int) else index}{suffix}")


def save(path: str, extracted: Extracted) -> None:
    """Write all arrays of a unit."""
    with replacing(path) as temporary, open(temporary, "wb") as f:
        np.savez(f, **vars(extracted))


def load(work: str, index: int) -> Extracted:
    """All arrays of a unit."""
    return Extracted(*load_columns(work, index, *Extracted.__dataclass_fields__))


def load_columns(work: str, index: int, *names: str) -> tuple[np.ndarray, ...]:
    """The arrays named; the others are not read."""
    path = unit_path(work, "extract", index, ".npz")
    with _reading(work, path), open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
        return tuple(arrays[name] for name in names)


@contextmanager
def _reading(work: str, path: str) -> Iterator[None]:
    """What a damaged file between steps raises is one line."""
    try:
        yield
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as e:
        raise damaged(work, path, " ".join(str(e).split())[:100]) from None


def damaged(work: str, path: str, reason: str) -> UserError:
    """What to say of a file between steps that is not as it was written."""
    return UserError(f"{path}: is damaged ({reason}); delete {work} and run the same command again")


def save_array(path: str, array: np.ndarray) -> None:
    """Write one array; the folder is made."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as f:
        np.save(f, array)


def save_pieces(path: str, pieces: Iterable[np.ndarray], dtype: np.dtype | type, shape: tuple[int, ...]) -> None:
    """Write one array piece by piece; together they must have `shape`."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with replacing(path) as temporary, open(temporary, "wb") as f:
        np.lib.format.write_array_header_1_0(f, header)
        begin = f.tell()
        for piece in pieces:
            f.write(np.ascontiguousarray(piece, dtype).tobytes())
        if f.tell() - begin != np.dtype(dtype).itemsize * math.prod(shape):
            raise AssertionError(f"{path}: {f.tell() - begin} bytes were written for an array of shape {shape}")


def load_array(work: str, path: str, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """An array that `save_array` wrote.

    Raises:
        UserError: it is damaged.
    """
    with _reading(work, path):
        open_regular(path).close()  # np.load itself would wait for a pipe's writer
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)


def marker(work: str, step: str, index: int | str) -> dict[str, Any] | None:
    """The marker of a step; None where it has not finished, or where the marker is damaged: the step is made again."""
    if (value := _read_sealed(work, step, index)) is not None:
        for key in ("left", COST):
            value.pop(key, None)
    return value


def list_markers(work: str, step: str) -> list[str]:
    """The names of a step's calls that have left a marker, whole or damaged."""
    folder = os.path.join(work, step)
    names = os.listdir(folder) if exists(folder) else []
    return [name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith(".")]


def finished(work: str, step: str) -> list[int]:
    """The units, or buckets, of which a step has left a marker."""
    return sorted(int(name) for name in list_markers(work, step) if name.isdecimal())


def discard(work: str, step: str, index: int) -> None:
    """Remove what a call left, its marker first, so that it is made again."""
    for suffix in (".json", *LEFT.get(step, ())):
        with suppress(FileNotFoundError):
            os.remove(unit_path(work, step, index, suffix))


def read_cost(work: str, step: str, index: int | str) -> dict[str, Any] | None:
    """What a finished call cost (`costs`); None of one that has not finished, or of an earlier version."""
    found = (_read_sealed(work, step, index) or {}).get(COST)
    return found if isinstance(found, dict) else None


def _read_sealed(work: str, step: str, index: int | str) -> dict[str, Any] | None:
    try:
        value = parse_json(read_bytes(unit_path(work, step, index, ".json")))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(value, dict) or (SEAL in value and not is_sealed(value)):  # older ones have no seal
        return None
    value.pop(SEAL, None)
    return value


def read_marker(work: str, step: str, index: int) -> dict[str, Any]:
    """The marker of a finished step.

    Raises:
        UserError: it is missing or damaged.
    """
    if (found := marker(work, step, index)) is None:
        raise UserError(f"{unit_path(work, step, index, '.json')}: missing or damaged; run the same command again")
    return found


def mark_done(
    work: str,
    step: str,
    index: int | str,
    value: dict[str, Any],
    measure: Callable[[int], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the marker of a finished call, with the hashes of what the call left for later steps.

    Args:
        measure: says what the call cost, given the bytes of what it left; asked once these are hashed.
    """
    paths = {suffix: unit_path(work, step, index, suffix) for suffix in LEFT.get(step, ())}
    found = {suffix: path for suffix, path in paths.items() if exists(path)}
    more: dict[str, Any] = {"left": {suffix: streams.sha256_file(path) for suffix, path in found.items()}}
    if measure is not None:
        more[COST] = measure(sum(map(os.path.getsize, found.values())))
    write_json(unit_path(work, step, index, ".json"), seal(value | more))
    return value


def is_whole(work: str, step: str, index: int | str) -> bool:
    """Whether a call has finished, and what it left is as its marker says."""
    try:
        check_left(work, step, index)
    except UserError:
        return False
    return marker(work, step, index) is not None


def check_left(work: str, step: str, index: int | str) -> None:
    """Hold what a finished call left to the hashes of its marker; older markers have none.

    Raises:
        UserError: a file is missing or has changed.
    """
    left = (_read_sealed(work, step, index) or {}).get("left")
    for suffix, sha in left.items() if isinstance(left, dict) else ():
        path = unit_path(work, step, index, suffix)
        if not exists(path):
            raise damaged(work, path, "missing")
        if streams.sha256_file(path) != sha:
            raise damaged(work, path, "changed since it was written")
