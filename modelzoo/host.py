"""What the machine has, asked in one place: cores, memory, load, a home, streams that print, processes.

Linux, macOS and Windows differ in each, and so do hosts of one system: a user without a home or a name, a folder that
cannot be written, a terminal that knows ASCII alone. Imports nothing of ours.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import shutil
import signal
import socket
import stat
import sys
import threading
import time
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


def has_gpu_driver() -> bool:
    """Whether an NVIDIA GPU may be here, as far as can be known without torch."""
    return shutil.which("nvidia-smi") is not None


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not report it."""
    if most := _high_water():
        return most
    try:
        import resource
    except ImportError:  # Windows
        return None
    return _count_bytes(resource.getrusage(resource.RUSAGE_SELF))


def wait_for_child(pid: int) -> tuple[int, float, int]:
    """(exit code, CPU seconds, most bytes held) of a child process, once it has ended."""
    _, status, used = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, _count_bytes(used)


def _count_bytes(usage) -> int:
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024


def reset_peak_memory() -> None:
    """Let `peak_memory` count from what this process holds now; only Linux can."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


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


@functools.cache
def machine_id() -> str:
    """Eight hexadecimal digits that name this boot of this machine and, in a container, its space of process numbers.

    Two processes with equal ones can ask after each other by number (`is_alive`).
    """
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        facts.append(file.read().strip())
    with contextlib.suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("|".join(facts).encode(errors="surrogateescape")).hexdigest()[:8]


def process_start(pid: int) -> str:
    """When a process of this machine began, in the system's own count; empty where it does not report it."""
    return "".join(_read_stat(pid)[19:20])


def _read_stat(pid: int) -> list[str]:
    """What Linux reports of a process after its number and name: the first field is its state, the 20th its start."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def is_alive(pid: int, start: str) -> bool:
    """Whether the process `pid` of this machine that began at `start` (`process_start`) still runs.

    Its number may be another's by now, which only the start shows; an empty one leaves it open, and counts as alive.
    """
    try:
        if sys.platform != "win32":  # there, os.kill ends what it asks after
            os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # another user's: it is there
    if "".join(_read_stat(pid)[:1]) in ("Z", "X"):  # it has ended, and whoever started it has not asked for its code
        return False
    now = process_start(pid)
    return not (start and now) or start == now


def end_with_parent(parent: int, by: int | None = None) -> None:
    """End this process when the one that started it ends, however it ends: a kill -9 leaves no workers behind.

    On Linux the kernel sends SIGKILL when the thread ends that started this process. Elsewhere, and where it is another
    signal, which the kernel sends again for each thread of the other process, a thread of this one looks five times a
    second.

    Args:
        parent: the number of the process that started this one. If it is gone already, this one ends now.
        by: the signal that ends this one; SIGKILL if it is None.
    """
    bound = by is None and sys.platform.startswith("linux") and _bind_to_parent(signal.SIGKILL)
    by = by if by is not None else int(getattr(signal, "SIGKILL", signal.SIGTERM))
    if os.getppid() != parent:
        os.kill(os.getpid(), by)
    if not bound:
        threading.Thread(target=_watch_parent, args=(parent, by), daemon=True).start()


def _bind_to_parent(by: int) -> bool:
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of sys/prctl.h
    try:
        return ctypes.CDLL(None).prctl(set_parent_death_signal, by, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _watch_parent(parent: int, by: int) -> None:
    import multiprocessing

    known = multiprocessing.parent_process()  # Windows keeps the number of a parent that is gone
    while os.getppid() == parent and (known is None or known.is_alive()):
        time.sleep(0.2)
    os.kill(os.getpid(), by)
