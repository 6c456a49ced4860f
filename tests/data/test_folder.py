"""One opener of shards and one reader of manifests, for preprocessing and training alike."""

import errno
import fcntl
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from data_preprocessing.inspection.verify import check_tokens, verify_split
from data_preprocessing.tokens import shards
from modelzoo.config.errors import UserError
from modelzoo.data import files, folder
from modelzoo.data.hdf5 import Shards
from tests.support import examples, loader, write_shard

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
from data_preprocessing.tokens import shards
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.data import feed
from modelzoo.data.hdf5 import Shards
assert "hdf5plugin" not in sys.modules
for path in sys.argv[1:]:
    opened = Shards.open(DataLoader(data_dir=[path], batch_size=4, shuffle=False, num_workers=int("LZ4" in path)), 1000)
    (batch,) = feed.iterate_batches(opened, 0, 1)
    print(sum(int(x.sum()) for x in batch.values()), *(int(x.sum()) for x in shards.batches(path)))
"""


def test_shards_that_need_a_filter_of_hdf5plugins_are_read_by_training_and_preprocessing(tmp_path):
    """In processes that have not loaded the filter; lz4 is what Model Zoo packs with."""
    plugin = pytest.importorskip("hdf5plugin")
    made = {"none": {}, **{name: getattr(plugin, name)() for name in ("LZ4", "Zstd", "Blosc", "Bitshuffle", "BZip2")}}
    made |= {"Bitshuffle of zstd": plugin.Bitshuffle(cname="zstd"), "Blosc2": plugin.Blosc2()}
    for name, options in made.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("data", data=EXAMPLES, chunks=(1, 3, 8), **options)
    paths = [tmp_path / f"{name}.h5" for name in made]
    done = subprocess.run([sys.executable, "-c", READ, *paths], capture_output=True, text=True)
    assert done.stdout.split() == [str(EXAMPLES.sum())] * 2 * len(made), done.stderr


def test_a_lock_and_a_right_that_is_missing_are_not_called_damage(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "a.h5", EXAMPLES)
    with open(path, "rb+") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)  # as HDF5 does while it writes
        with pytest.raises(UserError, match=r"a\.h5: is locked: another process has it open for writing; wait until"):
            folder.open_shard(str(path))
    really = h5py.File

    def refuse(number, message):
        def opened(name, mode, locking=None):
            if locking is False:
                return really(name, mode)
            raise OSError(number, message)

        monkeypatch.setattr(h5py, "File", opened)

    refuse(errno.EACCES, "Permission denied")
    with pytest.raises(UserError, match=r"a\.h5: cannot be read \(Permission denied\); give this user the right"):
        folder.open_shard(str(path))
    refuse(errno.ENOLCK, "unable to lock file")  # a file system without locks: nobody can hold one there
    file, data = folder.open_shard(str(path))
    with file:
        assert (data[...] == EXAMPLES).all()


def test_a_folder_that_may_not_be_looked_into_is_not_called_missing(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(PermissionError):
        folder.list_shards(str(tmp_path))


@pytest.mark.parametrize("at", [(), (3, 1, 7), (0, 1, 0)])
def test_a_shard_of_which_no_place_counts_is_refused_by_all(tmp_path, at):
    masked = EXAMPLES.copy()
    masked[:, 1] = 0
    if at:
        masked[at] = 1
    path = str(write_shard(tmp_path / "a.h5", masked))
    recorded = folder.Recorded("a.h5", None, None, 4, 0)
    verified = lambda: verify_split(str(tmp_path))[0]
    if at:
        files.inspect_shards(path)
        assert verified() == []
    else:
        with pytest.raises(UserError, match=r"a\.h5: no place of its 4 examples counts .* is 0 throughout"):
            files.inspect_shards(path)
        assert "counts for the loss" in verified()[0]
    with pytest.raises(UserError, match="no place of its 4 examples"):  # a count of none is believed
        files.inspect_shards(path, recorded=recorded)


def test_labels_of_minus_100_are_explained(tmp_path):
    data = examples(4)
    data[2, 2, 3:] = -100
    write_shard(tmp_path / "a.h5", data)
    (fault,) = check_tokens(str(tmp_path))
    with pytest.raises(UserError) as e:
        Shards.open(loader(tmp_path), 37).batch(0)
    for text in (fault, str(e.value)):
        assert "a.h5: " in text and "-100" in text and "mask[labels < 0] = 0, then labels[labels < 0] = 0" in text
    ids = data[:, 2] < 0
    data[:, 1][ids] = data[:, 2][ids] = 0  # what it says to do
    write_shard(tmp_path / "b" / "a.h5", data)
    assert Shards.open(loader(tmp_path / "b"), 37).batch(0) and check_tokens(str(tmp_path / "b")) == []


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
