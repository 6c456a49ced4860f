"""Files and folders are whole or as they were, whatever fails and whenever the process is killed."""

import builtins
import errno
import os
import pickle
import subprocess
import sys

import pytest

from data_preprocessing.tokens import shards
from modelzoo import files, host
from modelzoo.config.errors import UserError

OLD, NEW = "as it was\n", "new\n"


def make_folder(path):
    with files.making_folder(path) as temporary:
        files.write_text(os.path.join(temporary, "inside"), NEW)


WRITERS = {
    "text": lambda path: files.write_text(path, NEW),
    "bytes": lambda path: files.write_bytes(path, NEW.encode()),
    "durable": lambda path: files.write_bytes(path, NEW.encode(), durable=True),
    "json": lambda path: files.write_json(path, NEW),
    "preprocessing": lambda path: shards.write_bytes(path, NEW.encode()),
}
CALLS = {(os, "replace"), (os, "rename"), (os, "fsync"), (os, "makedirs"), (builtins, "open")}


def content(folder):
    """Everything in `folder`, temporaries too: names relative to it, with what the files hold."""
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def calls_of(write, path, monkeypatch, fail=None):
    """Call `write(path)`; the calls into the system that it made, of which number `fail` finds the disk full."""
    made = []

    def watch(module, name):
        real = getattr(module, name)

        def call(*args, **kwargs):
            made.append(name)
            if len(made) - 1 == fail:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, watch(module, name))
        write(str(path))
    return made


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_failure_anywhere_leaves_the_old_file_alone(write, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    write(str(tmp_path / "scratch" / "first"))  # the first one asks what this process is
    made = calls_of(write, tmp_path / "scratch" / "file", monkeypatch)
    assert "replace" in made and "open" in made
    folder = tmp_path / "real"
    folder.mkdir()
    for fail in range(len(made)):
        (folder / "file").write_text(OLD)
        with pytest.raises((OSError, UserError), match=f"{folder / 'file'}.*"):
            calls_of(write, folder / "file", monkeypatch, fail)
        left = content(folder)
        if fail > made.index("replace"):  # the folder could not be flushed: the new file is there, and whole
            assert NEW.strip() in left.pop("file") and not left
        else:
            assert left == {"file": OLD}, made[fail]
    write(str(folder / "file"))
    assert list(content(folder)) == ["file"] and NEW.strip() in content(folder)["file"]


def test_a_failure_anywhere_leaves_no_folder(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    made = calls_of(make_folder, tmp_path / "scratch" / "made", monkeypatch)
    assert "rename" in made and "makedirs" in made
    folder = tmp_path / "real"
    folder.mkdir()
    for fail in range(len(made)):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            calls_of(make_folder, folder / "made", monkeypatch, fail)
        assert content(folder) == {}, made[fail]
    make_folder(str(folder / "made") + os.sep)
    assert content(folder) == {"made": None, "made/inside": NEW}
    with pytest.raises(OSError):  # a folder that has something in it is not replaced
        make_folder(str(folder / "made"))
    assert content(folder) == {"made": None, "made/inside": NEW}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_body_that_raises_leaves_the_old_file_alone(error, tmp_path):
    (tmp_path / "file").write_text(OLD)
    with pytest.raises(error), files.replacing(str(tmp_path / "file")) as temporary:
        with open(temporary, "w") as file:
            file.write("half")
        raise error
    with pytest.raises(error), files.making_folder(str(tmp_path / "made")) as temporary:
        os.makedirs(os.path.join(temporary, "deep", "er"))
        raise error
    assert content(tmp_path) == {"file": OLD}


KILLED = """
import os, signal, sys
from modelzoo import files
with getattr(files, sys.argv[1])(sys.argv[2]) as temporary:
    with open(os.path.join(temporary, "inside") if sys.argv[1] == "making_folder" else temporary, "w") as file:
        file.write("half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_the_old_file_and_what_can_be_removed(tmp_path):
    (tmp_path / "file").write_text(OLD)
    (tmp_path / ".hidden").write_text(OLD)
    for maker, name in (("replacing", "file"), ("making_folder", "made")):
        done = subprocess.run([sys.executable, "-c", KILLED, maker, str(tmp_path / name)])
        assert done.returncode == -9
    left = content(tmp_path)
    assert left["file"] == OLD and "made" not in left and len(left) == 5  # a half file, a half folder and its file
    files.remove_temporaries(str(tmp_path))
    assert content(tmp_path) == {"file": OLD, ".hidden": OLD}


def test_what_killed_processes_left_for_a_path_goes_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    writer = f"{host.machine_id()}-{gone.pid}-1-{'0' * 8}"
    alive = f"{host.machine_id()}-{os.getpid()}-{host.process_start(os.getpid())}-{'0' * 8}"
    others = [f".out.{alive}.tmp", f".in.{writer}.tmp", ".out.x.tmp", "out"]
    for name in (f".out.{writer}.tmp", *others[:-1]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text("half")
    (tmp_path / f".a.mdl.{writer}.tmp").write_text("half")
    with files.making_folder(str(tmp_path / "out")):
        pass
    files.write_text(str(tmp_path / "a.mdl"), "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "a.mdl"])


def test_no_two_temporary_names_are_equal(tmp_path):
    """In a container a program often has the same number each time, and threads always have."""
    path, long = str(tmp_path / "file"), str(tmp_path / ("x" * 250))
    assert len({files._temporary(path) for _ in range(100)}) == 100
    files.write_text(long, NEW)  # a name that leaves no room for more
    assert content(tmp_path) == {"x" * 250: NEW}


def test_temporaries_of_the_living_and_of_other_machines_stay(tmp_path, monkeypatch):
    """Shares of a job on several hosts write into one folder."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    me, start = os.getpid(), host.process_start(os.getpid())
    names = {
        "of a dead process": f"{host.machine_id()}-{child.pid}-1",
        "of an earlier one of a living one's number": f"{host.machine_id()}-{me}-1",
        "of this one": f"{host.machine_id()}-{me}-{start}",
        "of another machine": f"{'0' * 8}-{child.pid}-1",
    }
    for name, writer in names.items():
        (tmp_path / f".{name}.{writer}-{'0' * 8}.tmp").write_text("half")
    (tmp_path / ".older.123.tmp").write_text("half")  # as an earlier version named them
    files.remove_temporaries(str(tmp_path), alone=False)
    left = {p.name.split(".")[1] for p in tmp_path.iterdir()}
    assert left == {"of this one", "of another machine", "older"} | ({list(names)[1]} if not start else set())
    files.remove_temporaries(str(tmp_path))
    assert content(tmp_path) == {}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_link_is_replaced_and_never_written_through(write, tmp_path):
    (tmp_path / "thesis").write_text(OLD)
    (tmp_path / "file").symlink_to(tmp_path / "thesis")
    write(str(tmp_path / "file"))
    assert not (tmp_path / "file").is_symlink() and NEW.strip() in (tmp_path / "file").read_text()
    assert (tmp_path / "thesis").read_text() == OLD


def test_a_link_under_the_temporary_name_is_not_written_through(tmp_path, monkeypatch):
    (tmp_path / "thesis").write_text(OLD)
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)  # as if it could be foreseen
    os.symlink(tmp_path / "thesis", files._temporary(str(tmp_path / "file")))
    with pytest.raises(FileExistsError, match="file"):
        files.write_text(str(tmp_path / "file"), NEW)
    assert (tmp_path / "thesis").read_text() == OLD


def test_durable_files_reach_the_disk_before_and_after_they_take_their_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append("folder" if os.path.isdir(f"/dev/fd/{fd}") else "file"))
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append("replace"), real(a, b)))
    files.write_json(str(tmp_path / "result.json"), {})
    assert seen == ["file", "replace", "folder"]


def test_an_error_without_a_name_gets_that_of_the_file(tmp_path):
    path = str(tmp_path / "file")
    for error in (OSError(errno.ENOSPC, "full"), FileNotFoundError(errno.ENOENT, "gone", "another")):
        with pytest.raises(OSError) as found, files.replacing(path):
            raise error
        assert found.value.filename == (error.filename if error.errno == errno.ENOENT else path)
        assert pickle.loads(pickle.dumps(found.value)).filename == found.value.filename  # as a worker sends it
    with pytest.raises(OSError, match=r"nowhere/file'$"):
        files.write_text(str(tmp_path / "nowhere" / "file"), NEW)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(OSError, match="is not a regular file"):
        files.sha256(str(tmp_path / "a"))
