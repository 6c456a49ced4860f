"""What a task's files hold and is left out, or is taken although it is hardly meant: counted, with the first place."""

from collections.abc import Callable
from typing import Any

Remark = Callable[[str, str], None]  # is called with what is left out, in words, and its place


def pass_over(what: str, where: str) -> None:
    """A `Remark` of who has no use for it."""


class Remarks:
    """Counts by what they are of, in the order in which that was first met."""

    def __init__(self) -> None:
        self._found: dict[str, list[Any]] = {}
        self.notes: list[str] = []  # what is no count

    def add(self, what: str, where: str) -> None:
        """Count one more of `what` (documents without a word: left out), which is at `where`."""
        self._found.setdefault(what, [0, where])[0] += 1

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """For results: count and first place by what."""
        return {what: {"count": n, "first": where} for what, (n, where) in self._found.items()}

    def describe(self) -> list[str]:
        """A line for each."""
        return self.notes + [f"{n:,} {what} (first: {where[:200]})" for what, (n, where) in self._found.items()]
