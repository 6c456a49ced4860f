"""How every command ends: one line for what went wrong, an exit code, and no traceback.

0 done · 2 something that the user can correct · 70 a fault of this program (its traceback is in a file) · 75 another
process holds the folder · 130 interrupted.
"""

import contextlib
import errno
import os
import re
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from modelzoo import host
from modelzoo.config.errors import UserError
from modelzoo.redact import redact_text, redact_words

FAULT = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130
LONGEST = 2000  # characters of one line of a message
NO_MEMORY = "not enough memory; give a smaller model, micro-batch or input, or a machine with more"
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|bad_alloc", re.IGNORECASE)  # how torch words it
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class Output:
    """A stream that ends no run: what a full disk, a closed pipe or a gone terminal cannot take is dropped.

    Args:
        stream: the stream; everything but writing is its own.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.lost: OSError | None = None  # the first failure

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as e:
            self._drop(e)
        except ValueError as e:
            if isinstance(e, UnicodeError):
                raise
            self._drop(OSError(errno.EBADF, "it is closed"))
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as e:
            self._drop(e)
        except ValueError:
            self._drop(OSError(errno.EBADF, "it is closed"))

    def _drop(self, error: OSError) -> None:
        """Send what is buffered, and what follows, nowhere: the interpreter would fail on it at its end."""
        self.lost = self.lost or error
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def run_command(
    body: Callable[[], int | None],
    words: Sequence[str],
    if_interrupted: str,
    prints: Callable[[], bool] = lambda: True,
    rank: int = 0,
) -> int:
    """Run a command, and end it as every command ends.

    Args:
        body: does it; returns an exit code, or None for 0.
        words: the command line.
        if_interrupted: what to say of the work done so far, after "stopped; ".
        prints: whether what it prints is all that it makes: lost output is an error then, else a remark.
        rank: this process's number among those that run the command together; all but 0 print their errors alone.

    Returns:
        The exit code.
    """
    before = sys.stdout, sys.stderr
    _fill_closed()
    nowhere = contextlib.ExitStack()
    out, err = (Output(nowhere.enter_context(_open_nowhere()) if s is None else s) for s in before)
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment] they have what a TextIO has

    def say(text: str) -> None:
        print(text.replace("error: ", f"error: rank {rank}: ") if rank else text, file=err, flush=True)

    try:
        with _silence(rank > 0):
            code = _guard(body, words, "" if rank else if_interrupted, say)
        out.flush()
        if out.lost is not None and out.lost.errno != errno.EPIPE:
            reason = f"the output cannot be written ({out.lost.strerror})"
            if prints():
                say(f"error: {reason}")
                code = code or UserError.exit_code
            else:
                say(f"note       {reason}; the files of this command are not affected")
        return code
    finally:
        err.flush()
        sys.stdout, sys.stderr = before
        nowhere.close()


def _fill_closed() -> None:
    """Open what the caller closed of the three standard streams: the next file would get its number, and the messages
    of C libraries.
    """
    with contextlib.suppress(OSError):
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass  # it stays
        os.close(fd)


def _open_nowhere() -> TextIO:
    """Where the text for a stream that the caller closed goes (`python ... 2>&-`)."""
    return open(os.devnull, "w", encoding="utf-8")


@contextlib.contextmanager
def _silence(silent: bool) -> Iterator[None]:
    """Send what the body prints nowhere."""
    with contextlib.ExitStack() as stack:
        if silent:
            nowhere = stack.enter_context(_open_nowhere())
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _guard(
    body: Callable[[], int | None], words: Sequence[str], if_interrupted: str, say: Callable[[str], None]
) -> int:
    """The exit code of `body`, after one line about what it raised, if it raised."""
    try:
        host.prepare_process(words)
        return body() or 0
    except UserError as e:
        if not e.quiet:
            lines = redact_text(str(e)).rstrip("\n").split("\n")
            say("\n".join(f"error: {escape_controls(shorten(line))}" for line in lines))
        return e.exit_code
    except UnicodeEncodeError as e:
        say(f"error: {host.explain_encoding(e)}")
    except KeyboardInterrupt:
        if if_interrupted:
            say(f"\nstopped; {if_interrupted}")
        return INTERRUPTED
    except OSError as e:
        if e.filename is None and e.errno not in _NO_ROOM:
            return _report_fault(e, words, say)
        say(f"error: {escape_controls(shorten(redact_text(explain_os_error(e))))}")
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as e:  # not Exception: a library's Rust panics are none
        if not lacks_memory(e):
            return _report_fault(e, words, say)
        say(f"error: {NO_MEMORY}")
    return UserError.exit_code


def lacks_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, or torch's on any device."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def escape_controls(text: str, kept: str = "\t") -> str:
    r"""Text in which what a terminal would act on (controls, marks of direction) is `\x1b` and the like.

    Args:
        kept: characters of these that stay; a line has no line ends.
    """
    seen = lambda c: c.isprintable() or c in kept or unicodedata.category(c) == "Zs"
    return "".join(c if seen(c) else ascii(c)[1:-1] for c in text)


def shorten(line: str) -> str:
    """A line of a message that a file's or a command line's own words have made long: its beginning and its end."""
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 500]} ... {line[-500:]}"


def explain_os_error(error: OSError) -> str:
    """`FILE: reason` in one line, with what to do where that is known."""
    reason = " ".join(str(error.strerror or error).split())
    advice = {
        errno.ENOSPC: "free some space and run the same command again",
        errno.EDQUOT: "free some space and run the same command again",
        errno.EROFS: "give a folder that can be written",
        errno.EACCES: "change its permissions, or give another path",
        errno.EPERM: "change its permissions, or give another path",
        errno.ENOENT: "check the path",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
        errno.EIO: "the disk or network mount failed; the same command may succeed later",
    }.get(error.errno or 0)
    what = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename or "")
    return f"{what}: {reason}".removeprefix(": ") + (f"; {advice}" if advice else "")


def _report_fault(error: BaseException, words: Sequence[str], say: Callable[[str], None]) -> int:
    """Write a traceback to a file, name the file in one line, and return the exit code."""
    text = f"{' '.join(redact_words(words))}\n{redact_text(''.join(traceback.format_exception(error)))}"
    first = " ".join(redact_text(str(error)).split())[:200]
    line = f"error: {type(error).__name__}{': ' if first else ''}{first}"
    try:
        path = os.path.join(host.private_folder(), f"fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt")
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        where = f"the traceback is in {path}; please report it"
    except OSError as e:
        where = f"its traceback cannot be written ({e.strerror})"
    say(f"{line} (a fault of this program, not of your input: {where})")
    return FAULT
