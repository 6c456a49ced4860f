"""Second steps, one call per hash bucket: which record of a key is the newest, and which texts are there twice.

A bucket reads one column of every unit, keeps its share, and writes the records that it drops. Both rules depend
only on the order of the units and of the records in them, so the outcome is the same however the work is shared.
Rows are sorted outside of memory (`sorting`), and passed over once.
"""

import os

import numpy as np

from data_preprocessing.config import Job
from data_preprocessing.steps import drops, store
from data_preprocessing.steps.filters import CODE
from data_preprocessing.steps.sorting import MEMORY, Sorter, follow

_SIGNED = 1 << 31  # added to an i4, so that negative ones come first


def keys(job: Job, work: str, bucket: int, buckets: int, units: int, memory: int = MEMORY) -> dict:
    """Drop all but the newest record of each key, and what a later DeleteCitation removes.

    Newest: the highest version, then (newest_by: date_revised) the latest date, then the last in file order.
    """
    rows = Sorter(os.path.join(work, "keys"), 3, memory // 2)  # key, rank, number; a key's delete orders have rank 0
    for unit in range(units):
        names = "keys", "versions", "dates", "deleted", "deleted_at"
        key, version, date, deleted, at = store.load_columns(work, unit, *names)
        mine = np.flatnonzero(key % np.uint64(buckets) == bucket)
        rank = _rank(version[mine], date[mine] if job.newest_by == "date_revised" else np.zeros(len(mine), np.int32))
        rows.add(key[mine], rank, drops.own(unit, mine))
        ours = deleted % np.uint64(buckets) == bucket
        rows.add(deleted[ours], np.zeros(int(ours.sum()), np.uint64), drops.own(unit, at[ours]))
    found = drops.collect(work, "keys", memory // 2)
    order = np.zeros((1, 3), np.uint64)  # the last order so far; the number 0 comes before no record
    for _, piece, after in follow(rows.read()):
        key, rank, number = piece.T
        is_order = rank == 0
        followed = key == np.append(key[1:], np.uint64(0) if after is None else after[0])
        followed[-1:] &= after is not None
        # For each row the last order up to it: an index into the orders, of which the first is an earlier piece's.
        orders = np.concatenate([order, piece[is_order]])
        last = orders[np.cumsum(is_order)]
        deleted = ~is_order & (last[:, 0] == key) & (number < last[:, 2])
        older = ~is_order & followed & ~deleted
        for which, reason in ((deleted, "deleted"), (older, "superseded")):
            found.add(number[which], np.full(int(which.sum()), CODE[reason], np.uint64))
        order = orders[-1:]
    drops.save(work, "keys", bucket, found)
    return {"dropped": found.count}


def _rank(version: np.ndarray, date: np.ndarray) -> np.ndarray:
    """u8 in the order of (version, date); 0 for the least i4 of both alone."""
    high, low = ((column.astype(np.int64) + _SIGNED).astype(np.uint64) for column in (version, date))
    return high << np.uint64(32) | low


def texts(job: Job, work: str, bucket: int, buckets: int, units: int, memory: int = MEMORY) -> dict:
    """Drop all but the first of the records with the same text, among those still kept."""
    rows = Sorter(os.path.join(work, "texts"), 3, memory // 2)  # the hash's halves, number
    dropped = drops.load(work, ("keys",), buckets)
    for unit in range(units):
        hashes, reasons = store.load_columns(work, unit, "hashes", "reasons")
        reasons = drops.put(dropped, unit, reasons)
        mine = np.flatnonzero((reasons == 0) & (hashes[:, 0] % np.uint64(buckets) == bucket))
        rows.add(hashes[mine, 0], hashes[mine, 1], drops.own(unit, mine))
    found = drops.collect(work, "texts", memory // 2)
    for before, piece, _ in follow(rows.read()):
        text = piece[:, :2]
        same = np.ones(len(piece), bool)
        same[1:] = (text[1:] == text[:-1]).all(axis=1)
        same[0] = before is not None and (text[0] == before[:2]).all()
        found.add(piece[same, 2], np.full(int(same.sum()), CODE["exact_duplicate"], np.uint64))
    drops.save(work, "texts", bucket, found)
    return {"dropped": found.count}
