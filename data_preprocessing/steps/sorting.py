"""Rows of whole numbers in order, whatever their number: runs that are sorted in memory, and merged from the disk.

A row is k numbers (u8); rows are ordered by the first, then the second, and so on. What does not fit `memory` goes to
one file without a name in the step's folder, which is gone when the process is, however it ends.
"""

import os
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np

MEMORY = 256 << 20  # bytes that a call may sort with, unless the job says otherwise
PIECE = 1 << 16  # rows that are passed on at a time
_COPIES = 4  # what sorting takes, in sizes of the rows: them, their order, and them in order
_RUNS = 64  # that are merged at a time
_LEAST = 1 << 10  # rows of a block


class Sorter:
    """Takes rows in any order, and gives them back sorted, each as often as it came.

    Attributes:
        count: how many rows were added.
    """

    def __init__(self, folder: str, columns: int, memory: int = MEMORY):
        self.folder, self.columns = folder, columns
        self.limit = max(_LEAST, memory // _COPIES // (8 * columns))  # rows in memory
        self.count = 0
        self._held: list[np.ndarray] = []
        self._number = 0  # of rows held
        self._file: IO[bytes] | None = None
        self._runs: list[tuple[int, int]] = []  # where each begins and ends in the file, in rows

    def add(self, *columns: np.ndarray) -> None:
        """Add the rows that these columns make up."""
        for begin in range(0, len(columns[0]), self.limit):
            rows = np.stack([column[begin : begin + self.limit].astype(np.uint64) for column in columns], axis=1)
            if self._number + len(rows) > self.limit:
                self._spill()
            self._held.append(rows)
            self._number += len(rows)
            self.count += len(rows)

    def read(self) -> Iterator[np.ndarray]:
        """All rows, once, in sorted pieces [n, columns] of at most PIECE; nothing can be added any more."""
        for rows in self._read():
            for begin in range(0, len(rows), PIECE):
                yield rows[begin : begin + PIECE]

    def _read(self) -> Iterator[np.ndarray]:
        if not self._runs:
            yield self._take()
            return
        self._spill()
        assert self._file is not None
        with self._file:
            while len(self._runs) > _RUNS:
                first, self._runs = self._runs[:_RUNS], self._runs[_RUNS:]
                self._write(self._merge(first))
            yield from self._merge(self._runs)

    def _take(self) -> np.ndarray:
        """What is held, sorted."""
        rows = np.concatenate(self._held) if self._held else np.empty((0, self.columns), np.uint64)
        self._held, self._number = [], 0
        return sort_rows(rows)

    def _spill(self) -> None:
        if self._number:
            self._write(iter([self._take()]))

    def _write(self, pieces: Iterator[np.ndarray]) -> None:
        if self._file is None:
            os.makedirs(self.folder, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115, it lives as long as this
        end = begin = self._file.seek(0, os.SEEK_END) // (8 * self.columns)
        for rows in pieces:
            self._file.seek(end * 8 * self.columns)  # a merge reads between two writes
            self._file.write(np.ascontiguousarray(rows).data)
            end += len(rows)
        self._runs.append((begin, end))

    def _merge(self, runs: list[tuple[int, int]]) -> Iterator[np.ndarray]:
        """The rows of these runs in sorted pieces: all up to the least of the last rows of the runs' blocks."""
        block = max(_LEAST, self.limit // len(runs))
        left = list(runs)
        blocks = [np.empty((0, self.columns), np.uint64) for _ in runs]
        while True:
            for k, (begin, end) in enumerate(left):
                if len(blocks[k]) < block and begin < end:
                    more = self._load(begin, min(end, begin + block - len(blocks[k])))
                    left[k] = begin + len(more), end
                    blocks[k] = np.concatenate([blocks[k], more])
            going_on = [blocks[k][-1].tolist() for k, (begin, end) in enumerate(left) if begin < end]
            ends = [_count_up_to(rows, min(going_on)) if going_on else len(rows) for rows in blocks]
            piece = np.concatenate([rows[:n] for rows, n in zip(blocks, ends, strict=True)])
            blocks = [rows[n:] for rows, n in zip(blocks, ends, strict=True)]
            yield sort_rows(piece)
            if not going_on:
                return

    def _load(self, begin: int, end: int) -> np.ndarray:
        assert self._file is not None
        width = 8 * self.columns
        self._file.seek(begin * width)
        data = self._file.read((end - begin) * width)
        if len(data) != (end - begin) * width:
            raise OSError(5, "what was sorted cannot be read back", self.folder)
        return np.frombuffer(data, np.uint64).reshape(-1, self.columns)


def sort_rows(rows: np.ndarray) -> np.ndarray:
    """The rows [n, columns] in order: by the first column, and, where that is equal, by all."""
    order = np.argsort(rows[:, 0])  # the fast one, which leaves equal ones in some order
    rows = rows[order]
    first = rows[:, 0]
    same = first[1:] == first[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same)) if len(rows) else order
    if len(tied) and rows.shape[1] > 1:
        group = rows[tied]
        rows[tied] = group[np.lexsort(group.T[::-1])]
    return rows


def _count_up_to(rows: np.ndarray, last: list[int]) -> int:
    """How many sorted rows come before the row `last`, or are equal to it."""
    begin, end = 0, len(rows)
    for k, value in enumerate(last):
        part = rows[begin:end, k]
        if not len(part) or int(part[0]) > value:
            return begin
        begin, end = (begin + int(np.searchsorted(part, np.uint64(value), side)) for side in ("left", "right"))
    return end


def follow(pieces: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray | None, np.ndarray, np.ndarray | None]]:
    """Each piece with the row before it and the row after it; None where there is none."""
    before = None
    piece = next(pieces, None)
    while piece is not None:
        after = next(pieces, None)
        yield before, piece, None if after is None else after[0]
        before, piece = piece[-1], after
