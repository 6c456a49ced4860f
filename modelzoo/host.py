"""What the machine has, asked in one place: cores, memory, load, a home, streams that print.

Linux, macOS and Windows differ in each, and so do hosts of one system: a user without a home or a name, a folder that
cannot be written, a terminal that knows ASCII alone. Imports nothing of ours.
"""

import contextlib
import ctypes
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

CACHE = "MEDISWIFT_CACHE"


def available_cores() -> int:
    """How many cores this process may use: what taskset, Slurm or a container leave it, where the system reports it."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS and Windows have no such call
        return os.cpu_count() or 1


def total_memory() -> int | None:
    """The memory of this machine, in bytes; None where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no such call
        return None


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not report it."""
    if most := _high_water():
        return most
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _high_water() -> int | None:
    """Linux's own mark, in bytes. Its ru_maxrss starts at what the process held that started this one."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:")), None)
    except OSError:
        return None


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for what is allocated next, and return whether it can.

    glibc gives large pieces back to the system, which hands them out anew page by page, zeroed: a tenth of a training
    step's time. Peak memory stays what it is; it is only not given back before the process ends.
    """
    settings = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES"
    if not sys.platform.startswith("linux") or any(name in os.environ for name in settings):
        return False  # other systems have other ways, and a user's own settings take precedence
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h's M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX
    return all([mallopt(trim_threshold, 2**31 - 1), mallopt(top_pad, 64 << 20), mallopt(mmap_max, 0)])


def load_average() -> float | None:
    """Processes that wanted a core, on average over the last minute; None where the system does not report it."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def private_folder() -> Path:
    """mediswift-UID in the folder for temporary files: made for this user alone, and refused if it is not.

    Raises:
        OSError: it cannot be made, or is not a folder that only this user may enter.
    """
    import tempfile

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


def prepare_process(words: Sequence[str]) -> None:
    """Make this process, and those that it starts, work where a terminal, a home or a user's name is missing.

    Streams print what their encoding lacks as escapes. Where there is no home or no name, libraries that ask for them
    (torch's compiler, matplotlib, Hugging Face) find `private_folder` and the user's number.

    Args:
        words: the command line, which goes into logs and file names.

    Raises:
        UnicodeEncodeError: a word is no text; `explain_encoding` makes one line of it.
    """
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):  # a replaced stream may have none
            reconfigure(errors="backslashreplace")
    home = os.path.expanduser("~")
    with contextlib.suppress(OSError):
        if home == "~":
            os.environ["HOME"] = str(private_folder())
        elif not os.access(home, os.W_OK) and "XDG_CONFIG_HOME" not in os.environ:  # matplotlib would complain
            os.environ.setdefault("MPLCONFIGDIR", str(private_folder()))
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")) and not _has_passwd_entry():
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    for word in words:
        word.encode()


def _has_passwd_entry() -> bool:
    try:
        import pwd

        pwd.getpwuid(os.getuid())
    except ImportError:  # Windows has USERNAME
        return True
    except KeyError:
        return False
    return True


def explain_encoding(error: UnicodeEncodeError) -> str:
    """One line for text that has no name on this system, or is none."""
    text = error.object[max(0, error.start - 40) : error.end + 40]
    return f"{text!a} cannot be written in {error.encoding} ({error.reason}); set PYTHONUTF8=1, or rename it"
