"""Signals that end a run after the step at hand, with a checkpoint."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

# Ctrl-C; what schedulers send; the terminal gone; Slurm's early warnings (sbatch --signal); Ctrl-\\; the processor's
# time used up (ulimit -t: the hard limit kills some seconds later).
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGXCPU")


@contextlib.contextmanager
def catch_interrupts() -> Iterator[list[int]]:
    """Collect the signals that ask the run to end.

    A second Ctrl-C, SIGTERM or SIGQUIT ends it at once. The first one after a warning does not: a checkpoint may be
    under way.

    A signal that the process was started to ignore (nohup's SIGHUP) stays ignored. None is collected outside of the
    main thread, where a caller's program has put the run.
    """
    seen: list[int] = []
    at_once = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGQUIT", signal.SIGTERM)}

    def handler(number, frame):
        if number in at_once and at_once.intersection(seen):
            raise KeyboardInterrupt
        seen.append(number)
        again = "once more stops at once" if number in at_once else "SIGTERM stops at once"
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # the terminal may be gone, or be written just now
            print(f"\n{signal.Signals(number).name}: stopping after this step; {again}", file=sys.stderr)

    known = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        known = []
    before = {s: signal.signal(s, handler) for s in known if signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield seen
    finally:
        for number, old in before.items():
            signal.signal(number, old)
