"""Files and folders that are whole or as they were, and their hashes. Whoever writes one that others read goes here."""

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from modelzoo import host
from modelzoo.config.errors import UserError
from modelzoo.reading import open_regular
from modelzoo.redact import redact_text

_WRITER = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-(\d*)-[0-9a-f]{8}\.tmp", re.DOTALL)
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)  # of fsync on a folder, by network mounts


def _temporary(path: str) -> str:
    """A name next to `path` that no other process makes, and that says which one made it (see `remove_temporaries`)."""
    folder, name = os.path.split(os.fspath(path).rstrip(os.sep))
    return os.path.join(folder, f".{name[:48]}.{_name_writer(os.getpid())}-{secrets.token_hex(4)}.tmp")


@functools.cache
def _name_writer(pid: int) -> str:
    return f"{host.machine_id()}-{pid}-{host.process_start(pid)}"


@contextlib.contextmanager
def naming(path: str, temporary: str | None = None) -> Iterator[None]:
    """Give an OSError of the body that names no file, or that names `temporary`, the name `path`."""
    try:
        yield
    except OSError as e:
        if e.filename in (None, temporary) and e.errno is not None:
            e.filename = path
            if e.filename2 is not None:  # of a rename
                del e.filename2
        raise


@contextlib.contextmanager
def replacing(path: str, durable: bool = False, mode: int = 0o666) -> Iterator[str]:
    """A temporary name next to `path`, for the body to write to; it takes the place of `path` when the body ends.

    A body that raises, or a kill, leaves `path` as it was. What a process killed before left half-written for `path`
    is removed. A link at `path` is replaced, never written through.

    Args:
        durable: flush the file, and then its folder, to the disk: a power cut after the body leaves the whole file too.
        mode: its permissions, less those that the process's umask takes away.

    Raises:
        OSError: the folder cannot be written, or the disk is full; it names `path`.
    """
    temporary = _temporary(path)
    try:
        with naming(path, temporary):
            _remove_stale(path)
            # O_EXCL: nothing that is there under this name, a link least of all, is written through
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            yield temporary
            if durable:
                sync(temporary)
            os.replace(temporary, path)
            if durable:
                sync(os.path.dirname(path) or os.curdir)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


@contextlib.contextmanager
def making_folder(path: str) -> Iterator[str]:
    """An empty folder under a temporary name next to `path`, for the body to fill; at its end it becomes `path`.

    A body that raises, or a kill, leaves no `path`. What a process killed before left for it is removed.

    Raises:
        OSError: the folder above cannot be written, the disk is full, or `path` is there and is not an empty folder.
    """
    temporary = _temporary(path)
    try:
        with naming(path, temporary):
            os.makedirs(os.path.dirname(temporary) or os.curdir, exist_ok=True)
            _remove_stale(path)
            os.mkdir(temporary)
            yield temporary
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _remove_stale(path: str) -> None:
    """Remove what processes that were killed before left half-written for `path` itself, as far as that can be."""
    folder, name = os.path.split(os.fspath(path).rstrip(os.sep))
    with contextlib.suppress(OSError):  # a folder that may be written and not listed; the next write tries again
        folder = os.path.abspath(folder)
        left = [n for n in _list_left(folder, os.getpid()) if n.startswith(f".{name[:48]}.")]
        if left:
            _remove(folder, left.__contains__)


@functools.lru_cache(maxsize=256)
def _list_left(folder: str, pid: int) -> tuple[str, ...]:
    """What dead processes had left in `folder` when process `pid` first wrote there: listed once, not at each write."""
    return tuple(name for name in os.listdir(folder) if _is_left(name))


def remove_temporaries(folder: str, alone: bool = True) -> None:
    """Remove what killed processes left half-written in `folder`.

    Args:
        alone: no other process writes there now. Otherwise, what a living process or one of another machine left stays.
    """
    _remove(folder, lambda entry: entry.startswith(".") and entry.endswith(".tmp") and (alone or _is_left(entry)))


def _remove(folder: str, is_wanted: Callable[[str], bool]) -> None:
    for entry in list(os.scandir(folder)):
        if is_wanted(entry.name):
            with contextlib.suppress(FileNotFoundError):  # another process cleans up too
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.remove(entry.path)


def _is_left(name: str) -> bool:
    """Whether the process that made a temporary name was one of this machine, and has ended."""
    writer = _WRITER.fullmatch(name)
    return bool(writer) and writer[1] == host.machine_id() and not host.is_alive(int(writer[2]), writer[3])


def apply_umask(path: str) -> None:
    """Give `path`, which a library made for its owner alone, the permissions that a new file of this process has there.

    They are read off a new file: to ask for the umask is to change it, for all threads.

    Raises:
        OSError: the folder cannot be written, or does not let permissions change.
    """
    probe = _temporary(path)
    fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
        os.remove(probe)
    if stat.S_IMODE(os.stat(path).st_mode) != mode:
        os.chmod(path, mode)


def write_bytes(path: str, data: bytes, durable: bool = False) -> None:
    """A file of these bytes, whole or as it was; `durable` and errors as in `replacing`."""
    with replacing(path, durable) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_text(path: str, text: str, durable: bool = False) -> None:
    """A small file, whole or as it was; `durable` and errors as in `replacing`."""
    write_bytes(path, text.encode(), durable)


def write_guarded(path: str, text: str) -> None:
    """A small file, whole or as it was; for its owner alone (mode 0600) where the text holds a secret.

    Raises:
        OSError: of `replacing`.
    """
    with replacing(path, mode=choose_mode(text)) as temporary, open(temporary, "wb") as file:
        file.write(text.encode())


def choose_mode(text: str) -> int:
    """Permissions of a file of `text`: its owner's alone, from its first moment on, where it holds a secret."""
    return 0o666 if redact_text(text) == text else 0o600


def write_json(path: str, value: Any) -> None:
    """Results as JSON, whole or as they were, also after a power cut; folders are made.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_text(path, json.dumps(value, indent=1) + "\n", durable=True)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); free some space or give another -o") from None


def sha256(path: str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    return measure_file(path).sha256


class Measure(NamedTuple):
    """A file's size and the SHA-256 of its bytes, in hexadecimal."""

    bytes: int
    sha256: str


def measure_file(path: str) -> Measure:
    """The size and hash of a regular file.

    Raises:
        OSError: it is not there, is none, or cannot be read.
    """
    with open_regular(path) as file:
        return Measure(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def sync(path: str) -> None:
    """Flush a file or a folder to the disk, so that a power cut after this leaves it there.

    A folder whose file system has no such call is left as it is.
    """
    folder = os.path.isdir(path)
    if folder and sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as e:
        if not folder or e.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(fd)
