"""HDF5 on a disk that is full: an OSError, whenever it comes, where the library alone ends the process."""

import h5py
import numpy as np
import pytest

from modelzoo.sink import Sink

resource = pytest.importorskip("resource", reason="the system has no limits of file sizes")


def write(path, rounds: int = 20) -> None:
    with Sink(str(path)) as sink, h5py.File(sink, "w") as file:
        for i in range(rounds):
            numbers = np.random.default_rng(i).integers(0, 9, 1000)
            file.create_dataset(f"x{i}", data=numbers, chunks=(100,), compression="gzip")
            file.attrs[f"about{i}"] = "y" * 500
            sink.check()
    sink.check()


def test_the_file_is_what_hdf5_writes_itself(tmp_path):
    (tmp_path / "aside").write_bytes(b"untouched")
    (tmp_path / "a.h5").symlink_to(tmp_path / "aside")
    write(tmp_path / "a.h5")
    assert (tmp_path / "aside").read_bytes() == b"untouched"
    with h5py.File(tmp_path / "a.h5") as file:
        assert len(file) == 20 == len(file.attrs)
        for i in range(20):
            assert np.array_equal(file[f"x{i}"][:], np.random.default_rng(i).integers(0, 9, 1000))


@pytest.mark.parametrize("size", [0, 1, 2000, 10_000, 20_000, 30_000])
def test_a_full_disk_is_an_error_with_the_files_name(tmp_path, size, capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal; a write fails with EFBIG
    try:
        with pytest.raises(OSError) as e:
            write(tmp_path / "a.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert e.value.filename == str(tmp_path / "a.h5") and (tmp_path / "a.h5").stat().st_size <= size
    assert capfd.readouterr().err == ""
