"""Files that grow by whole lines: opened in place alone (no link, no pipe), and checked to be there still. No torch."""

import contextlib
import errno
import os
import stat
from typing import BinaryIO

from modelzoo.reading import look


def open_append(path: str) -> BinaryIO:
    """Open a regular file for reading and appending, unbuffered; it is made if it is not there.

    Raises:
        OSError: it cannot be opened, is a link (which is not written through), a folder, a pipe or a device. Its
            `filename` is `path`.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link, which is not written through", path) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is not a regular file (a pipe, a socket or a device)", path)
    return os.fdopen(fd, "r+b", buffering=0)


def append_line(path: str, line: str) -> None:
    """Append one line to a file of whole lines.

    Raises:
        OSError: of `open_append`, or the disk is full.
    """
    with open_append(path) as file:
        write_whole(file, path, line.encode() + b"\n")


def write_whole(file: BinaryIO, path: str, data: bytes) -> None:
    """Write all of `data`, or nothing that stays.

    Raises:
        OSError: it cannot be written; its `filename` is `path`.
    """
    before = os.fstat(file.fileno()).st_size
    try:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
    except OSError as e:
        with contextlib.suppress(OSError):  # the next start cuts it
            file.truncate(before)
        raise OSError(e.errno, e.strerror, path) from None


def is_there(file: BinaryIO, path: str) -> bool:
    """Whether an open file is still the one at `path`.

    Raises:
        OSError: that cannot be seen.
    """
    found = look(path)
    return found is not None and os.path.samestat(os.fstat(file.fileno()), found)


def set_aside(path: str) -> str:
    """Rename what is at `path`, which is not what belongs there, and return its new name.

    Raises:
        OSError: it cannot be renamed.
    """
    number = 1
    while look(target := f"{path}.set_aside_{number}") is not None:
        number += 1
    os.rename(path, target)
    return target
