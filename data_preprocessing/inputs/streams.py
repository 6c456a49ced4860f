"""Bytes of an input file, unpacked as they are read, with limits: a bomb or a truncated file is refused."""

import codecs
import os
import re
from collections.abc import Iterator

from data_preprocessing.inputs.packings import MAX_WINDOW, PACKINGS, Packing
from modelzoo.config.errors import UserError
from modelzoo.files import sha256
from modelzoo.reading import open_regular

CHUNK = 1 << 20
WINDOW = 1 << 14  # compressed bytes that a gzip member is given first, after a small one
# DEFLATE cannot pass 1032:1 and MEDLINE sits near 10:1: far above that, past some slack, it is a bomb.
MAX_RATIO = 150
RATIO_SLACK = 64 << 20


def sha256_file(path: str) -> str:
    """The SHA-256 of a regular file, in hexadecimal digits.

    Raises:
        UserError: it is none, or cannot be read.
    """
    try:
        return sha256(path)
    except OSError as e:
        raise _unreadable(path, e) from None


def _unreadable(path: str, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read: {error.strerror or error}")


def unpacked(path: str, max_bytes: int) -> Iterator[bytes]:
    """Yield the file's bytes, unpacked where its magic bytes, not its name, are those of gzip, bzip2, xz or Zstandard.

    Raises:
        UserError: no regular file, truncated or corrupt, trailing garbage, more than `max_bytes` unpacked, far more
            than any text unpacks to (a bomb), or a window that would fill the memory.
    """
    try:
        with open_regular(path) as f:
            head = f.read(4)
            f.seek(0)
            packing = next((p for p in PACKINGS if p.begins(head)), None)
            yield from _gathered(_unpack(f, path, max_bytes, packing)) if packing else _plain(f, path, max_bytes)
    except OSError as e:
        raise _unreadable(path, e) from None


def _plain(f, path: str, max_bytes: int) -> Iterator[bytes]:
    read = 0
    while chunk := f.read(CHUNK):
        read += len(chunk)
        if read > max_bytes or os.fstat(f.fileno()).st_size > max_bytes:
            raise UserError(
                f"{path}: larger than max_file_gigabytes ({max_bytes / 1e9:g} GB); raise it if that is meant"
            )
        yield chunk


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks of CHUNK bytes at least, since each chunk has a cost of its own."""
    parts, size = [], 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield parts[0] if len(parts) == 1 else b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _unpack(f, path: str, max_bytes: int, packing: type[Packing]) -> Iterator[bytes]:
    """The bytes of one packed member or stream after another."""
    read = made = 0
    unpack: Packing | None = packing()
    data, at = b"", 0
    begun, window = 0, CHUNK
    while True:
        if at == len(data):
            data, at = f.read(CHUNK), 0
            if not data:
                break
        if unpack is None:  # a further member; zero padding between or after members is allowed by gzip and xz
            begin = _NONZERO.search(data, at)
            if begin is None:
                at = len(data)
                continue
            at = begin.start()
            if data[at] not in packing.first:
                raise UserError(
                    f"{path}: bytes after the end of the {packing.name} stream; the file is damaged or not "
                    f"{packing.name}"
                )
            unpack = packing()
            # At a member's end the library copies what was given beyond it: with a million small ones, too much of a
            # chunk.
            begun, window = read, max(WINDOW, min(2 * (read - begun), CHUNK))
        piece = data[at : at + window]
        window *= 2
        at += len(piece)
        read += len(piece)
        while True:
            try:
                out = unpack.decompress(piece, CHUNK)
            except (*unpack.errors, EOFError) as e:
                raise UserError(f"{path}: corrupt {packing.name} ({e}); fetch the file again") from None
            except MemoryError:
                raise UserError(f"{path}: needs over {MAX_WINDOW >> 20} MB to be unpacked; refused") from None
            made += len(out)
            piece = b""
            if made > max_bytes or made > RATIO_SLACK + MAX_RATIO * read:
                raise UserError(
                    f"{path}: unpacks to over {made / 1e6:.0f} MB from {read / 1e6:.1f} MB: refused as a "
                    f"{packing.name} bomb"
                )
            if out:
                yield out
            if unpack.eof:
                at -= len(unpack.unused_data)
                read -= len(unpack.unused_data)
                unpack = None
                break
            if unpack.needs_input:
                break
    if unpack is not None:
        raise UserError(f"{path}: the {packing.name} stream ends too early (a truncated file); fetch the file again")


# The encodings of XML files, and no other codec that Python has by name (zip, unicode_escape, idna and the like).
ENCODINGS = {
    *("utf-8", "ascii", "utf-16", "utf-16-le", "utf-16-be", "koi8-r", "koi8-u"),
    *(f"iso8859-{k}" for k in range(1, 17)),
    *(f"cp125{k}" for k in range(9)),
    *("gb2312", "gbk", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "iso2022_jp"),
}
_NONZERO = re.compile(rb"[^\0]")
_DECLARATION = re.compile(rb"\s{0,100}<\?xml\s([^>]*+)(>?)")
_ENCODING = re.compile(rb"""\bencoding\s*+=\s*+["']?([^"']*+)""")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # of an encoding, in XML; Python takes others for the same
MAX_DECLARATION = 1000  # bytes of an XML declaration


def utf8(chunks: Iterator[bytes], path: str) -> Iterator[bytes]:
    """The same XML bytes in UTF-8 without a byte-order mark, whatever encoding the file declares.

    Raises:
        UserError: the encoding is none of ENCODINGS, or the bytes are not in it.
    """
    chunks = iter(chunks)
    head = next(chunks, b"")
    encoding = "utf-8"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif head.startswith(codecs.BOM_UTF8):
        head = head[3:]
    else:
        encoding = _declared_encoding(head, path) or encoding
    if encoding in ("utf-8", "ascii"):
        yield head
        yield from chunks
        return
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        yield decoder.decode(head).encode()
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as e:
        raise UserError(f"{path}: is not the {encoding} that it declares: {e}") from None


def _declared_encoding(head: bytes, path: str) -> str | None:
    """Python's name of the encoding that an XML declaration gives, if there is one and it gives one."""
    declaration = _DECLARATION.match(head[: 2 * MAX_DECLARATION])
    if declaration is None:
        return None
    if not declaration[2] or len(declaration[1]) > MAX_DECLARATION:
        raise UserError(f"{path}: its XML declaration does not end within {MAX_DECLARATION:,} bytes; not XML")
    if (given := _ENCODING.search(declaration[1])) is None:
        return None
    name = given[1].decode("ascii", "backslashreplace")
    try:
        found = codecs.lookup(name).name if _NAME.fullmatch(name) else ""
    except LookupError:
        found = ""
    if found not in ENCODINGS:
        raise UserError(f"{path}: declares the unknown encoding {name[:40]!r}; convert the file to UTF-8")
    return found
