"""The lock of a folder: whatever is found under its name, nothing else is written, waited for or raised."""

import errno
import os

import pytest

from modelzoo import lock
from modelzoo.config.errors import UserError


def raise_unsupported(file, how):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


@pytest.fixture(params=["locks", "no locks"])
def file_system(request, monkeypatch):
    """With flock, and without."""
    if request.param == "no locks":
        import fcntl

        monkeypatch.setattr(fcntl, "flock", raise_unsupported)


def make_odd(path, kind):
    thesis = path.parent.parent / "thesis"
    thesis.write_text("years of work")
    match kind:
        case "link":
            path.symlink_to(thesis)
        case "dangling link":
            path.symlink_to(path.parent / "nowhere")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    return thesis


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_a_lock_that_is_no_file_is_refused_and_left_alone(kind, tmp_path, file_system):
    folder = tmp_path / "run"
    folder.mkdir()
    thesis = make_odd(folder / lock.NAME, kind)
    with (
        pytest.raises(UserError, match=r"run/\.lock: is a link or no regular file; remove it"),
        lock.lock_folder(folder),
    ):
        pass
    assert thesis.read_text() == "years of work" and not (folder / "nowhere").exists()


def test_a_folder_that_is_a_file_is_one_line(tmp_path, file_system):
    (tmp_path / "run").write_text("a file")
    for folder in (tmp_path / "run", tmp_path / "run" / "deeper"):
        with pytest.raises(UserError, match=f"{folder}: cannot be written"), lock.lock_folder(str(folder)):
            pass


def test_a_full_disk_does_not_matter_to_a_lock(tmp_path, monkeypatch):
    """The holder's name is for others to read; the lock holds without it."""

    class Full(lock.io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        truncate = write

    monkeypatch.setattr(lock.io, "FileIO", Full)
    with lock.lock_folder(str(tmp_path)), pytest.raises(lock.Busy), lock.lock_folder(str(tmp_path)):
        pass


def test_files_of_other_holders_are_not_believed(tmp_path, monkeypatch):
    """A pipe under the name of a stand-in of this machine is not waited for; its holder does not run, so it goes."""
    import fcntl

    monkeypatch.setattr(fcntl, "flock", raise_unsupported)
    os.mkfifo(tmp_path / f"{lock.NAME}.{lock._machine()}-{2**22 + 1}.alone")  # above what Linux gives out
    with lock.lock_folder(str(tmp_path)):
        pass
    (tmp_path / f"{lock.NAME}.nonsense").mkdir()
    message = f"if it is gone, remove {tmp_path}/.lock.nonsense"
    with pytest.raises(lock.Busy, match=message), lock.lock_folder(str(tmp_path)):
        pass


def test_a_stand_in_is_not_written_through_a_link(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", raise_unsupported)
    folder, thesis = tmp_path / "run", tmp_path / "thesis"
    folder.mkdir()
    thesis.write_text("years of work")
    (folder / f"{lock.NAME}.{lock._name()}.alone").symlink_to(thesis)
    with lock.lock_folder(str(folder)):
        assert thesis.read_text() == "years of work"
    assert [p.name for p in folder.iterdir()] == [lock.NAME]
