"""One opener of shards and one reader of manifests, for preprocessing and training alike."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from data_preprocessing import shards
from modelzoo.config.errors import UserError
from modelzoo.data import files, folder

EXAMPLES = np.arange(4 * 3 * 8, dtype=np.int32).reshape(4, 3, 8)


def test_training_and_preprocessing_see_the_same_shards(tmp_path):
    for name in ("b.h5", "a.hdf5", ".hidden.h5", "notes.txt"):
        (tmp_path / name).touch()
    assert (
        folder.list_shards(str(tmp_path))
        == files.find_shards([str(tmp_path)])
        == [str(tmp_path / n) for n in ("a.hdf5", "b.h5")]
    )
    for missing in (lambda p: folder.list_shards(p), lambda p: files.find_shards([p])):
        with pytest.raises(UserError, match="nowhere: no such data folder"):
            missing(str(tmp_path / "nowhere"))


READ = """
import sys
from modelzoo.data.folder import open_shard
assert "hdf5plugin" not in sys.modules
file, data = open_shard(sys.argv[1])
print(int(data[...].sum()))
"""


@pytest.mark.parametrize("packed", [False, True])
def test_a_shard_that_needs_a_filter_of_model_zoos_is_read(tmp_path, packed):
    """In a process that has not loaded the filter; lz4 is what Model Zoo packs with."""
    plugin = pytest.importorskip("hdf5plugin")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=EXAMPLES, chunks=(1, 3, 8), **(plugin.LZ4() if packed else {}))
    done = subprocess.run([sys.executable, "-c", READ, tmp_path / "a.h5"], capture_output=True, text=True)
    assert done.stdout == f"{EXAMPLES.sum()}\n", done.stderr


@pytest.mark.parametrize("shape", [(2**20, 3, 2048), (2**40,)])
@pytest.mark.parametrize("read", [lambda p: files.inspect_shards(p, 2048), lambda p: list(shards.batches(p))])
def test_a_shape_that_is_not_stored_is_believed_by_nobody(tmp_path, shape, read):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", shape, "i4", chunks=(1,) + shape[1:] if shape[1:] else (1024,))
    with pytest.raises(UserError, match=r"a\.h5: declares .* but stores 0 bytes"):
        read(str(tmp_path / "a.h5"))


def test_a_missing_shard_is_not_called_damaged(tmp_path):
    with pytest.raises(UserError, match=r"gone\.h5: .*No such file"):
        folder.open_shard(str(tmp_path / "gone.h5"))


@pytest.mark.parametrize("content", ["{", "[1]", "\x00", '"text"'])
def test_a_damaged_manifest_is_named(tmp_path, content):
    assert folder.read_manifest(str(tmp_path)) == folder.read_manifest(str(tmp_path / "nowhere")) == {}
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: (is not valid JSON|input should be)"):
        folder.read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"msl": 8}')
    assert folder.read_manifest(str(tmp_path)) == {"msl": 8}


def test_a_chunk_has_at_most_8_mib_or_one_example(tmp_path):
    """A chunk is unpacked whole; h5py's own choice and one chunk an example, Model Zoo's, are taken at any length."""
    values = np.zeros((2, 3, 2**19), "<i8")
    values[:, 1] = 1
    for name, chunks, taken in (
        ("example", (1, 3, 2**19), True), ("h5py", True, True), ("two", (2, 3, 2**19), False),
        ("corpus", (2**20,), True), ("bomb", (2**21,), False),
    ):  # fmt: skip
        data = values if name in ("example", "h5py", "two") else values.reshape(-1)
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("data", data=data, chunks=chunks, compression="gzip")
        if taken:
            folder.open_shard(str(tmp_path / f"{name}.h5"))[0].close()
        else:
            with pytest.raises(UserError, match=r"chunks of \(.*\) are over \d+ MiB; refused"):
                folder.open_shard(str(tmp_path / f"{name}.h5"))
