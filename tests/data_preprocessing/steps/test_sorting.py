"""Rows sorted outside of memory, held to Python's own sort."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.steps import sorting

numbers = st.one_of(st.integers(0, 3), st.integers(2**64 - 3, 2**64 - 1), st.integers(0, 2**64 - 1))


def sort(tmp_path, pieces, columns, **limits):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setattr(sorting, name, value)
        sorter = sorting.Sorter(str(tmp_path / "sorted"), columns, memory=0)
        for piece in pieces:
            sorter.add(*np.array(piece, np.uint64).reshape(-1, columns).T)
        found = list(sorter.read())
    assert sorter.count == sum(map(len, pieces)) and all(len(piece) for piece in found)
    return [tuple(row) for piece in found for row in piece.tolist()], max(map(len, found), default=0)


@settings(max_examples=60, deadline=None)
@given(
    columns_and_pieces=st.integers(1, 4).flatmap(
        lambda k: st.tuples(st.just(k), st.lists(st.lists(st.tuples(*[numbers] * k), max_size=9), max_size=9))
    ),
    least=st.integers(1, 20),
    runs=st.integers(2, 5),
)
def test_rows_come_in_pythons_order_however_little_memory(tmp_path_factory, columns_and_pieces, least, runs):
    columns, pieces = columns_and_pieces
    found, _ = sort(tmp_path_factory.getbasetemp(), pieces, columns, _LEAST=least, _RUNS=runs)
    assert found == sorted(row for piece in pieces for row in piece)


@pytest.mark.parametrize("order", ["random", "sorted", "reversed", "equal"])
def test_a_piece_is_as_large_as_what_is_held_and_no_larger(tmp_path, order):
    """Whatever the order that rows come in; and no file is left, nor has a name meanwhile."""
    values = np.random.default_rng(0).integers(0, 2**64, 5000, np.uint64)
    values = {"random": values, "sorted": np.sort(values), "reversed": -np.sort(-values), "equal": values * 0}[order]
    rows = [[(v, k)] for k, v in enumerate(values.tolist())]
    found, largest = sort(tmp_path, rows, 2, _LEAST=64, _RUNS=8)
    assert found == sorted(row for (row,) in rows) and largest <= 64 * 8
    assert os.listdir(tmp_path / "sorted") == []


def test_a_full_disk_names_the_folder(tmp_path, monkeypatch):
    (tmp_path / "sorted").write_bytes(b"")
    with pytest.raises(OSError, match="sorted"):
        sort(tmp_path, [[(1,)] * 20], 1, _LEAST=4)


def test_neighbours_of_a_piece():
    pieces = [np.array([[1], [2]]), np.array([[3]]), np.array([[4], [5]])]
    flat = lambda row: None if row is None else row.tolist()
    assert [(flat(b), p.tolist(), flat(a)) for b, p, a in sorting.follow(iter(pieces))] == [
        (None, [[1], [2]], [3]), ([2], [[3]], [4]), ([3], [[4], [5]], None),
    ]  # fmt: skip
    assert list(sorting.follow(iter([]))) == []
