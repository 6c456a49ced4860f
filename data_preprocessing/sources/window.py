"""The part of a stream of bytes that a cutter looks at: it grows as it is read, and what is done with is dropped."""

from collections.abc import Iterator


class Window:
    """Bytes of a file that are still to be cut into records.

    Args:
        chunks: the file, or what follows `head` in it.
        most: bytes of a record; a larger one is never held.
    """

    def __init__(self, chunks: Iterator[bytes], most: int, head: bytearray | None = None):
        self.chunks, self.most = chunks, most
        self.buffer, self.at = bytearray() if head is None else head, 0
        self.passed = 0  # bytes that are no longer in the buffer
        self.holding = False  # the bytes before `at`, of a record

    def drop(self, to: int) -> None:
        """Drop the buffer's first `to` bytes."""
        del self.buffer[:to]
        self.passed += to
        self.at -= to

    def read_on(self) -> bool:
        """Read more; what is done with is dropped, and so is a record that is too large. False at the file's end."""
        self.holding = self.holding and self.at <= self.most
        if not self.holding:
            self.drop(self.at)
        chunk = next(self.chunks, b"")
        self.buffer += chunk
        return bool(chunk)
