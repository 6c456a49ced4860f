"""Near duplicates by MinHash: signatures per unit, candidate pairs by bands, and one survivor per group.

Two documents are near duplicates when the share of common word 5-grams (Jaccard), estimated from their signatures,
is at least `filters.near_duplicates`. Groups are connected components; the first document in file order stays.
"""

import os
from collections.abc import Iterator

import numpy as np

from data_preprocessing.config import Job
from data_preprocessing.steps import components, drops, store
from data_preprocessing.steps.filters import CODE
from data_preprocessing.steps.sorting import MEMORY, Sorter, follow
from modelzoo.reading import exists

SHINGLE = 5  # words
PIECE = 1 << 20  # bytes of text whose words are hashed at a time
PAIRS = 1 << 16  # pairs that are compared at a time
BAND = np.dtype([("hash", "<u8"), ("record", "<u4")])
ROWS = 1 << 12  # n-grams that are signed at a time
BLOCK = 1 << 16  # documents of a unit whose signatures are in memory at a time
NONE = 0xFFFFFFFF  # in every place of the signature of a text without n-grams
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
    permutations = job.filters.near_permutations
    kept = np.flatnonzero(unit.reasons == 0)
    path = store.unit_path(work, "extract", index, ".sig.npy")
    store.save_pieces(path, _sign(job, work, index, unit, kept), np.uint32, (len(kept), permutations))
    band_unit(job, work, index, kept)


def _sign(job: Job, work: str, index: int, unit: store.Extracted, kept: np.ndarray) -> Iterator[np.ndarray]:
    """The signatures, BLOCK documents at a time."""
    a, b = seeds(job.filters.near_permutations)
    starts = np.concatenate([[0], np.cumsum(unit.lengths)])
    with open(store.unit_path(work, "extract", index, ".text"), "rb") as f:
        for begin in range(0, len(kept), BLOCK):
            records = kept[begin : begin + BLOCK]
            signatures = np.empty((len(records), job.filters.near_permutations), np.uint32)
            for k, record in enumerate(records):
                f.seek(int(starts[record]))
                signatures[k] = signature(np.unique(word_ngrams(f.read(int(unit.lengths[record])), SHINGLE)), a, b)
            yield signatures


def band_unit(job: Job, work: str, index: int, kept: np.ndarray) -> None:
    """Sort a unit's band hashes by bucket, so that each bucket reads its own part alone, BLOCK documents at a time.

    Leaves `.kept.npy`, the record of each signature; `.bands.npy`, (hash, record) of every band of every document that
    is long enough to have an n-gram; and `.bounds.npy`, [blocks, buckets + 1], where in it each bucket's part of each
    block begins and ends.
    """
    signatures = _load(work, index, ".sig.npy")
    comparable = [
        int((signatures[begin : begin + BLOCK] != NONE).any(axis=1).sum()) for begin in range(0, len(kept), BLOCK)
    ]
    bounds = np.zeros((max(len(comparable), 1), job.buckets + 1), np.int64)
    pieces = (
        _band(job, kept[begin : begin + BLOCK], signatures[begin : begin + BLOCK], bounds[k])
        for k, begin in enumerate(range(0, len(kept), BLOCK))
    )
    length = _bands(job) * sum(comparable)
    store.save_pieces(store.unit_path(work, "extract", index, ".bands.npy"), pieces, BAND, (length,))
    bounds += (np.cumsum([0, *comparable])[: len(bounds)] * _bands(job))[:, None]
    store.save_array(store.unit_path(work, "extract", index, ".bounds.npy"), bounds)
    store.save_array(store.unit_path(work, "extract", index, ".kept.npy"), kept.astype(np.uint32))


