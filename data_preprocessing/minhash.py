"""Near duplicates by MinHash: signatures per unit, candidate pairs by bands, and one survivor per group.

Two documents are near duplicates when the share of common word 5-grams (Jaccard), estimated from their signatures,
is at least `filters.near_duplicates`. Groups are connected components; the first document in file order stays.
"""

import os

import numpy as np

from data_preprocessing import store
from data_preprocessing.config import Job
from data_preprocessing.filters import CODE
from modelzoo.reading import exists

SHINGLE = 5  # words
PIECE = 1 << 20  # bytes of text whose words are hashed at a time
PAIRS = 1 << 16  # pairs that are compared at a time
BAND = np.dtype([("hash", "<u8"), ("record", "<u4")])
ROWS = 1 << 12  # n-grams that are signed at a time
_BASE = np.uint64(0x9E3779B97F4A7C15 | 1)
_LETTERS = np.zeros(256, np.uint8)  # lower-cased letters and digits; 0 separates words
for _c in range(256):
    if chr(_c).isalnum() and _c < 128:
        _LETTERS[_c] = ord(chr(_c).lower())
    elif _c >= 128:
        _LETTERS[_c] = _c  # bytes of other scripts count as letters


def word_ngrams(text: bytes, n: int) -> np.ndarray:
    """u8 hashes of the word n-grams of UTF-8 text: lower case, anything but letters and digits parts words.

    Each word's polynomial hash comes from prefix sums (wrapping mod 2^64, base odd and so invertible), is mixed, and
    combined over n words in the same way; all in numpy, a piece of the text at a time, so that memory is bounded.
    """
    if len(text) <= PIECE:
        return _combine(_word_hashes(text), n)
    grams = []
    words = np.empty(0, np.uint64)  # of the pieces so far, the last n - 1
    begin = 0
    while begin < len(text):
        end = _piece_end(text, begin)
        words = np.concatenate([words, _word_hashes(text[begin:end])])
        grams.append(_combine(words, n))
        words = words[max(len(words) - n + 1, 0) :]
        begin = end
    return np.concatenate(grams)


def _piece_end(text: bytes, begin: int) -> int:
    """Where a piece of about PIECE bytes ends: next to a byte that parts words, or, in a longer word, later."""
    end = begin + PIECE
    while end < len(text):
        parts = np.flatnonzero(_LETTERS[np.frombuffer(text, np.uint8, min(PIECE, len(text) - end), end)] == 0)
        if len(parts):
            return end + int(parts[0])
        end += PIECE
    return len(text)


