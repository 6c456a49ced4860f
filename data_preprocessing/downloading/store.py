"""What a download from PMC's cloud service keeps on disk: a ledger, spools of articles as they arrive, and tars.

The ledger has one record an article, in the order of their ids; a record is written when its article is decided, and is
never torn by a kill. A spool takes the articles of one tar in the order of their arrival; its tar is written from it in
the order of the ids, each article held to its MD5 again, when all are there. Thus any order of arrival, and any kills,
end in the same bytes.
"""

import enum
import errno
import hashlib
import io
import os
import struct
import tarfile
from typing import NamedTuple

import numpy as np

from data_preprocessing.downloading import bucket
from modelzoo.config.errors import UserError
from modelzoo.files import Measure, measure_file, naming, replacing
from modelzoo.reading import exists, open_regular

LEVEL = 6  # of gzip: JATS to a fifth of its size
_HEAD = struct.Struct("<8sQQ")  # mark, position, length
_MARK = b"article\n"


class Status(enum.IntEnum):
    """What became of an article. Those from KEPT on have a place in a tar, which is left empty where it is not KEPT."""

    OPEN = 0
    ABSENT = 1  # an id that was asked for and that the service does not have
    GONE = 2  # its metadata answer 404
    LICENCE = 3
    RETRACTED = 4
    NO_XML = 5
    FAILED = 6  # its metadata could not be fetched, and --skip_failed was given
    KEPT = 16
    KEPT_GONE = 17  # its XML answers 404
    KEPT_FAILED = 18  # its XML could not be fetched, and --skip_failed was given


REASONS = {  # of what skipped.tsv names; what has another licence is counted alone
    Status.ABSENT: "the service has no version of it",
    Status.GONE: "its metadata are gone (404)",
    Status.RETRACTED: "retracted",
    Status.NO_XML: "its metadata name no XML",
    Status.FAILED: "its metadata could not be fetched",
    Status.KEPT_GONE: "its XML is gone (404)",
    Status.KEPT_FAILED: "its XML could not be fetched",
}
# 32 bytes: no record crosses a sector of the disk
RECORD = np.dtype([("status", "u1"), ("code", "u1"), ("rest", "V2"), ("bytes", "<u4"), ("md5", "V16"), ("more", "V8")])


class Ledger:
    """One record an article, read and written in place."""

    def __init__(self, path: str):
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)

    def close(self) -> None:
        os.close(self._fd)

    def read(self, begin: int, count: int) -> np.ndarray:
        """Records `begin` to `begin + count`; what is not written yet is OPEN."""
        records = np.zeros(count, RECORD)
        with naming(self.path):
            data = _read(self._fd, begin * RECORD.itemsize, count * RECORD.itemsize)
        whole = len(data) // RECORD.itemsize
        records[:whole] = np.frombuffer(data, RECORD, whole)
        if not np.isin(records["status"], list(Status)).all() or (records["code"] >= len(bucket.CODES)).any():
            raise UserError(f"{self.path}: is damaged; remove it, and the metadata are fetched again")
        return records

    def write(self, position: int, status: Status, code: str = "", md5: bytes = b"", size: int = 0) -> None:
        """Decide on one article. `code`: its licence; `md5`: of its XML; `size`: its bytes once it is there."""
        record = np.zeros((), RECORD)
        record["status"], record["bytes"] = status, size
        record["code"] = bucket.CODES.index(code) if code else 0
        data = record.tobytes()
        data = data[:8] + md5.ljust(16, b"\0") + data[24:]
        with naming(self.path):
            if os.pwrite(self._fd, data, position * RECORD.itemsize) != len(data):
                os.pwrite(self._fd, bytes([Status.OPEN]), position * RECORD.itemsize)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)


class Spool:
    """The articles of one tar, in the order of their arrival. What a kill left half-written at its end is cut off."""

    def __init__(self, path: str):
        self.path = path
        self.places: dict[int, tuple[int, int]] = {}  # position -> (offset, length)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        with naming(path):
            self._end = self._scan()
            os.ftruncate(self._fd, self._end)

    def _scan(self) -> int:
        at, size = 0, os.fstat(self._fd).st_size
        while at + _HEAD.size <= size:
            mark, position, length = _HEAD.unpack(_read(self._fd, at, _HEAD.size))
            if mark != _MARK or at + _HEAD.size + length > size:
                break
            self.places[position] = at + _HEAD.size, length
            at += _HEAD.size + length
        return at

    def add(self, position: int, data: bytes) -> None:
        """Append one article.

        Raises:
            OSError: the disk is full.
        """
        with naming(self.path):
            left = memoryview(_HEAD.pack(_MARK, position, len(data)) + data)
            at = self._end
            while left:
                written = os.pwrite(self._fd, left, at)
                left, at = left[written:], at + written
        self.places[position] = self._end + _HEAD.size, len(data)
        self._end = at

    def close(self) -> None:
        os.close(self._fd)


class Member(NamedTuple):
    """An article's place in a tar."""

    position: int
    name: str
    md5: bytes


def find_damaged(spool: Spool, members: list[Member]) -> list[Member]:
    """The members whose bytes are not there or not those of their MD5, as a power cut can leave them."""
    damaged = []
    with open_regular(spool.path) as file, naming(spool.path):
        for member in members:
            place = spool.places.get(member.position)
            if place is None or hashlib.md5(_read(file.fileno(), *place)).digest() != member.md5:
                damaged.append(member)
    return damaged


def _read(fd: int, offset: int, length: int) -> bytes:
    """So many bytes from `offset` on, fewer only at the end of the file: one call may give fewer before it, too."""
    data = os.pread(fd, length, offset)
    while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def write_tar(path: str, spool: Spool, members: list[Member]) -> Measure:
    """Write the members to a .tar.gz, whole or not at all, and to the disk; equal bytes for equal members.

    Raises:
        OSError: the disk is full.
    """
    from zlib_ng import gzip_ng

    with (
        replacing(path, durable=True) as temporary,
        open_regular(spool.path) as file,
        open(temporary, "wb") as raw,
        gzip_ng.GzipNGFile("", "wb", LEVEL, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for member in members:
            data = _read(file.fileno(), *spool.places[member.position])
            if hashlib.md5(data).digest() != member.md5:  # it was right a moment ago
                raise OSError(errno.EIO, os.strerror(errno.EIO), spool.path)
            info = tarfile.TarInfo(member.name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return measure_file(path)


def is_there(path: str, size: int) -> bool:
    """Whether a tar that was written still has its size."""
    if not exists(path):
        return False
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size == size
