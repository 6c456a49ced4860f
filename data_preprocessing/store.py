"""What one step leaves on disk for the next: the texts and facts of a unit, markers, and lists of dropped records.

OUT/work/extract/00003.text         kept texts end to end, UTF-8
OUT/work/extract/00003.npz          arrays over the unit's records (Extracted)
OUT/work/extract/00003.tsv          the facts that are text, one line per record (FACTS)
OUT/work/{step}/00003.json          the marker: written last, so a step without it is run again
OUT/work/{keys,texts,groups}/00003.npy  records that a bucket drops (DROP)
"""

import os
from dataclasses import dataclass

import numpy as np

from data_preprocessing.shards import read_json, write_json
from modelzoo.files import replacing

FACTS = ("key", "pmid", "pmcid", "version", "year", "language", "licence", "kinds", "file", "member")
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
    np.savez(path, **vars(extracted))


def load(work: str, index: int) -> Extracted:
    """All arrays of a unit."""
    return Extracted(*load_columns(work, index, *Extracted.__dataclass_fields__))


def load_columns(work: str, index: int, *names: str) -> tuple[np.ndarray, ...]:
    """The arrays named; the others are not read."""
    with np.load(unit_path(work, "extract", index, ".npz"), allow_pickle=False) as arrays:
        return tuple(arrays[name] for name in names)


def marker(work: str, step: str, index: int) -> dict | None:
    """The marker of a step, None where it has not finished."""
    return read_marker(work, step, index) if os.path.exists(unit_path(work, step, index, ".json")) else None


def read_marker(work: str, step: str, index: int) -> dict:
    """The marker of a finished step."""
    return read_json(unit_path(work, step, index, ".json"))


def mark_done(work: str, step: str, index: int, value: dict) -> dict:
    write_json(unit_path(work, step, index, ".json"), value)
    return value


def save_drops(work: str, step: str, index: int, drops: np.ndarray) -> None:
    """Sorted by unit and record, so that a unit finds its own by bisection."""
    drops = np.sort(drops.astype(DROP), order=["unit", "record"])
    path = unit_path(work, step, index, ".npy")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as f:
        np.save(f, drops)


def apply_drops(work: str, steps: tuple[str, ...], buckets: int, unit: int, reasons: np.ndarray) -> np.ndarray:
    """A copy of a unit's reasons with those of later steps put in; an earlier step's reason is kept.

    Superseded and deleted records take that reason whatever the filters found: they are not the record.
    """
    reasons = reasons.copy()
    for step in steps:
        for bucket in range(1 if step == "groups" else buckets):
            drops = np.load(unit_path(work, step, bucket, ".npy"), mmap_mode="r")
            first, last = np.searchsorted(drops["unit"], [unit, unit + 1])
            mine = drops[first:last]
            if step == "keys":
                reasons[mine["record"]] = mine["reason"]
            else:
                reasons[mine["record"]] = np.where(
                    reasons[mine["record"]] == 0, mine["reason"], reasons[mine["record"]]
                )
    return reasons
