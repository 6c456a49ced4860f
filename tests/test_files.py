"""Files and folders are whole or as they were, whatever fails and whenever the process is killed."""

import builtins
import errno
import os
import subprocess
import sys

import pytest

from data_preprocessing import shards
from modelzoo import files
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
    made = calls_of(write, tmp_path / "scratch" / "file", monkeypatch)
    assert "replace" in made and "open" in made
    folder = tmp_path / "real"
    folder.mkdir()
    for fail in range(len(made)):
        (folder / "file").write_text(OLD)
        with pytest.raises((OSError, UserError), match=os.strerror(errno.ENOSPC)):
            calls_of(write, folder / "file", monkeypatch, fail)
        assert content(folder) == {"file": OLD}, made[fail]
    write(str(folder / "file"))
    assert list(content(folder)) == ["file"] and NEW.strip() in content(folder)["file"]


def test_a_failure_anywhere_leaves_no_folder(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    made = calls_of(make_folder, tmp_path / "scratch" / "made", monkeypatch)
    assert "rename" in made and "makedirs" in made
    folder = tmp_path / "real"
    folder.mkdir()
    for fail in range(len(made)):
        with pytest.raises(OSError):
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


def test_what_a_killed_process_of_the_same_number_left_is_no_obstacle(tmp_path):
    """In a container a program often has the same number each time."""
    with files.replacing(str(tmp_path / "file")) as one, files.making_folder(str(tmp_path / "made")) as other:
        names = [os.path.basename(n) for n in (one, other)]
        files.write_text(one, NEW)
    assert content(tmp_path) == {"file": NEW, "made": None}
    (tmp_path / "made").rmdir()
    (tmp_path / names[0]).write_text("half of a longer text")
    (tmp_path / names[1]).mkdir()
    (tmp_path / names[1] / "old").write_text("half")
    files.write_text(str(tmp_path / "file"), NEW)
    make_folder(str(tmp_path / "made"))
    assert content(tmp_path) == {"file": NEW, "made": None, "made/inside": NEW}


def test_what_killed_processes_left_for_a_path_goes_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine, others = f".out.{gone.pid}.tmp", [f".out.{os.getpid()}.tmp", f".in.{gone.pid}.tmp", ".out.x.tmp", "out"]
    for name in (mine, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text("half")
    (tmp_path / f".a.mdl.{gone.pid}.tmp").write_text("half")
    files.remove_stale(str(tmp_path / "out"))
    files.remove_stale(str(tmp_path / "a.mdl"))
    files.remove_stale(str(tmp_path / "no" / "folder"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)
