"""A file for HDF5 to write to that never fails: after a failed write HDF5 prints hundreds of tracebacks, then crashes.

with Sink(path) as sink, h5py.File(sink, "w") as file:
    file["data"] = numbers
    sink.check()
sink.check()
"""

import contextlib
import os
from typing import Any, Self

from modelzoo import interrupts


class Sink:
    """A new file, for `h5py.File(sink, "w")`. What cannot be written is dropped, and `check` raises the reason.

    Args:
        path: is replaced; a link there is not followed.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: str):
        with contextlib.suppress(FileNotFoundError):  # a killed process of the same number left it
            os.remove(path)
        self.path = path
        self.lost: OSError | None = None
        self.file = open(path, "x+b", buffering=0)  # noqa: SIM115  __exit__ closes it. x: through no link

    def __enter__(self) -> Self:
        # HDF5 calls `write`, and takes what is raised there for a full disk
        self._delay = interrupts.delaying_interrupts()
        self._delay.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self._delay.__exit__(None, None, None)

    def check(self) -> None:
        """Raise the OSError of the first write that failed, if one did."""
        if self.lost is not None:
            raise self.lost

    def write(self, data: bytes | memoryview) -> int:
        left = memoryview(data).cast("B")
        while left and self.lost is None:
            try:
                left = left[self.file.write(left) :]
            except OSError as e:
                self.lost = OSError(e.errno, e.strerror, self.path)
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        try:
            return self.file.truncate(size)
        except OSError as e:
            self.lost = self.lost or OSError(e.errno, e.strerror, self.path)
        return size or 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
