"""Whether a `.mdl` is whole, before HDF5 reads it in this process: inside HDF5 a damaged one can end it."""

import contextlib
import hashlib
import os
import signal
import warnings
from collections.abc import Callable
from typing import BinaryIO

from modelzoo.config.errors import UserError
from modelzoo.reading import open_regular

SEAL = b"\nmediswift sha256 "  # behind HDF5's end, which its readers do not look at; then 64 digits and a newline


def check_seal(path: str) -> bool:
    """Check a file that this trainer wrote against the SHA-256 at its end, before HDF5 sees it: a flipped bit can end
    the process there. Files of Model Zoo, older ones of ours, and edited ones have none.

    Returns:
        Whether it has one.

    Raises:
        UserError: the file was changed, or cannot be read.
    """
    length = len(SEAL) + 65
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - length, 0))
            end = file.read()
            sealed = len(end) == length and end.startswith(SEAL) and end.endswith(b"\n")
            if sealed:
                file.seek(0)
                if _hash(file, size - length) != end[len(SEAL) : -1]:
                    raise UserError(f"{path}: its SHA-256 differs from the one at its end: it was changed after it was "
                                    "exported; export it again")  # fmt: skip
    except OSError as e:
        raise UserError(f"{path}: cannot be opened ({e.strerror})") from None
    return sealed


def rehearse_reading(path: str, read: Callable[[], object]) -> None:
    """Read a file once in a fork of this process: a damaged one that has no seal can end the process inside HDF5.

    Raises:
        UserError: it did.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: it ends without touching them
        pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):  # which this process meets again, and reports
            read()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise UserError(f"{path}: HDF5 itself fails on it ({name}): it is damaged, or too large; take another copy")


def _hash(file: BinaryIO, size: int) -> bytes:
    """The SHA-256 of the next `size` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    while size and (part := file.read(min(size, 1 << 20))):
        digest.update(part)
        size -= len(part)
    return digest.hexdigest().encode()


def write_seal(path: str) -> None:
    """Put the SHA-256 of a file behind its end."""
    with open(path, "r+b") as file:
        digest = _hash(file, os.path.getsize(path))
        file.seek(0, os.SEEK_END)
        file.write(SEAL + digest + b"\n")
