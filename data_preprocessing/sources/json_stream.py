"""A JSON file cut into the documents in it by bytes, so that one of any size is read in the memory of one document.

A document is an object at the top of the file, in an array there, or in the array that a key such as `documents` names:
one value, an array, JSON lines and values one after another are all read.
"""

import re
from collections.abc import Iterator

from data_preprocessing.sources.window import Window
from modelzoo.config.errors import UserError

MAX_DOCUMENT = 32 << 20  # bytes; as Python objects they take some ten times as much
_MARK = re.compile(rb'[\[\]{}"]')
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.S)
_COLON = re.compile(rb"\s*+(:?)\s*+(.?)", re.S)
_BETWEEN = re.compile(rb"[\s,]*+$")


def cut(chunks: Iterator[bytes], path: str, keys: frozenset[bytes]) -> Iterator[bytes | None]:
    """Each document's bytes; None for one of over MAX_DOCUMENT, which is never held.

    Args:
        chunks: the file.
        path: for messages.
        keys: of the arrays that hold documents.

    Raises:
        UserError: brackets that do not fit, or a value that is neither an object nor an array of them.
    """
    yield from _Cutter(chunks, path, keys).documents()


class _Cutter(Window):
    """The bytes that are still to be cut, and the containers around them."""

    def __init__(self, chunks: Iterator[bytes], path: str, keys: frozenset[bytes]):
        super().__init__(iter(chunks), MAX_DOCUMENT)
        self.path, self.keys = path, keys
        self.string = b""  # the last one, if it is short

    def documents(self) -> Iterator[bytes | None]:
        around: list[bytes] = []
        while (mark := self._next_mark(between=True)) is not None:
            if mark == b"[":
                around.append(mark)
            elif mark == b"]" and around[-1:] == [b"["]:
                around.pop()
                if around[-1:] == [b"{"]:  # what follows the documents of a collection
                    around.pop()
                    yield from self._read_object(around, False)
            elif mark == b"{":
                yield from self._read_object(around, True)
            else:
                raise self._damage("a string or bracket where a document should be")
        if around:
            raise self._damage("it ends inside of an array: cut off")

    def _read_object(self, around: list[bytes], keep: bool) -> Iterator[bytes | None]:
        """Yield the object whose first brace was passed; or, where it holds documents, go into them."""
        if keep:
            self.drop(self.at - 1)
        self.holding, depth = keep, 1
        while depth:
            if (mark := self._next_mark()) is None:
                raise self._damage("it ends inside of a document: cut off")
            if mark == b'"':
                if depth == 1 and self._begins_documents():
                    self.holding = False
                    around += [b"{", b"["]
                    return
            else:
                depth += 1 if mark in (b"{", b"[") else -1
        whole = bytes(self.buffer[: self.at]) if self.holding and self.at <= MAX_DOCUMENT else None
        self.holding = False
        if keep:
            yield whole

    def _begins_documents(self) -> bool:
        """Whether the string that was just passed is a key of `keys` with an array, whose bracket is then passed."""
        name = bytes(self.string)
        if name not in self.keys:
            return False
        while (found := _COLON.match(self.buffer, self.at)) is None or not found[2]:
            if not self.read_on():
                return False
        if found[1] and found[2] == b"[":
            self.at = found.end()
            return True
        return False

    def _next_mark(self, between: bool = False) -> bytes | None:
        """Pass the next bracket or string; None at the end of the file."""
        while (found := _MARK.search(self.buffer, self.at)) is None:
            self._skip(len(self.buffer), between)
            if not self.read_on():
                return None
        self._skip(found.start(), between)
        mark = bytes(found[0])
        if mark == b'"':
            while (string := _STRING.match(self.buffer, self.at)) is None:
                if len(self.buffer) - self.at > MAX_DOCUMENT or not self.read_on():
                    raise self._damage("a string without an end")
            self.string = string[0][1:-1] if string.end() - string.start() < 100 else b""
            self.at = string.end()
        else:
            self.at += 1
        return mark

    def _skip(self, to: int, between: bool) -> None:
        if between and not _BETWEEN.match(self.buffer[self.at : to]):
            raise self._damage("a value that is no document")
        self.at = to

    def _damage(self, what: str) -> UserError:
        return UserError(f"{self.path}: not JSON of documents ({what}, at byte {self.passed + self.at:,})")
