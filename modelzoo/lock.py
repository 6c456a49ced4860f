"""One lock for every kind of folder that one process at a time may write: runs, fine-tuning, preprocessing.

The lock is flock's where the file system has it: the system takes it back when its holder dies, however it dies. Where
it has none (Lustre, some network mounts), a line reports it and each holder writes a file instead.
"""

import contextlib
import errno
import io
import os
import socket
import stat
import sys
from collections.abc import Iterator

from modelzoo import host
from modelzoo.config.errors import UserError
from modelzoo.reading import is_number, read_bytes

NAME = ".lock"
_BUSY = (errno.EAGAIN, errno.EACCES)


class Busy(UserError):
    """Another process holds the folder."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed later


@contextlib.contextmanager
def lock_folder(folder: str, shared: bool = False) -> Iterator[None]:
    """Hold `folder` against other processes while the body runs; the folder is made.

    Args:
        shared: others may hold it shared at the same time, none alone.

    Raises:
        Busy: another process holds it.
        UserError: the folder cannot be written.
    """
    path, made = os.path.join(folder, NAME), not os.path.isdir(folder)
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(_open(folder, path))
            reason = _flock(folder, file, shared)
            for _ in range(100):  # not for ever: a file system may give a file another number each time
                if reason is not None or _is(file, path):
                    break
                file = stack.enter_context(_open(folder, path))  # its last holder removed it while we opened it
                reason = _flock(folder, file, shared)
            if reason is not None:
                stack.enter_context(_lock_by_file(folder, path, shared, reason))
            elif not shared:
                with contextlib.suppress(OSError):  # a full disk: the name is for others to read, the lock holds
                    file.truncate(0)
                    file.write(_name().encode())
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    if made and os.listdir(folder) == [NAME]:  # nothing came of it: leave nothing
                        os.remove(path)
    finally:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _open(folder: str, path: str) -> io.FileIO:
    try:
        os.makedirs(folder, exist_ok=True)
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            raise UserError(f"{path}: is a link or no regular file; remove it, and run again")
        # neither through a link (O_NOFOLLOW) nor waiting for a pipe's reader (O_NONBLOCK), should one appear meanwhile
        careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        return io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | careful, 0o666), "r+")
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror}); give another folder") from None


def _is(file: io.FileIO, path: str) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except OSError:
        return False


def _flock(folder: str, file: io.FileIO, shared: bool) -> str | None:
    """Lock an open file until it is closed; returns why the system or the file system cannot.

    Raises:
        Busy: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return "the system has none"
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno not in _BUSY:
            return e.strerror or str(e)
        who = ""
        with contextlib.suppress(OSError):
            file.seek(0)
            who = file.read(200).decode(errors="replace").strip()
        raise Busy(_busy(folder, who if who.isprintable() else "")) from None
    return None


@contextlib.contextmanager
def _lock_by_file(folder: str, path: str, shared: bool, reason: str) -> Iterator[None]:
    """Write a file for this holder next to the lock. It writes first, then looks: two holders see each other."""
    mine = f"{path}.{_name()}.{'shared' if shared else 'alone'}"
    print(f"{folder}: its file system has no locks ({reason}); using {mine} instead", file=sys.stderr)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.remove(mine)  # a killed process of the same number left it
        with open(mine, "x", encoding="utf-8") as file:
            file.write(host.process_start(os.getpid()))
        others = _others(folder, mine)
    except OSError as e:
        raise UserError(f"{mine}: cannot be written ({e.strerror})") from None
    try:
        for other in others:
            if not (shared and other.endswith(".shared")):
                who = other.removeprefix(f"{NAME}.").rpartition(".")[0]
                raise Busy(f"{_busy(folder, who)} (if it is gone, remove {os.path.join(folder, other)})")
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(mine)


def _others(folder: str, mine: str) -> list[str]:
    """The files of other holders; those of dead processes of this machine are removed."""
    found = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not name.startswith(f"{NAME}.") or path == mine:
            continue
        machine, _, pid = name.removeprefix(f"{NAME}.").rpartition(".")[0].rpartition("-")
        if machine == _machine() and is_number(pid) and not host.is_alive(int(pid), _read_start(path)):
            with contextlib.suppress(OSError):
                os.remove(path)
        else:
            found.append(name)
    return found


def _read_start(path: str) -> str:
    try:
        return read_bytes(path, max_bytes=100).decode(errors="replace").strip()
    except OSError:
        return ""


def _machine() -> str:
    return f"{socket.gethostname().replace(os.sep, '_') or 'host'}-{host.machine_id()}"


def _name() -> str:
    return f"{_machine()}-{os.getpid()}"


def _busy(folder: str, who: str) -> str:
    by = f" ({who})" if who else ""
    return f"{folder}: another process is writing it{by}; wait for it, or give another folder"
