"""HDF5 that was damaged or made to deceive: refused in one line, or read as it was; never invented values."""

import os
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.tokens import shards
from modelzoo.config.errors import UserError
from modelzoo.data import folder, storage
from modelzoo.data.hdf5 import Shards
from tests.support import examples, loader, write_shard

EXAMPLES = examples(6, msl=16, vocab=100)


def write_plain(path):
    with h5py.File(path, "w") as file:
        file["data"] = EXAMPLES
        file.attrs["n_examples"] = len(EXAMPLES)


def write_new(path):
    """The layouts of HDF5's later versions have checksums and other indexes."""
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("data", data=EXAMPLES, chunks=(1, 3, 16), compression="gzip")


WRITERS = {
    "ours": lambda path: shards.write_shard(str(path), EXAMPLES, "gzip"),
    "lzf": lambda path: shards.write_shard(str(path), EXAMPLES, "lzf"),
    "none": lambda path: shards.write_shard(str(path), EXAMPLES, "none"),
    "zoo": lambda path: write_shard(path, EXAMPLES),
    "plain": write_plain,
    "new": write_new,
}


def read_shard(path):
    """All of a shard as training reads it."""
    batch = Shards.open(loader(path.parent, batch_size=6), 100).read(range(6))
    return np.stack([x.numpy() for x in batch.values()], 1)


def find_values(path):
    """The bytes of a shard that hold its values."""
    with h5py.File(path) as file:
        data = file["data"]
        if data.chunks is None:
            return set(range(data.id.get_offset(), data.id.get_offset() + data.nbytes))
        parts = []
        data.id.chunk_iter(parts.append)
    return {at for c in parts for at in range(c.byte_offset, c.byte_offset + c.size)}


def check_damaged(path):
    """A damaged shard is refused in one line by each reader, or holds what it held."""
    for read in (read_shard, lambda p: np.concatenate(list(shards.batches(str(p))))):
        try:
            found = read(path)
        except UserError as e:
            assert str(path) in str(e) and "\n" not in str(e)
        else:
            assert found.shape == EXAMPLES.shape and (found == EXAMPLES).all()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, kind):
    """Superblock, headers, types, indexes, and values that gzip sums up. Other values only a hash covers."""
    path = tmp_path / "a.h5"
    WRITERS[kind](path)
    good, bare = path.read_bytes(), find_values(path) if kind in ("plain", "none", "lzf") else set()
    used = np.flatnonzero(np.frombuffer(good, np.uint8))  # mostly where something is
    draw = np.random.default_rng(sum(map(ord, kind)))
    chosen = np.concatenate([draw.choice(used, 60), draw.integers(0, len(good), 20)])
    for at, bit in zip(chosen.tolist(), draw.integers(0, 8, len(chosen)).tolist(), strict=True):
        if at in bare:
            continue
        flipped = bytearray(good)
        flipped[at] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            check_damaged(path)
        except AssertionError as e:
            raise AssertionError(f"byte {at}, bit {bit}") from e


@pytest.mark.parametrize("kind", WRITERS)
def test_a_cut_is_refused(tmp_path, kind):
    path = tmp_path / "a.h5"
    WRITERS[kind](path)
    good = path.read_bytes()
    for end in np.linspace(0, len(good) - 1, 25).astype(int).tolist():
        path.write_bytes(good[:end])
        with pytest.raises(UserError, match=r"a\.h5: "):
            read_shard(path)


@pytest.mark.parametrize("compression", ["gzip", None])
def test_an_example_that_the_index_lost_is_not_read_as_zeros(tmp_path, compression):
    """One bit in a part of a chunk's key that HDF5's list of chunks leaves out: looking the chunk up fails."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=EXAMPLES, chunks=(1, 3, 16), compression=compression)
        assert data.id.get_num_chunks() == 6
    good = path.read_bytes()
    key = np.array([2, 0, 0, 0], "<u8").tobytes()  # the key of example 2, its last part the place in an integer: 0
    assert good.count(key) == 1
    at = good.index(key) + 24
    path.write_bytes(good[:at] + b"\x08" + good[at + 1 :])
    with h5py.File(path) as file:
        assert file["data"].id.get_num_chunks() == 6 and not file["data"][2].any()  # what HDF5 alone makes of it
    with pytest.raises(UserError, match=r"a\.h5: example 2 cannot be read \(its index is damaged"):
        read_shard(path)
    with pytest.raises(UserError, match=r"a\.h5: examples 0\.\. cannot be read"):
        list(shards.batches(str(path)))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.sampled_from([3, 5]), st.integers(1, 20)),
    st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 20)),
    st.sampled_from([None, "gzip", "lzf"]),
    st.booleans(),
    st.sets(st.integers(0, 8)),
)
def test_whatever_h5py_stores_whole_is_taken_and_nothing_else(tmp_path_factory, shape, chunk, packed, checksum, gaps):
    """Any chunks, filters and zeros; a chunk that was never written is missed."""
    path = str(tmp_path_factory.mktemp("s") / "a.h5")
    chunk = tuple(min(a, b) for a, b in zip(shape, chunk, strict=True))
    values = np.random.default_rng(0).integers(0, 2, shape).astype("<i4")
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "data", shape, "<i4", chunks=chunk, compression=packed, shuffle=packed is not None, fletcher32=checksum
        )
        starts = range(0, shape[0], chunk[0])
        left = [s for k, s in enumerate(starts) if k in gaps]
        for start in starts:
            if start not in left:
                data[start : start + chunk[0]] = values[start : start + chunk[0]]
    if left:
        with pytest.raises(UserError, match="HDF5 would invent the rest"):
            folder.open_shard(path)
    else:
        file, data = folder.open_shard(path)
        with file:
            assert (data[...] == values).all() and storage.is_stored(data, (0, 0, 0), data[...])


def test_what_is_not_made_smaller_is_stored_bare_and_read(tmp_path):
    """gzip passes over chunks of noise, and says so in their mask."""
    noise = np.random.default_rng(0).integers(-(2**31), 2**31, (4, 3, 64)).astype("<i4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", data=noise, chunks=(1, 3, 64), compression="gzip", fletcher32=True)
        masks = []
        data.id.chunk_iter(lambda c: masks.append(c.filter_mask))
    assert (np.concatenate(list(shards.batches(str(tmp_path / "a.h5")))) == noise).all()


def declare(shape, dtype="<i4", **options):
    def write(path):
        with h5py.File(path, "w") as file:
            file.create_dataset("data", shape, dtype, **options)

    return write


def bomb(path):
    """64 MiB of zeros in a chunk that holds 768 bytes."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (1, 3, 64), "<i4", chunks=(1, 3, 64), compression="gzip")
        data.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(1 << 26), 9) + bytes(1 << 17))


