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
import sys
from collections.abc import Iterator
from typing import Any

from modelzoo import host
from modelzoo.config.errors import UserError
from modelzoo.reading import MIB, open_regular, parse_json, read_bytes

MAX_LINE = 16 * MIB  # of JSON Lines; a record of a log has a few hundred bytes
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
def replacing(path: str, durable: bool = False) -> Iterator[str]:
    """A temporary name next to `path`, for the body to write to; it takes the place of `path` when the body ends.

    A body that raises, or a kill, leaves `path` as it was. What a kill leaves is what `remove_temporaries` removes. A
    link at `path` is replaced, never written through.

    Args:
        durable: flush the file, and then its folder, to the disk: a power cut after the body leaves the whole file too.

    Raises:
        OSError: the folder cannot be written, or the disk is full; it names `path`.
    """
    temporary = _temporary(path)
    try:
        with naming(path, temporary):
            # O_EXCL: nothing that is there under this name, a link least of all, is written through
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
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

    A body that raises, or a kill, leaves no `path`.

    Raises:
        OSError: the folder above cannot be written, the disk is full, or `path` is there and is not an empty folder.
    """
    temporary = _temporary(path)
    try:
        with naming(path, temporary):
            os.makedirs(os.path.dirname(temporary) or os.curdir, exist_ok=True)
            os.mkdir(temporary)
            yield temporary
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_temporaries(folder: str, alone: bool = True) -> None:
    """Remove what killed processes left half-written in `folder`.

    Args:
        alone: no other process writes there now. Otherwise, what a living process or one of another machine left stays.
    """
    for entry in os.scandir(folder):
        if entry.name.startswith(".") and entry.name.endswith(".tmp") and (alone or _is_left(entry.name)):
            with contextlib.suppress(FileNotFoundError):  # another process cleans up too
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.remove(entry.path)


def _is_left(name: str) -> bool:
    """Whether the process that made a temporary name was one of this machine, and has ended."""
    writer = _WRITER.fullmatch(name)
    return bool(writer) and writer[1] == host.machine_id() and not host.is_alive(int(writer[2]), writer[3])


def write_bytes(path: str, data: bytes, durable: bool = False) -> None:
    """A file of these bytes, whole or as it was; `durable` and errors as in `replacing`."""
    with replacing(path, durable) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_text(path: str, text: str, durable: bool = False) -> None:
    """A small file, whole or as it was; `durable` and errors as in `replacing`."""
    write_bytes(path, text.encode(), durable)


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


def read_json_object(path: str, if_missing: str, if_other: str) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        if_missing: what to say, after the path, of a file that is not there; if_other: of one that holds no object.

    Raises:
        UserError: it is not there, cannot be read, or holds no object.
    """
    try:
        found = parse_json(read_bytes(path), finite=False)
    except FileNotFoundError:
        raise UserError(f"{path}: {if_missing}") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    except ValueError as e:
        raise UserError(f"{path}: cannot be read ({' '.join(str(e).split())[:120]})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: {if_other}")
    return found


def read_json_lines(path: str) -> list[dict[str, Any]]:
    """The records of a JSON Lines file, in order: its lines that hold a JSON object.

    A half-written last line (a killed run) is left out. So is any other line that holds no object or is longer than
    `MAX_LINE`, which a line on stderr reports: a log never ends the command that reads it.

    Raises:
        OSError: there is no such file, it is not a regular one, or it cannot be read.
    """
    found, other, number, tail = [], [], 0, b""
    with open_regular(path) as file:
        while line := file.readline(MAX_LINE):
            begins, tail = not tail, b"" if line.endswith(b"\n") else line[-1:]
            number += begins
            record = _parse_object(line) if begins and not (tail and len(line) == MAX_LINE) else None
            if record is not None:
                found.append(record)
            elif begins and line.strip():
                other.append(number)
    if tail and other and other[-1] == number:
        other.pop()
    if other:
        what = "1 line is no record and is" if len(other) == 1 else f"{len(other):,} lines are no records and are"
        print(f"note       {path}: {what} left out (line {other[0]:,})", file=sys.stderr)
    return found


def _parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        found = parse_json(line, finite=False)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def sha256(path: str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
