"""How commands end: an exit code and one line, whatever was raised, and whatever became of the output."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelzoo import entry, host
from modelzoo.config.errors import UserError

REPO = Path(__file__).resolve().parents[1]


class Panic(BaseException):
    """What a Rust library raises: no Exception."""


def raising(error):
    def body():
        raise error

    return body


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """Where tracebacks go."""
    monkeypatch.setattr(host, "private_folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("error,code,line", [
    (UserError("a.yaml:3: no such key"), 2, "error: a.yaml:3: no such key"),
    (UserError("one\ntwo"), 2, "error: one\nerror: two"),
    (UserError("https://me:pw@host/x: refused"), 2, "error: https://***@host/x: refused"),
    (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2,
     "error: a/b: No space left on device; free some space and run the same command again"),
    (OSError(errno.EACCES, "Permission denied", b"a"), 2,
     "error: a: Permission denied; change its permissions, or give another path"),
    (OSError(errno.ENOSPC, "No space left on device"), 2,
     "error: No space left on device; free some space and run the same command again"),
    (IsADirectoryError(errno.EISDIR, "is a folder", "x"), 2, "error: x: is a folder"),
    (MemoryError(), 2, f"error: {entry.NO_MEMORY}"),
    (RuntimeError("[enforce fail] CPUAllocator: can't allocate memory"), 2, f"error: {entry.NO_MEMORY}"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, f"error: {entry.NO_MEMORY}"),
    (RuntimeError("std::bad_alloc"), 2, f"error: {entry.NO_MEMORY}"),
    (KeyboardInterrupt(), 130, "\nstopped; all is whole"),
])  # fmt: skip
def test_what_is_raised_becomes_a_line_and_a_code(error, code, line, capsys, reports):
    assert entry.run_command(raising(error), ["x"], "all is whole") == code
    assert capsys.readouterr().err == line + "\n"
    assert not list(reports.iterdir())


@pytest.mark.parametrize("error", [ValueError("a\nb"), Panic("index out of range"), OSError("no number"), KeyError()])
def test_anything_else_is_one_line_and_a_traceback_in_a_file(error, capsys, reports):
    assert entry.run_command(raising(error), ["--set", "x.token=canary"], "") == 70
    err = capsys.readouterr().err
    assert err.startswith(f"error: {type(error).__name__}") and err.count("\n") == 1
    (file,) = reports.iterdir()
    text = file.read_text(encoding="utf-8")
    assert str(file) in err and "Traceback" in text and type(error).__name__ in text
    assert "canary" not in text and "x.token=***" in text


def test_a_traceback_that_cannot_be_written_is_still_one_line(capsys, monkeypatch):
    monkeypatch.setattr(host, "private_folder", raising(PermissionError(errno.EACCES, "Permission denied", "/tmp/x")))
    assert entry.run_command(raising(ValueError("a")), [], "") == 70
    assert "its traceback cannot be written (Permission denied)" in capsys.readouterr().err


def test_exits_of_argparse_pass(capsys):
    with pytest.raises(SystemExit):
        entry.run_command(raising(SystemExit(2)), [], "")


@pytest.mark.parametrize("code", [None, 0, 3])
def test_the_code_of_the_body_is_the_command_s(code):
    before = sys.stdout, sys.stderr
    assert entry.run_command(lambda: code, [], "") == (code or 0)
    assert (sys.stdout, sys.stderr) == before


BODY = """
import sys
from modelzoo import entry
def body():
    for i in range(20000): print("line", i)
    open(sys.argv[1], "w", encoding="utf-8").write("done")
sys.exit(entry.run_command(body, [], "", lambda: {prints}))
"""


@pytest.mark.parametrize("prints,code", [(True, 2), (False, 0)])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_an_output_that_takes_nothing_ends_no_work(prints, code, tmp_path):
    with open("/dev/full", "w") as full:
        done = run(BODY.format(prints=prints), tmp_path / "a", stdout=full)
    assert (tmp_path / "a").read_text() == "done" and done.returncode == code
    assert done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


@pytest.mark.parametrize("prints", [True, False])
def test_a_reader_that_is_gone_ends_no_work_and_is_no_error(prints, tmp_path):
    read, write = os.pipe()
    os.close(read)
    try:
        done = run(BODY.format(prints=prints), tmp_path / "a", stdout=write)
    finally:
        os.close(write)
    assert (tmp_path / "a").read_text() == "done" and done.returncode == 0 and done.stderr == ""


def test_a_closed_output_ends_no_work(tmp_path):
    command = f'exec "{sys.executable}" -c "$0" "$1" >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, BODY.format(prints=False), str(tmp_path / "a")], cwd=REPO)
    assert (tmp_path / "a").read_text() == "done" and done.returncode == 0


def run(code, path, **streams):
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, cwd=REPO, stderr=subprocess.PIPE, text=True, **streams)


def test_a_stream_that_was_closed_is_one_to_write_to(tmp_path):
    """Also for what asks it for more, and for C: no file of ours gets its number."""
    body = """
import os, sys
from modelzoo import entry, progress
def body():
    progress.LiveLine().show("a line")
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        print("written", file=sys.stderr)
        os.write(1, b"of C") and os.write(2, b"of C")
        file.write("done")
sys.exit(entry.run_command(body, [], "", lambda: False))
"""
    for closed in ("2>&-", "0<&- 1>&- 2>&-"):
        command = f'exec "{sys.executable}" -c "$0" "$1" {closed}'
        done = subprocess.run(["sh", "-c", command, body, str(tmp_path / "a")], cwd=REPO, stdout=subprocess.PIPE)
        assert done.returncode == 0 and (tmp_path / "a").read_text() == "done"
        assert done.stdout in (b"of C", b"")


@pytest.mark.parametrize("error", [UserError, lambda text: OSError(errno.EIO, "x", text)])
def test_one_refusal_is_one_line_and_moves_no_cursor(error, capsys, reports):
    name = "a\x85b\u2028c\x1b[2Jd\x0be\rf\u202eg h\u00a0ä中"
    assert entry.run_command(raising(error(name)), [], "") == 2
    err = capsys.readouterr().err
    assert err.startswith(r"error: a\x85b\u2028c\x1b[2Jd\x0be\rf\u202eg h" + "\u00a0ä中")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("error", [UserError, lambda text: OSError(errno.ENOENT, "no such file", text)])
def test_a_line_of_which_a_file_made_a_book_keeps_its_beginning_and_its_end(error, capsys, reports):
    assert entry.run_command(raising(error(f"a.yaml:3: {'9' * 100_000}: a reason")), [], "") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: a.yaml:3: 999") and ": a reason" in err[-50:] and len(err) < 2100