def _band(job: Job, kept: np.ndarray, signatures: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(hash, record) of a block's bands by bucket; puts into `bounds` where each bucket's part begins and ends."""
    comparable = (signatures != NONE).any(axis=1)
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
    bounds[:] = np.searchsorted(bucket[order], np.arange(job.buckets + 1, dtype=np.uint64))
    return found[order]


def _bands(job: Job) -> int:
    threshold = job.filters.near_duplicates
    assert threshold is not None  # a job without one has no such step
    return bands_for(job.filters.near_permutations, threshold)


def _load(work: str, index: int, suffix: str) -> np.ndarray:
    return store.load_array(work, store.unit_path(work, "extract", index, suffix), mmap_mode="r")


def near(job: Job, work: str, bucket: int, buckets: int, units: int, memory: int = MEMORY) -> dict:
    """Pairs whose band hashes fall in this bucket and whose signatures agree enough, as (first, second) records.

    Of the records with one hash each is paired with the one before it and with the first: a chain that links whatever
    is truly alike, without all pairs of them.
    """
    folder = os.path.join(work, "near")
    rows, pairs = Sorter(folder, 2, memory // 2), Sorter(folder, 2, memory // 2)
    dropped = drops.load(work, steps_before(job), buckets)
    for unit in range(units):
        _add_bands(job, work, bucket, unit, dropped, rows)
    start = np.zeros(2, np.uint64)  # the first row with the hash of the last row
    for before, piece, _ in follow(rows.read()):
        begins = piece[:, 0] != np.concatenate([piece[:1, 0] if before is None else before[:1], piece[:-1, 0]])
        begins[0] |= before is None
        starts = np.concatenate([start[None], piece[begins]])[np.cumsum(begins)]
        previous = np.concatenate([piece[:1] if before is None else before[None], piece[:-1]])
        for first in (previous[:, 1], starts[:, 1]):
            found = ~begins & (first != piece[:, 1])
            pairs.add(first[found], piece[found, 1])
        start = starts[-1]
    del rows
    alike, candidates = Sorter(folder, 2, memory // 2), 0
    for part in _cut(pairs.read()):
        candidates += len(part)
        alike.add(*part[_similar(job, work, part)].T)
    store.save_pieces(store.unit_path(work, "near", bucket, ".npy"), alike.read(), np.uint64, (alike.count, 2))
    return {"pairs": alike.count, "candidates": candidates}


def steps_before(job: Job) -> tuple[str, ...]:
    """The steps before `near` that drop records."""
    return ("keys", "texts") if job.filters.exact_duplicates else ("keys",)


def _add_bands(job: Job, work: str, bucket: int, unit: int, dropped: np.ndarray, rows: Sorter) -> None:
    """Add a unit's part of a bucket, (hash, number of the record), without the records that are dropped."""
    if not exists(store.unit_path(work, "extract", unit, ".kept.npy")):  # of an earlier version
        (reasons,) = store.load_columns(work, unit, "reasons")
        band_unit(job, work, unit, np.flatnonzero(reasons == 0))
    bounds, bands = _load(work, unit, ".bounds.npy"), _load(work, unit, ".bands.npy")
    gone = drops.of_unit(dropped, unit)["record"]
    for begin, end in np.atleast_2d(bounds)[:, bucket : bucket + 2]:
        mine = np.array(bands[begin:end])
        if len(gone):
            place = np.minimum(np.searchsorted(gone, mine["record"]), len(gone) - 1)
            mine = mine[gone[place] != mine["record"]]
        rows.add(mine["hash"], drops.own(unit, mine["record"]))


def _cut(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Sorted rows, each once, PAIRS at a time."""
    for before, piece, _ in follow(pieces):
        new = np.ones(len(piece), bool)
        new[1:] = (piece[1:] != piece[:-1]).any(axis=1)
        new[0] = before is None or (piece[0] != before).any()
        piece = piece[new]
        for begin in range(0, len(piece), PAIRS):
            yield piece[begin : begin + PAIRS]


def _similar(job: Job, work: str, pairs: np.ndarray) -> np.ndarray:
    """Which pairs have signatures that agree in at least `near_duplicates` of their places."""
    rows = np.empty((2, len(pairs), job.filters.near_permutations), np.uint32)
    for side in (0, 1):
        units = pairs[:, side] >> np.uint64(32)
        for unit in np.unique(units):
            mine = np.flatnonzero(units == unit)
            records = (pairs[mine, side] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
            places = np.searchsorted(_load(work, int(unit), ".kept.npy"), records)
            rows[side, mine] = _load(work, int(unit), ".sig.npy")[places]
    return (rows[0] == rows[1]).mean(axis=1) >= job.filters.near_duplicates


def groups(job: Job, work: str, buckets: int, memory: int = MEMORY) -> dict:
    """Join all buckets' pairs into groups and drop all but the first of each, whatever the order of the pairs."""
    folder = os.path.join(work, "groups")
    edges = Sorter(folder, 2, memory // 4)
    for bucket in range(buckets):
        pairs = store.load_array(work, store.unit_path(work, "near", bucket, ".npy"), mmap_mode="r")
        for begin in range(0, len(pairs), PAIRS):
            part = np.array(pairs[begin : begin + PAIRS])
            edges.add(part.max(axis=1), part.min(axis=1))
    found = drops.collect(work, "groups", memory // 4)
    for piece in components.find_roots(edges, folder, memory // 4):
        found.add(piece[:, 0], np.full(len(piece), CODE["near_duplicate"], np.uint64))
    drops.save(work, "groups", 0, found)
    return {"dropped": found.count}
