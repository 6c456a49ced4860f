"""Shards: layout, determinism, readable by plain h5py, and hostile files refused."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest

from data_preprocessing.tokens import shards
from modelzoo import records
from modelzoo.config.errors import UserError
from modelzoo.data.folder import list_shards


def some(n=40, rows=3, msl=32, seed=0):
    return np.random.default_rng(seed).integers(0, 50_000, (n, rows, msl), dtype=np.int32)


@pytest.mark.parametrize("compression", ["none", "gzip", "lzf"])
@pytest.mark.parametrize(("n", "rows", "msl"), [(40, 3, 32), (1, 5, 8), (3, 3, 2048)])
def test_plain_h5py_reads_it(tmp_path, compression, n, rows, msl):
    examples = some(n, rows, msl)
    facts = shards.write_shard(str(tmp_path / "a.h5"), examples, compression)
    np.save(tmp_path / "a.npy", examples)
    code = (
        "import h5py, numpy as np, sys\nf = h5py.File(sys.argv[1]); d = f['data']\n"
        "assert 'hdf5plugin' not in sys.modules and d.chunks == (1, *d.shape[1:]) and d.dtype == '<i4'\n"
        "assert f.attrs['n_examples'] == len(d) and list(f) == ['data']\n"
        "assert (d[:] == np.load(sys.argv[2])).all() and (d[len(d) - 1] == np.load(sys.argv[2])[-1]).all()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5"), str(tmp_path / "a.npy")], check=True)
    again = shards.write_shard(str(tmp_path / "b.h5"), examples, compression)
    assert {**facts, "file": ""} == {**again, "file": ""} and (tmp_path / "a.h5").read_bytes() == (
        tmp_path / "b.h5"
    ).read_bytes()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_data_hash_does_not_depend_on_compression(tmp_path):
    hashes = {shards.write_shard(str(tmp_path / c), some(), c)["data_sha256"] for c in ("none", "gzip", "lzf")}
    assert len(hashes) == 1


def test_writer_cuts_shards_at_their_size(tmp_path):
    writer = shards.ShardWriter(str(tmp_path / "s"), 7, 3, 32, 32 * 16, "gzip")
    examples = some(41)
    for part in np.array_split(examples, 5):
        writer.add(part)
    writer.flush()
    assert [s["n_examples"] for s in writer.done] == [16, 16, 9]
    assert [s["file"] for s in writer.done] == [f"output_chunk_7_{k}.h5" for k in range(3)]
    read = np.concatenate([b for f in list_shards(str(tmp_path / "s")) for b in shards.batches(f, 500)])
    assert (read == examples).all()


def test_shards_that_model_zoo_wrote_are_read(tmp_path):
    """Its layout as its reader has it: gzip without shuffle, int attributes, hdf5 suffix; rank 1 for corpora."""
    examples = some()
    with h5py.File(tmp_path / "output_chunk_0_0.h5", "w") as f:
        f.attrs["n_examples"] = len(examples)
        f.create_dataset("data", data=examples, dtype="i4", chunks=(1, 3, 32), compression="gzip")
    with h5py.File(tmp_path / "corpus_1.hdf5", "w") as f:
        f.create_dataset("data", data=np.arange(100))
    assert [len(b) for p in list_shards(str(tmp_path)) for b in shards.batches(p)] == [100, 40]


def test_lz4_filter(tmp_path):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("data", data=some(), chunks=(1, 3, 32), **hdf5plugin.LZ4())
    assert (next(shards.batches(str(tmp_path / "a.h5"))) == some()).all()


def bad_link(f, tmp):
    f["data"] = h5py.ExternalLink("/etc/passwd", "/x")


def bad_soft(f, tmp):
    f["other"] = some()
    f["data"] = h5py.SoftLink("/other")


def bad_external(f, tmp):
    (tmp / "raw").write_bytes(bytes(10_000))
    f.create_dataset("data", (4, 3, 8), "i4", external=[(str(tmp / "raw"), 0, 10_000)])


def bad_virtual(f, tmp):
    layout = h5py.VirtualLayout((4, 3, 8), "i4")
    layout[:] = h5py.VirtualSource(str(tmp / "other.h5"), "data", (4, 3, 8))
    f.create_virtual_dataset("data", layout)


def bad_shape(f, tmp):
    f.create_dataset("data", (2**40, 3, 2048), "i4", chunks=(1, 3, 2048))


def bad_chunks(f, tmp):
    f.create_dataset("data", (2**20, 3, 2048), "i4", chunks=(2**17, 3, 2048))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad_link, "link"),
        (bad_soft, "link"),
        (bad_external, "other files"),
        (bad_virtual, "other files"),
        (bad_shape, "declares"),
        (bad_chunks, "chunks"),
        (lambda f, t: f.create_group("data"), "no dataset"),
        (lambda f, t: f.create_dataset("x", data=1), "no dataset"),
        (lambda f, t: f.create_dataset("data", data=np.ones((2, 3, 4))), "not integers"),
        (lambda f, t: f.create_dataset("data", data=np.ones((2, 4, 4), int)), r"is \[2, 4, 4\]; shards are"),
        (lambda f, t: f.create_dataset("data", data=np.ones((2, 4), int)), r"is \[2, 4\]; shards are"),
        (lambda f, t: (f.create_dataset("data", data=some()), f.attrs.update(n_examples=3)), "declares n_examples = 3"),
    ],
)
def test_hostile_hdf5(tmp_path, make, message):
    with h5py.File(tmp_path / "h.h5", "w") as f:
        make(f, tmp_path)
    with pytest.raises(UserError, match=f"h.h5.*{message}"):
        list(shards.batches(str(tmp_path / "h.h5")))


@pytest.mark.parametrize("data", [b"", b"not hdf5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_not_hdf5(tmp_path, data):
    (tmp_path / "x.h5").write_bytes(data)
    with pytest.raises(UserError, match=r"x.h5.*not a readable HDF5"):
        list(shards.batches(str(tmp_path / "x.h5")))


def test_truncated_shard(tmp_path):
    shards.write_shard(str(tmp_path / "a.h5"), some(200), "none")
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.h5"):
        list(shards.batches(str(tmp_path / "a.h5")))


def test_disk_full_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        shards.write_shard(str(tmp_path / "a.h5"), some(), "gzip")
    with pytest.raises(UserError, match="No space left"):
        shards.write_json(str(tmp_path / "a.json"), {})
    assert list(tmp_path.iterdir()) == []


def test_seal(tmp_path):
    sealed = records.seal({"a": 1, "b": {"c": [1, 2]}})
    assert records.is_sealed(json.loads(json.dumps(sealed))) and not records.is_sealed({**sealed, "a": 2})
    assert not records.is_sealed({"a": 1})
