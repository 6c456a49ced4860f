"""Files that are whole or as they were, and their hashes. Whoever writes one that others read goes through here."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

from modelzoo.config.errors import UserError


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary name beside `path`, for the body to write to; it takes the place of `path` when the body ends.

    A body that raises, or a kill, leaves `path` as it was.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def write_text(path: str, text: str) -> None:
    """A small file, whole or as it was.

    Raises:
        OSError: of `replacing`.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str, value: Any) -> None:
    """Results as JSON, whole or as they were; folders are made.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_text(path, json.dumps(value, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); free some space or give another -o") from None


def sha256(path: str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: str) -> None:
    """Flush a file or a folder to the disk, so that a power cut after this leaves it there."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
