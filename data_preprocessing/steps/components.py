"""Connected components of a graph whose edges need not fit in memory: stars are made larger, then smaller, in turn.

Kiveris et al., "Connected Components in MapReduce and Beyond" (SoCC 2014), sections 2 and 3: large-star links each
neighbour of u that comes after u to the first of u and its neighbours; small-star does so with those before u. Both
keep what is connected, and when neither changes an edge every record is linked to the first of its component alone.
The number of rounds grows with the logarithm of the components' size.
"""

from collections.abc import Callable, Iterator

import numpy as np

from data_preprocessing.steps.sorting import Sorter, follow


def find_roots(edges: Sorter, folder: str, memory: int) -> Iterator[np.ndarray]:
    """Yield (record, the first record of its component), sorted, for all records but the first ones.

    Args:
        edges: rows (a, b) with a > b, in any number of copies.
        memory: what each of two sorters may take.
    """
    while True:
        edges, changed = _link(edges, _enlarge, True, folder, memory)
        edges, more = _link(edges, _reduce, False, folder, memory)
        if not changed and not more:
            yield from (piece for piece, _ in _unique(edges))
            return


def _link(edges: Sorter, star: Callable, both: bool, folder: str, memory: int) -> tuple[Sorter, bool]:
    """The edges that `star` makes of these, and whether there are others than before."""
    if both:
        edges = _mirror(edges, folder, memory)
    out, changed = Sorter(folder, 2, memory), False
    start = np.zeros((1, 2), np.uint64)  # the first row of the last row's record
    for piece, before in _unique(edges):
        begins = np.ones(len(piece), bool)
        begins[1:] = piece[1:, 0] != piece[:-1, 0]
        begins[0] = before is None or piece[0, 0] != before[0]
        firsts = np.concatenate([start, piece[begins]])[np.cumsum(begins)]
        linked, other = star(piece, firsts[:, 1], begins)
        changed |= other
        out.add(*linked.T)
        start = firsts[-1:]
    return out, changed


def _enlarge(piece: np.ndarray, first: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, bool]:
    """Rows (u, neighbour) of neighbours on both sides, whose first is `first`: link those after u to the least."""
    record, neighbour = piece.T
    after = neighbour > record
    least = np.minimum(record, first)[after]
    return np.stack([neighbour[after], least], 1), bool((least != record[after]).any())


def _reduce(piece: np.ndarray, first: np.ndarray, begins: np.ndarray) -> tuple[np.ndarray, bool]:
    """Rows (u, neighbour before u): link u and all of them but the first to the first."""
    record, neighbour = piece.T
    return np.stack([np.where(begins, record, neighbour), first], 1), bool((~begins).any())


def _mirror(edges: Sorter, folder: str, memory: int) -> Sorter:
    """The edges in both directions."""
    out = Sorter(folder, 2, memory)
    for piece, _ in _unique(edges):
        out.add(piece[:, 0], piece[:, 1])
        out.add(piece[:, 1], piece[:, 0])
    return out


def _unique(edges: Sorter) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Sorted rows, each once, in pieces, with the row before the piece."""
    for before, piece, _ in follow(edges.read()):
        new = np.ones(len(piece), bool)
        new[1:] = (piece[1:] != piece[:-1]).any(axis=1)
        new[0] = before is None or (piece[0] != before).any()
        if new.any():
            yield piece[new], before
