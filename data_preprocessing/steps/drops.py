"""Which records the steps that look across the corpus drop: what each call left, and all of it in one file.

OUT/work/{keys,texts,groups}/00003.npy  records that a bucket drops (DROP), by unit and record
OUT/work/{step}/dropped.npy             those of `step` and of the steps before it, by unit and record, with a marker

The one file is read by bisection: a call holds a unit's drops, whatever the number of drops and of buckets.
"""

import bisect
import os
from collections.abc import Iterator

import numpy as np

from data_preprocessing.steps import costs, store
from data_preprocessing.steps.filters import CODE
from data_preprocessing.steps.sorting import MEMORY, Sorter

DROP = np.dtype([("unit", "<u4"), ("record", "<u4"), ("reason", "u1")])
ALL = "dropped"  # the name of the one file
PIECE = 1 << 16  # drops read at a time
_NOT_THE_RECORD = (CODE["superseded"], CODE["deleted"])


def own(unit: np.ndarray | int, record: np.ndarray) -> np.ndarray:
    """Numbers of records in the order of the corpus: unit << 32 | record."""
    return (np.asarray(unit).astype(np.uint64) << np.uint64(32)) | record.astype(np.uint64)


def collect(work: str, step: str, memory: int) -> Sorter:
    """What takes a call's drops as (number of the record, reason), for `save`."""
    return Sorter(os.path.join(work, step), 2, memory)


def save(work: str, step: str, index: int | str, found: Sorter) -> None:
    """Write the drops that `found` holds, sorted."""
    path = store.unit_path(work, step, index, ".npy")
    store.save_pieces(path, map(_describe, found.read()), DROP, (found.count,))


def _describe(rows: np.ndarray) -> np.ndarray:
    drops = np.empty(len(rows), DROP)
    drops["unit"], drops["record"] = rows[:, 0] >> np.uint64(32), rows[:, 0] & np.uint64(0xFFFFFFFF)
    drops["reason"] = rows[:, 1]
    return drops


def merge(work: str, steps: tuple[str, ...], buckets: int, memory: int = MEMORY) -> None:
    """Put the drops of these steps into one file, which is the last step's, unless it is there and whole."""
    if store.is_whole(work, steps[-1], ALL):
        return
    meter, found = costs.Meter(), collect(work, steps[-1], memory)
    for step in steps:
        for bucket in range(1 if step == "groups" else buckets):
            for part in _read(work, store.unit_path(work, step, bucket, ".npy")):
                found.add(own(part["unit"], part["record"]), part["reason"])
    save(work, steps[-1], ALL, found)
    store.mark_done(work, steps[-1], ALL, {"dropped": found.count}, lambda left: meter.read(0, left))


def _read(work: str, path: str) -> Iterator[np.ndarray]:
    drops = _open(work, path)
    for begin in range(0, len(drops), PIECE):
        yield np.array(drops[begin : begin + PIECE])


def _open(work: str, path: str) -> np.ndarray:
    drops = store.load_array(work, path, mmap_mode="r")
    if drops.dtype != DROP or drops.ndim != 1:
        raise store.damaged(work, path, "it holds other values")
    return drops


def load(work: str, steps: tuple[str, ...], buckets: int) -> np.ndarray:
    """The one file of these steps, in place on the disk; where no `merge` made it yet, it is made."""
    if store.marker(work, steps[-1], ALL) is None:
        merge(work, steps, buckets)
    return _open(work, store.unit_path(work, steps[-1], ALL, ".npy"))


def of_unit(drops: np.ndarray, unit: int) -> np.ndarray:
    """A unit's part of the one file."""
    first, last = (bisect.bisect_left(drops, u, key=lambda drop: int(drop["unit"])) for u in (unit, unit + 1))
    return np.array(drops[first:last])


def put(drops: np.ndarray, unit: int, reasons: np.ndarray) -> np.ndarray:
    """A copy of a unit's reasons with those of the drops put in; an earlier step's reason is kept.

    Superseded and deleted records take that reason whatever the filters found: they are not the record.
    """
    reasons, mine = reasons.copy(), of_unit(drops, unit)
    records = mine["record"]
    later = (reasons[records] == 0) | np.isin(mine["reason"], _NOT_THE_RECORD)
    reasons[records[later]] = mine["reason"][later]
    return reasons
