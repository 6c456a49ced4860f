"""One lock for every kind of folder that one process at a time may write: runs, fine-tuning, preprocessing.

The lock is flock's where the file system has it: the system takes it back when its holder dies, however it dies. Where
it has none (Lustre, some network mounts), a line reports it and each holder writes a file instead.
"""

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from typing import IO

from modelzoo.config.errors import UserError

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
            reason = _flock(file, shared)
            while reason is None and not _is(file, path):  # its last holder removed it while we opened it
                file = stack.enter_context(_open(folder, path))
                reason = _flock(file, shared)
            if reason is not None:
                stack.enter_context(_lock_by_file(folder, path, shared, reason))
            elif not shared:
                file.truncate(0)
                file.write(_name().encode())
                file.flush()
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


def _open(folder: str, path: str) -> IO[bytes]:
    try:
        os.makedirs(folder, exist_ok=True)
        return open(path, "a+b")
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror}); give another folder") from None


def _is(file: IO[bytes], path: str) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def _flock(file: IO[bytes], shared: bool) -> str | None:
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
        file.seek(0)
        who = file.read(200).decode(errors="replace").strip()
        raise Busy(_busy(os.path.dirname(file.name), who)) from None
    return None


@contextlib.contextmanager
def _lock_by_file(folder: str, path: str, shared: bool, reason: str) -> Iterator[None]:
    """Write a file for this holder next to the lock. It writes first, then looks: two holders see each other."""
    mine = f"{path}.{_name()}.{'shared' if shared else 'alone'}"
    print(f"{folder}: its file system has no locks ({reason}); using {mine} instead", file=sys.stderr)
    try:
        with open(mine, "w", encoding="utf-8") as file:
            file.write(_started(os.getpid()) or "")
    except OSError as e:
        raise UserError(f"{mine}: cannot be written ({e.strerror})") from None
    try:
        for other in _others(folder, mine):
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
        host, _, pid = name.removeprefix(f"{NAME}.").rpartition(".")[0].rpartition("-")
        if host == _host() and pid.isdigit() and not _alive(int(pid), path):
            with contextlib.suppress(OSError):
                os.remove(path)
        else:
            found.append(name)
    return found


def _alive(pid: int, path: str) -> bool:
    """Whether the process that wrote `path` still runs; its number may be another's by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's: it is there
    try:
        with open(path, encoding="utf-8") as file:
            started = file.read()
    except OSError:
        return True
    return not started or _started(pid) in (None, started)


def _started(pid: int) -> str | None:
    """When a process began, in the system's own count; None where it does not report it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _host() -> str:
    return socket.gethostname().replace(os.sep, "_") or "host"


def _name() -> str:
    return f"{_host()}-{os.getpid()}"


def _busy(folder: str, who: str) -> str:
    by = f" ({who})" if who else ""
    return f"{folder}: another process is writing it{by}; wait for it, or give another folder"
