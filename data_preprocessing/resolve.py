"""Second steps, one call per hash bucket: which record of a key is the newest, and which texts are there twice.

A bucket reads one column of every unit, keeps its share, and writes the records that it drops. Both rules depend
only on the order of the units and of the records in them, so the outcome is the same however the work is shared.
"""

import numpy as np

from data_preprocessing import store
from data_preprocessing.config import Job
from data_preprocessing.filters import CODE


def keys(job: Job, work: str, bucket: int, buckets: int, units: int) -> dict:
    """Drop all but the newest record of each key, and what a later DeleteCitation removes.

    Newest: the highest version, then (newest_by: date_revised) the latest date, then the last in file order.
    """
    columns = {name: [] for name in ("key", "version", "date", "unit", "record")}
    orders: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for unit in range(units):
        names = "keys", "versions", "dates", "deleted", "deleted_at"
        key, version, date, deleted, at = store.load_columns(work, unit, *names)
        mine = np.flatnonzero(key % np.uint64(buckets) == bucket)
        for name, values in (
            ("key", key[mine]),
            ("version", version[mine]),
            ("date", date[mine]),
            ("unit", np.full(len(mine), unit, np.int64)),
            ("record", mine),
        ):
            columns[name].append(values)
        ours = deleted % np.uint64(buckets) == bucket
        orders.append((deleted[ours], np.full(int(ours.sum()), unit, np.int64), at[ours]))
    key, version, date, unit, record = (np.concatenate(c) if c else np.empty(0, np.int64) for c in columns.values())
    if job.newest_by == "file_order":
        date = np.zeros_like(date)
    order = np.lexsort((record, unit, date, version, key))
    reasons = np.zeros(len(key), np.uint8)
    ranked = key[order]
    older = np.zeros(len(ranked), bool)
    older[:-1] = ranked[1:] == ranked[:-1]  # one of the same key follows
    reasons[order[older]] = CODE["superseded"]
    reasons[_deleted(key, unit, record, orders)] = CODE["deleted"]
    return _save(work, "keys", bucket, unit, record, reasons)


def _deleted(key, unit, record, orders) -> np.ndarray:
    """Records that come before the last order to delete their key."""
    what, where, at = (np.concatenate(column) for column in zip(*orders, strict=True))
    if not len(what):
        return np.zeros(len(key), bool)
    order = np.lexsort((at, where, what))
    what, where, at = what[order], where[order], at[order]
    last = np.append(what[1:] != what[:-1], True)
    what, where, at = what[last], where[last], at[last]
    i = np.minimum(np.searchsorted(what, key), len(what) - 1)
    return (what[i] == key) & ((unit < where[i]) | ((unit == where[i]) & (record < at[i])))


def texts(job: Job, work: str, bucket: int, buckets: int, units: int) -> dict:
    """Drop all but the first of the records with the same text, among those still kept."""
    parts, drops = [], store.load_drops(work, ("keys",), buckets)
    for unit in range(units):
        hashes, reasons = store.load_columns(work, unit, "hashes", "reasons")
        reasons = store.put_drops(drops, unit, reasons)
        mine = np.flatnonzero((reasons == 0) & (hashes[:, 0] % np.uint64(buckets) == bucket))
        parts.append((hashes[mine, 0], hashes[mine, 1], np.full(len(mine), unit, np.int64), mine))
    high, low, unit, record = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((record, unit, low, high))
    same = np.zeros(len(order), bool)
    same[1:] = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
    reasons = np.zeros(len(order), np.uint8)
    reasons[order[same]] = CODE["exact_duplicate"]
    return _save(work, "texts", bucket, unit, record, reasons)


def _save(work: str, step: str, bucket: int, unit, record, reasons) -> dict:
    out = np.flatnonzero(reasons)
    drops = np.empty(len(out), store.DROP)
    drops["unit"], drops["record"], drops["reason"] = unit[out], record[out], reasons[out]
    store.save_drops(work, step, bucket, drops)
    return store.mark_done(work, step, bucket, {"dropped": len(out)})
