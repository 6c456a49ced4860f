"""Bytes of an input file, unpacked as they are read, with limits: a bomb or a truncated file is refused."""

import codecs
import hashlib
import os
import re
import zlib
from collections.abc import Iterator

from modelzoo.config.errors import UserError

CHUNK = 1 << 20
# DEFLATE cannot pass 1032:1 and MEDLINE sits near 10:1: far above that, past some slack, it is a bomb.
MAX_RATIO = 150
RATIO_SLACK = 64 << 20


def sha256_file(path: str) -> str:
    with open_input(path) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def open_input(path: str):
    try:
        return open(path, "rb")
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}") from None


def unpacked(path: str, max_bytes: int) -> Iterator[bytes]:
    """Yield the file's bytes, gunzipped where the file is gzip (recognised by its magic bytes, not its name).

    Raises:
        UserError: truncated or corrupt gzip, trailing garbage, or more than `max_bytes` unpacked.
    """
    with open_input(path) as f:
        head = f.read(2)
        f.seek(0)
        yield from _gunzip(f, path, max_bytes) if head == b"\x1f\x8b" else _plain(f, path, max_bytes)


def _plain(f, path: str, max_bytes: int) -> Iterator[bytes]:
    if os.fstat(f.fileno()).st_size > max_bytes:
        raise UserError(f"{path}: larger than max_file_gigabytes ({max_bytes / 1e9:g} GB); raise it if that is meant")
    while chunk := f.read(CHUNK):
        yield chunk


def _gunzip(f, path: str, max_bytes: int) -> Iterator[bytes]:
    from zlib_ng import zlib_ng

    read = made = 0
    unpack = zlib_ng.decompressobj(wbits=31)
    pending = b""
    while True:
        data = pending or f.read(CHUNK)
        pending = b""
        if not data:
            break
        if unpack is None:  # a further member; zero padding between or after members is allowed by the format
            data = data.lstrip(b"\0")
            if not data:
                continue
            if data[:1] != b"\x1f":
                raise UserError(f"{path}: bytes after the end of the gzip stream; the file is damaged or not gzip")
            unpack = zlib_ng.decompressobj(wbits=31)
        before = len(data)
        while True:
            try:
                out = unpack.decompress(data, 4 * CHUNK)
            except (zlib_ng.error, zlib.error) as e:  # pyright: ignore[reportGeneralTypeIssues]  zlib_ng's types err
                raise UserError(f"{path}: corrupt gzip ({e}); fetch the file again") from None
            made += len(out)
            data = unpack.unconsumed_tail
            if made > max_bytes or made > RATIO_SLACK + MAX_RATIO * (read + before):
                raise UserError(
                    f"{path}: unpacks to over {made / 1e6:.0f} MB from {(read + before) / 1e6:.1f} MB: "
                    "refused as a gzip bomb"
                )
            if out:
                yield out
            if unpack.eof:
                pending = unpack.unused_data
                unpack = None
                break
            if not data and len(out) < 4 * CHUNK:
                break
        read += before - len(pending)
    if unpack is not None:
        raise UserError(f"{path}: the gzip stream ends too early (a truncated file); fetch the file again")


_ENCODING = re.compile(rb"""^<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


def utf8(chunks: Iterator[bytes], path: str) -> Iterator[bytes]:
    """The same XML bytes in UTF-8 without a byte-order mark, whatever encoding the file declares."""
    chunks = iter(chunks)
    head = next(chunks, b"")
    encoding = "utf-8"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif head.startswith(codecs.BOM_UTF8):
        head = head[3:]
    elif declared := _ENCODING.match(head):
        encoding = declared[1].decode().lower()
    if encoding in ("utf-8", "utf8", "us-ascii", "ascii"):
        yield head
        yield from chunks
        return
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        yield decoder.decode(head).encode()
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except LookupError:
        raise UserError(f"{path}: declares the unknown encoding '{encoding}'") from None
    except UnicodeError as e:
        raise UserError(f"{path}: is not the {encoding} that it declares: {e}") from None
