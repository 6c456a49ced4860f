"""What one step leaves on disk for the next: the texts and facts of a unit, markers, and lists of dropped records.

OUT/work/extract/00003.text         kept texts end to end, UTF-8
OUT/work/extract/00003.npz          arrays over the unit's records (Extracted)
OUT/work/extract/00003.tsv          the facts that are text, one line per record (FACTS)
OUT/work/extract/00003.*.npy        with near duplicates: signatures and their bands (minhash)
OUT/work/{step}/00003.json          the marker: written last, so a step without it is run again; it seals the others
OUT/work/{keys,texts,groups}/00003.npy  records that a bucket drops (DROP)
OUT/work/near/00003.npy             pairs of records that are alike
"""

import functools
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data_preprocessing import streams
from data_preprocessing.shards import write_json
from modelzoo.config.errors import UserError
from modelzoo.files import replacing
from modelzoo.reading import exists, open_regular, parse_json, read_bytes
from modelzoo.records import SEAL, is_sealed, seal

FACTS = ("key", "pmid", "pmcid", "version", "year", "language", "licence", "kinds", "file", "member")
LEFT = {
    "extract": (".text", ".tsv", ".npz", ".sig.npy", ".bands.npy", ".bounds.npy", ".kept.npy"),
    **dict.fromkeys(("keys", "texts", "near", "groups"), (".npy",)),
}  # by step, what a call may leave for later steps
DROP = np.dtype([("unit", "<u4"), ("record", "<u4"), ("reason", "u1")])


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


def unit_path(work: str, step: str, index: int, suffix: str) -> str:
    """The path of what `step` leaves for a unit or bucket."""
    return os.path.join(work, step, f"{index:05d}{suffix}")


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
        raise _damaged(work, path, " ".join(str(e).split())[:100]) from None


def _damaged(work: str, path: str, reason: str) -> UserError:
    return UserError(f"{path}: is damaged ({reason}); delete {work} and run the same command again")


def save_array(path: str, array: np.ndarray) -> None:
    """Write one array; the folder is made."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as f:
        np.save(f, array)


def load_array(work: str, path: str, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """An array that `save_array` wrote.

    Raises:
        UserError: it is damaged.
    """
    with _reading(work, path):
        open_regular(path).close()  # np.load itself would wait for a pipe's writer
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)


def marker(work: str, step: str, index: int) -> dict[str, Any] | None:
    """The marker of a step; None where it has not finished, or where the marker is damaged: the step is made again."""
    if (value := _read_sealed(work, step, index)) is not None:
        value.pop("left", None)
    return value


def _read_sealed(work: str, step: str, index: int) -> dict[str, Any] | None:
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


def mark_done(work: str, step: str, index: int, value: dict[str, Any]) -> dict[str, Any]:
    """Write the marker of a finished call, with the hashes of what the call left for later steps."""
    paths = {suffix: unit_path(work, step, index, suffix) for suffix in LEFT.get(step, ())}
    left = {suffix: streams.sha256_file(path) for suffix, path in paths.items() if exists(path)}
    write_json(unit_path(work, step, index, ".json"), seal(value | {"left": left}))
    return value


def check_left(work: str, step: str, index: int) -> None:
    """Hold what a finished call left to the hashes of its marker; older markers have none.

    Raises:
        UserError: a file is missing or has changed.
    """
    left = (_read_sealed(work, step, index) or {}).get("left")
    for suffix, sha in left.items() if isinstance(left, dict) else ():
        path = unit_path(work, step, index, suffix)
        if not exists(path):
            raise _damaged(work, path, "missing")
        if streams.sha256_file(path) != sha:
            raise _damaged(work, path, "changed since it was written")


def save_drops(work: str, step: str, index: int, drops: np.ndarray) -> None:
    """Sorted by unit and record, so that a unit finds its own by bisection."""
    drops = np.sort(drops.astype(DROP), order=["unit", "record"])
    save_array(unit_path(work, step, index, ".npy"), drops)


def load_drops(work: str, steps: tuple[str, ...], buckets: int) -> dict[str, np.ndarray]:
    """By step, what all its buckets drop, sorted by unit.

    A process reads it once for all its calls: once for each would grow with the square of their number.
    """
    found = [os.stat(os.path.join(work, step)) for step in steps]
    return _load_drops(work, steps, buckets, tuple((f.st_dev, f.st_ino, f.st_mtime_ns) for f in found))


@functools.lru_cache(maxsize=1)
def _load_drops(work: str, steps: tuple[str, ...], buckets: int, folders: tuple) -> dict[str, np.ndarray]:
    """`folders` changes with the files in the steps' folders."""
    found = {}
    for step in steps:
        parts = []
        for bucket in range(1 if step == "groups" else buckets):
            path = unit_path(work, step, bucket, ".npy")
            parts.append(load_array(work, path))
            if parts[-1].dtype != DROP or parts[-1].ndim != 1:
                raise _damaged(work, path, "it holds other values")
        drops = np.concatenate(parts)
        found[step] = drops[np.argsort(drops["unit"], kind="stable")]
    return found


def put_drops(drops: dict[str, np.ndarray], unit: int, reasons: np.ndarray) -> np.ndarray:
    """A copy of a unit's reasons with those of later steps put in; an earlier step's reason is kept.

    Superseded and deleted records take that reason whatever the filters found: they are not the record.
    """
    reasons = reasons.copy()
    for step, of_all in drops.items():
        first, last = np.searchsorted(of_all["unit"], [unit, unit + 1])
        mine = of_all[first:last]
        if step == "keys":
            reasons[mine["record"]] = mine["reason"]
        else:
            reasons[mine["record"]] = np.where(reasons[mine["record"]] == 0, mine["reason"], reasons[mine["record"]])
    return reasons


def apply_drops(work: str, steps: tuple[str, ...], buckets: int, unit: int, reasons: np.ndarray) -> np.ndarray:
    """`put_drops` for one unit alone."""
    return put_drops(load_drops(work, steps, buckets), unit, reasons)
