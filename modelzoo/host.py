"""What the machine has, asked in one place: cores, memory, load, locks, a home, streams that print.

Linux, macOS and Windows differ in each, and so do hosts of one system: a user without a home or a name, a folder that
cannot be written, a terminal that knows ASCII alone. Imports nothing of ours.
"""

import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

CACHE = "MEDISWIFT_CACHE"


def available_cores() -> int:
    """How many cores this process may use: what taskset, Slurm or a container leave it, where the system tells."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS and Windows have no such call
        return os.cpu_count() or 1


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def load_average() -> float | None:
    """Processes that wanted a core, on average over the last minute; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def lock_file(file: IO, shared: bool = False) -> bool:
    """Lock an open file until it is closed. False: another process holds it.

    Where the system or the file system knows no such locks, the file counts as locked, and a line says so.
    """
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except ImportError:
        reason = "the system has none"
    except OSError as e:
        if e.errno in (errno.EAGAIN, errno.EACCES):
            return False
        reason = e.strerror
    else:
        return True
    print(f"{file.name}: no lock ({reason}); see to it that no other process writes there", file=sys.stderr)
    return True


def private_folder() -> Path:
    """mediswift-UID in the folder for temporary files: made for this user alone, and refused if it is not.

    Raises:
        OSError: it cannot be made, or is not a folder that only this user may enter.
    """
    user = os.geteuid() if hasattr(os, "geteuid") else "user"  # on Windows that folder is the user's own
    folder = Path(tempfile.gettempdir(), f"mediswift-{user}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if user != "user" and (not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077):
        raise PermissionError(errno.EACCES, "is not a folder of this user alone", str(folder))
    return folder


def cache_folders() -> Iterator[Path]:
    """Where to keep what is made once: $MEDISWIFT_CACHE, or mediswift/ in the user's cache; then `private_folder`.

    Raises:
        OSError: of `private_folder`.
    """
    base, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    if named := os.environ.get(CACHE):
        yield Path(named)
    elif os.path.isabs(base):
        yield Path(base, "mediswift")
    elif os.path.isabs(home):  # "~" as it was: there is no HOME, and the user has no entry in passwd
        yield Path(home, ".cache", "mediswift")
    yield private_folder()
