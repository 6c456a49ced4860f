"""Official files as their authors publish them: a folder, a .zip or a tar file."""

import hashlib
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.evaluation.examples.files import MAX_DATA, parse_lines, parse_value
from modelzoo.reading import read_bytes

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


class Archive:
    """The files in a folder, zip or tar file, by their paths in it.

    Raises:
        UserError: there is no such file, or it is none of the three.
    """

    def __init__(self, path: str):
        self.path = path
        self.hashes: dict[str, str] = {}  # SHA-256 of what was read
        if not os.path.exists(path):
            raise UserError(f"{path}: no such file or folder")
        try:
            self._names = self._list()
        except _DAMAGED as e:
            raise self._damaged(path, e) from None

    def _list(self) -> dict[str, int]:
        """Path in the archive, with / between its parts, to bytes; in the order of names."""
        if os.path.isdir(self.path):
            files = [os.path.join(top, name) for top, _, names in os.walk(self.path) for name in names]
            found = {
                os.path.relpath(f, self.path).replace(os.sep, "/"): os.path.getsize(f)
                for f in files
                if os.path.isfile(f)
            }
        elif zipfile.is_zipfile(self.path):
            with zipfile.ZipFile(self.path) as file:
                found = {i.filename: i.file_size for i in file.infolist() if not i.is_dir()}
        elif tarfile.is_tarfile(self.path):
            with tarfile.open(self.path) as file:
                found = {m.name.removeprefix("./"): m.size for m in file if m.isfile()}
        else:
            raise UserError(f"{self.path}: is neither a folder nor a .zip or tar file")
        return dict(sorted(found.items()))

    def find(self, *ends: str) -> list[str]:
        """Names that are, or end with, one of `ends`; of the first of `ends` that any is found for.

        A part of a path matches as a whole: `US/dev.jsonl` is not found as `dev.jsonl` of `otherdev.jsonl`.
        """
        for end in ends:
            if found := [n for n in self._names if n == end or n.endswith("/" + end)]:
                return found
        return []

    def list_kind(self, kind: str) -> list[str]:
        """Names that end with `kind`; what macOS adds to archives, and hidden files, are left out."""
        return [n for n in self._names if n.endswith(kind) and not n.startswith("__MACOSX/") and "/." not in f"/{n}"]

    def where(self, name: str) -> str:
        """What messages call a file."""
        return os.path.join(self.path, name)

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            UserError: it has more than MAX_DATA, or is damaged.
        """
        data = self._read(name)
        self.hashes[name] = hashlib.sha256(data).hexdigest()
        return data

    def _read(self, name: str) -> bytes:
        where = self.where(name)
        if self._names[name] > MAX_DATA:
            raise UserError(f"{where}: has {self._names[name]:,} bytes; at most {MAX_DATA:,} are read")
        try:
            if os.path.isdir(self.path):
                return read_bytes(where, MAX_DATA)
            if zipfile.is_zipfile(self.path):
                with zipfile.ZipFile(self.path) as file, file.open(name) as member:
                    return self._take(member, where)
            with tarfile.open(self.path) as file:
                found = next(m for m in file if m.name.removeprefix("./") == name and m.isfile())
                member = file.extractfile(found)
                assert member is not None  # a regular file
                return self._take(member, where)
        except _DAMAGED as e:
            raise self._damaged(where, e) from None

    def _take(self, member: Any, where: str) -> bytes:
        data = member.read(MAX_DATA + 1)  # what its header says of its size may be wrong
        if len(data) > MAX_DATA:
            raise UserError(f"{where}: has more than {MAX_DATA:,} bytes")
        return data

    def _damaged(self, where: str, error: BaseException) -> UserError:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
        return UserError(f"{where}: cannot be read ({reason})")

    def decode(self, name: str) -> str:
        """A UTF-8 file, its line ends as \\n."""
        try:
            return self.read(name).decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as e:
            raise UserError(f"{self.where(name)}: is not UTF-8 text (byte {e.start})") from None

    def read_json(self, name: str) -> Any:
        """A JSON file's value."""
        return parse_value(self.decode(name), f"{self.where(name)}:")

    def read_jsonl(self, name: str) -> Iterator[tuple[str, Any]]:
        """("file:line", value) of each line."""
        return parse_lines(self.decode(name), self.where(name))

    def read_parquet(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """("file:row", columns) of each row.

        Raises:
            UserError: pyarrow is not installed, or it cannot read the file.
        """
        where = self.where(name)
        try:
            from pyarrow import parquet  # pyright: ignore[reportMissingImports]  # no dependency of ours
        except ImportError:
            raise UserError(
                f"{where}: a Parquet file needs pyarrow; pip install 'mediswift-trainer[eval]' brings it"
            ) from None
        try:
            rows = parquet.read_table(io.BytesIO(self.read(name))).to_pylist()
        except (ValueError, OSError) as e:  # pyarrow's errors are of these
            raise self._damaged(where, e) from None
        for number, row in enumerate(rows, 1):
            yield f"{where}:{number}", row
