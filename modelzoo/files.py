"""Files and folders that are whole or as they were, and their hashes. Whoever writes one that others read goes here."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.redact import redact_text


def _temporary(path: str) -> str:
    folder, name = os.path.split(os.fspath(path).rstrip(os.sep))
    return os.path.join(folder, f".{name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def replacing(path: str, durable: bool = False) -> Iterator[str]:
    """A temporary name next to `path`, for the body to write to; it takes the place of `path` when the body ends.

    A body that raises, or a kill, leaves `path` as it was. What a kill leaves is what `remove_temporaries` removes.

    Args:
        durable: flush to the disk first, so that a power cut after the body leaves the whole file too.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
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
    shutil.rmtree(temporary, ignore_errors=True)  # a killed process of the same number left it
    try:
        os.makedirs(temporary)
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_stale(path: str) -> None:
    """Remove what killed processes left half-written for `path` itself; what a process that runs writes stays.

    Processes of other machines are not seen. Two that write the same path come to no good end anyhow.
    """
    folder, name = os.path.split(os.fspath(path).rstrip(os.sep))
    form = re.compile(rf"\.{re.escape(name)}\.(\d{{1,10}})\.tmp")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder or os.curdir)):
            if (m := form.fullmatch(entry.name)) and not _runs(int(m[1])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.remove(entry.path)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's, or no number of a process
        return True
    return True


def remove_temporaries(folder: str) -> None:
    """Remove what killed processes left half-written in `folder`. No process may be writing there now."""
    for entry in os.scandir(folder):
        if entry.name.startswith(".") and entry.name.endswith(".tmp"):
            shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.remove(entry.path)


def write_bytes(path: str, data: bytes, durable: bool = False) -> None:
    """A file of these bytes, whole or as it was; `durable` and errors as in `replacing`."""
    with replacing(path, durable) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_text(path: str, text: str) -> None:
    """A small file, whole or as it was.

    Raises:
        OSError: of `replacing`.
    """
    write_bytes(path, text.encode())


def write_guarded(path: str, text: str) -> None:
    """A small file, whole or as it was; for its owner alone (mode 0600) where the text holds a secret.

    Raises:
        OSError: of `replacing`.
    """
    if redact_text(text) == text:
        return write_text(path, text)
    own = lambda name, flags: os.open(name, flags, 0o600)  # so that not even its first moment is another's to read
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="", opener=own) as file:
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


def read_json_object(path: str, if_missing: str, if_other: str) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        if_missing: what to say, after the path, of a file that is not there; if_other: of one that holds no object.

    Raises:
        UserError: it is not there, cannot be read, or holds no object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: {if_missing}") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read ({str(e)[:80]})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: {if_other}")
    return found


def read_json_lines(path: str) -> list[dict[str, Any]]:
    """The records of a JSON Lines file, in order; a half-written last line (a killed run) is left out.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    found = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


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
