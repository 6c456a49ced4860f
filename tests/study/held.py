"""A run that waits at a step for the signal that ends it: a test may take as long as it likes to send one."""

import contextlib
import time

from modelzoo.backends.local import Local
from modelzoo.training import loop


def hold(step: int) -> None:
    """Let this process's run wait before its first step after `step` until a signal asks it to end."""
    seen: list[list[int]] = []
    catch, queue = loop.catch_interrupts, Local.queue_step

    @contextlib.contextmanager
    def caught():
        with catch() as signals:
            seen.append(signals)
            yield signals

    def wait(self, run, *args):
        while run.step >= step and not seen[-1]:
            time.sleep(0.01)
        return queue(self, run, *args)

    loop.catch_interrupts, Local.queue_step = caught, wait
