"""Ways of packing that inputs come in: gzip, bzip2, xz and Zstandard, each behind the interface of Python's own."""

import sys
import zlib
from importlib import import_module
from typing import Any

MAX_WINDOW = 256 << 20  # bytes that unpacking may hold: xz -9 takes 65 MB, zstd --long 128 MB


class Packing:
    """One way of packing; an object unpacks one member, as Python's own decompressors do.

    Args of `decompress`: the next bytes, b"" to go on with those that were given; the most bytes to return.
    """

    name: str
    first: frozenset[int]  # bytes that a member may begin with
    errors: tuple[type[Exception], ...] = (OSError, ValueError)

    @classmethod
    def begins(cls, head: bytes) -> bool:
        """Whether these four bytes begin such a file."""
        raise NotImplementedError

    def __init__(self):
        self.unpack: Any = None

    def decompress(self, data: bytes, most: int) -> bytes:
        return self.unpack.decompress(data, most)

    @property
    def eof(self) -> bool:
        return self.unpack.eof

    @property
    def needs_input(self) -> bool:
        return self.unpack.needs_input

    @property
    def unused_data(self) -> bytes:
        return self.unpack.unused_data


class _Gzip(Packing):
    name, first = "gzip", frozenset(b"\x1f")

    @classmethod
    def begins(cls, head: bytes) -> bool:
        return head[:2] == b"\x1f\x8b"

    def __init__(self):
        from zlib_ng import zlib_ng

        self.errors = (zlib_ng.error, zlib.error)  # pyright: ignore[reportAttributeAccessIssue]  zlib_ng's types err
        self.unpack = zlib_ng.decompressobj(wbits=31)
        self.full = False

    def decompress(self, data: bytes, most: int) -> bytes:
        out = self.unpack.decompress(data or self.unpack.unconsumed_tail, most)
        self.full = len(out) == most
        return out

    @property
    def needs_input(self) -> bool:
        return not self.unpack.unconsumed_tail and not self.full


class _Bzip2(Packing):
    name, first = "bzip2", frozenset(b"B")

    @classmethod
    def begins(cls, head: bytes) -> bool:
        return head[:3] == b"BZh" and head[3:].isdigit()

    def __init__(self):
        import bz2

        self.unpack = bz2.BZ2Decompressor()


class _Xz(Packing):
    name, first = "xz", frozenset(b"\xfd")

    @classmethod
    def begins(cls, head: bytes) -> bool:
        return head == b"\xfd7zX"

    def __init__(self):
        import lzma

        self.lzma = lzma
        self.errors = (lzma.LZMAError,)
        self.unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW)

    def decompress(self, data: bytes, most: int) -> bytes:
        try:
            return self.unpack.decompress(data, most)
        except self.lzma.LZMAError as e:
            if "emory" in str(e):
                raise MemoryError from None
            raise


class _Zstandard(Packing):
    name, first = "Zstandard", frozenset((0x28, *range(0x50, 0x60)))

    @classmethod
    def begins(cls, head: bytes) -> bool:
        skippable = head[1:] == b"\x2a\x4d\x18" and 0x50 <= head[0] < 0x60
        return head == b"\x28\xb5\x2f\xfd" or skippable

    def __init__(self):
        zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

        self.errors = (zstd.ZstdError,)
        limit = MAX_WINDOW.bit_length() - 1
        self.unpack = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: limit})

    def decompress(self, data: bytes, most: int) -> bytes:
        try:
            return self.unpack.decompress(data, most)
        except self.errors as e:
            if "memory" in str(e):
                raise MemoryError from None
            raise


PACKINGS = (_Gzip, _Bzip2, _Xz, _Zstandard)