def _word_hashes(text: bytes) -> np.ndarray:
    """u8 hashes of the words of a text, in order."""
    letters = _LETTERS[np.frombuffer(text, np.uint8)]
    inside = letters != 0
    edges = np.flatnonzero(np.diff(np.concatenate(([False], inside, [False])).view(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    with np.errstate(over="ignore"):
        powers = _powers(len(letters))
        prefix = np.concatenate(([np.uint64(0)], np.cumsum(letters.astype(np.uint64) * powers[: len(letters)])))
        return mix(
            (prefix[ends] - prefix[starts]) * _inverse_powers(len(letters))[starts] + (ends - starts).astype(np.uint64)
        )


def _combine(words: np.ndarray, n: int) -> np.ndarray:
    """u8 hashes of every n words in a row. The same trick over words: a gram is the difference of two prefix sums."""
    count = max(len(words) - n + 1, 0)
    with np.errstate(over="ignore"):
        prefix = np.concatenate(([np.uint64(0)], np.cumsum(words * _powers(len(words))[: len(words)])))
        return mix((prefix[n : n + count] - prefix[:count]) * _inverse_powers(len(words))[:count])


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of u8 in which every bit depends on every other (MurmurHash3's finaliser)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        return x ^ (x >> np.uint64(33))


class _Powers:
    """Powers of a base mod 2^64, grown as needed."""

    def __init__(self, base: int):
        self.base, self.table = base, np.ones(1, np.uint64)

    def __call__(self, n: int) -> np.ndarray:
        while len(self.table) < n:
            step = np.uint64(pow(self.base, len(self.table), 2**64))
            with np.errstate(over="ignore"):
                self.table = np.concatenate([self.table, self.table * step])
        return self.table


_powers = _Powers(int(_BASE))
_inverse_powers = _Powers(pow(int(_BASE), -1, 2**64))


def seeds(permutations: int) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers (odd) and summands of the hash family; fixed, so that signatures compare across runs."""
    raw = mix(np.arange(1, 2 * permutations + 1, dtype=np.uint64) * _BASE)
    return raw[:permutations] | np.uint64(1), raw[permutations:]


def signature(grams: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[permutations] u4: for each hash function the least value over the grams (all ones where there is none)."""
    if not len(grams):
        return np.full(len(a), 0xFFFFFFFF, np.uint32)
    least = np.full(len(a), 0xFFFFFFFF, np.uint64)
    with np.errstate(over="ignore"):
        for k in range(0, len(grams), ROWS):
            least = np.minimum(least, ((grams[k : k + ROWS, None] * a + b) >> np.uint64(32)).min(axis=0))
    return least.astype(np.uint32)


def bands_for(permutations: int, threshold: float) -> int:
    """The number of bands (a divisor) whose S-curve, (1/bands)^(1/rows), lies just under the threshold."""
    fitting = [
        n
        for n in range(1, permutations + 1)
        if permutations % n == 0 and (1 / n) ** (n / permutations) <= threshold - 0.05
    ]
    return min(fitting, default=permutations)


def sign_unit(job: Job, work: str, index: int, unit: store.Extracted) -> None:
    """Signatures of a unit's kept documents, [kept, permutations] u4, next to its texts, and their band hashes."""
    a, b = seeds(job.filters.near_permutations)
    starts = np.concatenate([[0], np.cumsum(unit.lengths)])
    kept = np.flatnonzero(unit.reasons == 0)
    signatures = np.empty((len(kept), job.filters.near_permutations), np.uint32)
    with open(store.unit_path(work, "extract", index, ".text"), "rb") as f:
        for k, record in enumerate(kept):
            f.seek(starts[record])
            signatures[k] = signature(np.unique(word_ngrams(f.read(int(unit.lengths[record])), SHINGLE)), a, b)
    store.save_array(store.unit_path(work, "extract", index, ".sig.npy"), signatures)
    _band_unit(job, work, index, kept, signatures)


def _band_unit(job: Job, work: str, index: int, kept: np.ndarray, signatures: np.ndarray) -> None:
    """Sort a unit's band hashes by bucket, so that each bucket reads its own part alone.

    Leaves `.kept.npy`, the record of each signature; `.bands.npy`, (hash, record) of every band of every document that
    is long enough to have an n-gram; and `.bounds.npy`, where each bucket's part of that begins and ends.
    """
    comparable = (signatures != 0xFFFFFFFF).any(axis=1)
    records, banded = kept[comparable], signatures[comparable]
    bands = _bands(job)
    banded = np.ascontiguousarray(banded).reshape(len(records), bands, -1 if len(records) else 1)
    found = np.empty((bands, len(records)), BAND)
    found["record"] = records
    for band in range(bands):
        h = np.full(len(records), mix(np.array([band + 1], np.uint64))[0])
        for column in banded[:, band].T.astype(np.uint64):
            h = mix(h * _BASE + column)
        found["hash"][band] = h
    found = found.ravel()
    bucket = found["hash"] % np.uint64(job.buckets)
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(job.buckets + 1, dtype=np.uint64))
    for suffix, array in ((".bands.npy", found[order]), (".bounds.npy", bounds), (".kept.npy", kept.astype(np.uint32))):
        store.save_array(store.unit_path(work, "extract", index, suffix), array)


def _bands(job: Job) -> int:
    threshold = job.filters.near_duplicates
    assert threshold is not None  # a job without one has no such step
    return bands_for(job.filters.near_permutations, threshold)


def _load(work: str, index: int, suffix: str) -> np.ndarray:
    return store.load_array(work, store.unit_path(work, "extract", index, suffix), mmap_mode="r")


def _dropped(job: Job, work: str) -> np.ndarray:
    """(unit << 32 | record) of every record that the steps before drop, sorted; the first bucket that asks writes it.

    Without that file each bucket would read what all buckets left, which grows with the square of their number.
    """
    path = os.path.join(work, "near", "dropped.npy")
    if not exists(path):
        steps = ("keys", "texts") if job.filters.exact_duplicates else ("keys",)
        drops = store.load_drops(work, steps, job.buckets).values()
        owners = [_owners(of_step["unit"], of_step["record"]) for of_step in drops]
        store.save_array(path, np.unique(np.concatenate(owners)))
    return store.load_array(work, path)


def _owners(unit: np.ndarray, record: np.ndarray) -> np.ndarray:
    return (unit.astype(np.uint64) << np.uint64(32)) | record.astype(np.uint64)


def near(job: Job, work: str, bucket: int, buckets: int, units: int) -> dict:
    """Pairs whose band hashes fall in this bucket and whose signatures agree enough, as (first, second) records."""
    threshold = job.filters.near_duplicates
    assert threshold is not None  # a job without one has no such step
    dropped = _dropped(job, work)
    hashes, owners = [], []
    for unit in range(units):
        if not exists(store.unit_path(work, "extract", unit, ".kept.npy")):  # of an earlier version
            (reasons,) = store.load_columns(work, unit, "reasons")
            _band_unit(job, work, unit, np.flatnonzero(reasons == 0), _load(work, unit, ".sig.npy"))
        begin, end = _load(work, unit, ".bounds.npy")[bucket : bucket + 2]
        mine = _load(work, unit, ".bands.npy")[begin:end]
        owner = _owners(np.array(unit), mine["record"])
        if len(dropped):
            place = np.minimum(np.searchsorted(dropped, owner), len(dropped) - 1)
            mine, owner = mine[dropped[place] != owner], owner[dropped[place] != owner]
        hashes.append(mine["hash"])
        owners.append(owner)
    hashes, owners = np.concatenate(hashes), np.concatenate(owners)
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    # Neighbours and the first of the run: a chain that links whatever is truly alike, without all pairs of a run.
    run_start = (
        np.maximum.accumulate(np.where(np.append(True, hashes[1:] != hashes[:-1]), np.arange(len(hashes)), 0))
        if len(hashes)
        else np.empty(0, np.int64)
    )
    pairs = (
        np.concatenate(
            [
                np.stack([owners[same], owners[same + 1]], 1),
                np.stack([owners[run_start[same + 1]], owners[same + 1]], 1),
            ]
        )
        if len(same)
        else np.empty((0, 2), np.uint64)
    )
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    alike = _similar(job, work, pairs, threshold)
    store.save_array(store.unit_path(work, "near", bucket, ".npy"), pairs[alike])
    return store.mark_done(work, "near", bucket, {"pairs": int(alike.sum()), "candidates": len(pairs)})


def _similar(job: Job, work: str, pairs: np.ndarray, threshold: float) -> np.ndarray:
    """Which pairs have signatures that agree in at least `threshold` of their places."""
    alike = np.empty(len(pairs), bool)
    for begin in range(0, len(pairs), PAIRS):
        part = pairs[begin : begin + PAIRS]
        rows = np.empty((2, len(part), job.filters.near_permutations), np.uint32)
        for side in (0, 1):
            units = part[:, side] >> np.uint64(32)
            for unit in np.unique(units):
                mine = np.flatnonzero(units == unit)
                records = (part[mine, side] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
                places = np.searchsorted(_load(work, int(unit), ".kept.npy"), records)
                rows[side, mine] = _load(work, int(unit), ".sig.npy")[places]
        alike[begin : begin + PAIRS] = (rows[0] == rows[1]).mean(axis=1) >= threshold
    return alike


def groups(job: Job, work: str, buckets: int) -> dict:
    """Join all buckets' pairs into groups and drop all but the first of each."""
    pairs = np.concatenate([store.load_array(work, store.unit_path(work, "near", b, ".npy")) for b in range(buckets)])
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while (up := parent.setdefault(x, x)) != x:
            parent[x] = parent[up]
            x = parent[x]
        return x

    for a, b in pairs.tolist():
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)  # the root is the first of the group, whatever the order of the pairs
    out = np.array(sorted(x for x in list(parent) if root(x) != x), np.uint64)
    drops = np.empty(len(out), store.DROP)
    drops["unit"], drops["record"] = out >> np.uint64(32), out & np.uint64(0xFFFFFFFF)
    drops["reason"] = CODE["near_duplicate"]
    store.save_drops(work, "groups", 0, drops)
    return store.mark_done(work, "groups", 0, {"dropped": len(out)})