def attribute(value):
    def write(path):
        write_shard(path, EXAMPLES, n_examples=None)
        with h5py.File(path, "r+") as file:
            file.attrs["n_examples"] = value

    return write


def shared(path):
    """Two chunks of which one is a copy of the other's address."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=EXAMPLES, chunks=(1, 3, 16))
        at = []
        data.id.chunk_iter(lambda c: at.append(c.byte_offset))
    good = path.read_bytes()
    path.write_bytes(good.replace(np.array(at[1], "<u8").tobytes(), np.array(at[0], "<u8").tobytes()))


def foreign(path):
    """Packed by a filter that could be anything (szip's number, not at hand or not ours)."""
    with h5py.File(path, "w") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((1, 3, 16))
        plan.set_scaleoffset(h5py.h5z.SO_INT, 0)
        space = h5py.h5s.create_simple(EXAMPLES.shape)
        h5py.h5d.create(file.id, b"data", h5py.h5t.STD_I32LE, space, plan).write(space, space, EXAMPLES)


HOSTILE = {
    "10^12 examples in a kilobyte": (declare((10**12, 3, 64), chunks=(1, 3, 64)), "declares .* but stores 0 bytes"),
    "contiguous, never written": (declare((10**9, 3, 64)), "declares .* but stores 0 bytes"),
    "another fill value": (declare((8, 3, 64), chunks=(1, 3, 64), fillvalue=7), "declares .* but stores 0 bytes"),
    "bomb": (bomb, "packed in more than it holds"),
    "long sequences": (declare((0, 3, 10**9)), "sequences of 1,000,000,000 tokens"),
    "floats": (declare((1, 3, 16), "<f8"), "holds float64, not integers"),
    "a record": (declare((1, 3, 16), [("a", "<i4"), ("b", "<i4")]), "not integers"),
    "text": (declare((1, 3, 16), h5py.string_dtype()), "holds object, not integers"),
    "no shape": (lambda p: declare(None, data=h5py.Empty("<i4"))(p), r"is \[\]; shards are"),
    "count of text": (attribute("six"), "n_examples is no integer"),
    "count of fractions": (attribute(6.0), "n_examples is no integer"),
    "many counts": (attribute([6] * 1000), "n_examples is no integer"),
    "one address twice": (shared, "two chunks overlap"),
    "unknown filter": (foreign, "HDF5's filter 6, which is not read here"),
    "a folder": (lambda p: p.mkdir(), "cannot be read"),
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a link to a device": (lambda p: p.symlink_to("/dev/zero"), "is not a regular file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_deceives_is_refused_in_one_line_by_each_reader(tmp_path, name):
    make, message = HOSTILE[name]
    path = tmp_path / "a.h5"
    make(path)
    for read in (lambda: Shards.open(loader(path.parent), 100), lambda: list(shards.batches(str(path)))):
        with pytest.raises(UserError, match=rf"a\.h5: .*{message}") as e:
            read()
        assert "\n" not in str(e.value)


def test_a_count_in_an_array_of_one_is_read(tmp_path):
    attribute([6])(tmp_path / "a.h5")
    assert (read_shard(tmp_path / "a.h5") == EXAMPLES).all()
    attribute([5])(tmp_path / "a.h5")
    with pytest.raises(UserError, match="declares n_examples = 5 but holds 6"):
        read_shard(tmp_path / "a.h5")


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 3, 0), (0, 5, 0), (0,)])
def test_a_shard_of_nothing_is_read_as_nothing_and_not_trained_on(tmp_path, shape):
    declare(shape)(tmp_path / "a.h5")
    assert not sum(batch.size for batch in shards.batches(str(tmp_path / "a.h5")))
    with pytest.raises(UserError, match=r"a\.h5: holds no example"):
        Shards.open(loader(tmp_path, max_sequence_length=None if len(shape) == 3 else 8), 100)
