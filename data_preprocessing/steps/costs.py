"""What one call of a step cost, as its marker keeps it: time, memory, bytes, and on what machine."""

import functools
import os
import time
from typing import Any

from modelzoo import host


class Meter:
    """Measures from when it is made."""

    def __init__(self):
        host.reset_peak_memory()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, bytes_in: int, bytes_out: int) -> dict[str, Any]:
        """Seconds, the most memory that the process held, and bytes that the call read of the input and left.

        CPU seconds are user and system time of all threads. Where the system cannot reset its mark, `peak_bytes` is
        that of the process so far; None where it reports none.
        """
        return {
            "wall_seconds": round(time.perf_counter() - self._wall, 6),
            "cpu_seconds": round(time.process_time() - self._cpu, 6),
            "peak_bytes": host.peak_memory(),
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "machine": describe_machine(),
        }


@functools.cache
def describe_machine() -> str:
    """The processor, its class, and the cores that this process may use."""
    from modelzoo.kernels.processor import TITLES, model_name, native_class

    cores = os.cpu_count() or 1
    return f"{model_name()}, {TITLES[native_class()]}, {cores} core{'s' * (cores != 1)}"
