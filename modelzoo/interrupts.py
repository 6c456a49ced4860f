"""Signals that interrupt a command: how they end it, when they wait, and which processes never see them.

What ends a training run, with a checkpoint first, is `training/signals.py`. Imports nothing of ours.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

PATIENCE = 2.0  # seconds in which a second Ctrl-C is impatience, not a wish to end without cleaning up
_END_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C; what schedulers send; the terminal is gone


@contextlib.contextmanager
def delaying_interrupts() -> Iterator[None]:
    """Let signals that would interrupt the body wait for its end: raised in a C library's callback they do damage."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = {number: handler for number in names if callable(handler := signal.getsignal(number))}
    waiting: list[int] = []
    for number in before:
        signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in waiting:
            os.kill(os.getpid(), number)


@contextlib.contextmanager
def interrupt_by_signals(last: bool = False) -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt the body as Ctrl-C does: with a KeyboardInterrupt, and with one alone.

    What follows the first does not disturb the cleaning up; after `PATIENCE` it ends the process at once. A signal that
    the process was started to ignore (nohup's SIGHUP) stays ignored.

    Args:
        last: the process ends with the body, so an interrupted one keeps ignoring signals.
    """
    first = 0.0

    def handler(number, frame):
        nonlocal first
        if not first:
            first = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - first > PATIENCE:
            os._exit(130)

    known = [getattr(signal, name) for name in _END_SIGNALS if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        known = []
    before = {s: signal.signal(s, handler) for s in known if signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, old in before.items():  # the interpreter's own end would reset a handler, and die of the next one
            signal.signal(number, signal.SIG_IGN if first and last else old)


@contextlib.contextmanager
def shielding_children() -> Iterator[None]:
    """Processes that the body starts never see Ctrl-C, SIGTERM and SIGHUP: whoever started them ends them.

    The signals are blocked meanwhile, which children inherit, and reach this process after the body.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in _END_SIGNALS])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
