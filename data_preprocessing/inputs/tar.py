"""The files of a tar package, read from a stream: every header is checked, nothing is extracted, an end is demanded.

Python's `tarfile` ends quietly at a damaged header, at a cut between two members and at the first zero block, so that
what follows is lost. Here a package gives all of its files or is refused with the byte at which it is damaged. Formats:
v7, ustar, GNU and pax (POSIX.1-2017, pax "Extended Description"), and archives one after another.
"""

import re
from collections.abc import Callable, Iterator

from modelzoo.config.errors import UserError

BLOCK = 512
RECORD = 20 * BLOCK  # what archives are filled up to by default
MAX_NOTE = 1 << 20  # bytes of a long name, or of a pax header
ZERO = bytes(BLOCK)
HOLE = "zeros between two members, a hole in the file"
FILES, FOLDERS, LINKS, LABEL, SPARSE = (b"0", b"\0", b"7"), (b"5", b"D"), (b"1", b"2", b"3", b"4", b"6"), b"V", b"S"
PAX, PAX_OF_ALL, LONG_NAME, LONG_LINK = (b"x", b"X"), b"g", b"L", b"K"
_OTHERS = {b"BZh": "bzip2", b"\xfd7z": "xz", b"PK\3": "zip", b"\x28\xb5\x2f": "zstd", b"\x1f\x8b\x08": "gzip"}
_PAX_LENGTH = re.compile(rb"(\d{1,7}) ")


def read_files(
    chunks: Iterator[bytes], path: str, is_wanted: Callable[[str], bool], max_bytes: int
) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file of a tar stream whose name `is_wanted`, in order.

    Args:
        chunks: the stream, unpacked.
        path: for messages.
        max_bytes: of one wanted file.

    Raises:
        UserError: the package is damaged, cut off, or followed by something else; or a member points out of it, is a
            link, a device or sparse. Whatever came before is then not to be used either.
    """
    stream = _Stream(chunks, path)
    archive = 0  # where the archive begins
    unfilled = -1  # where an archive ends that does not fill its record
    members = 0
    while True:
        block = stream.take_header()
        if block == ZERO:
            end = stream.at - BLOCK
            zeros, following = _pass_end(stream)
            # A hole in a file reads as zeros too, and must not pass for the border between two archives. Writers that
            # fill no record do so nowhere.
            if following is None and unfilled >= 0 and zeros != 2 * BLOCK:
                raise stream.damage(HOLE, unfilled)
            if following is None:
                break
            if (following - archive) % RECORD:
                if zeros != 2 * BLOCK:
                    raise stream.damage(HOLE, end)
                unfilled = end
            archive = following
            continue
        name, size, kind = _read_member(stream, block)
        members += 1
        _check_name(name, kind, path)
        if kind in FOLDERS:
            stream.skip(size if kind == b"D" else 0, name)  # another folder's size is a hint, without data
        elif kind == LABEL or not is_wanted(name):
            stream.skip(size, name)
        elif size > max_bytes:
            raise UserError(f"{path}: the member {name!r} is larger than {max_bytes >> 20} MB; refused")
        else:
            yield name, stream.take(size, name)
    if not members:
        raise UserError(f"{path}: not a readable tar package (it has no members); fetch the file again")


def _pass_end(stream: "_Stream") -> tuple[int, int | None]:
    """Pass over the end mark, of whose two zero blocks one is taken, and over what fills the record.

    Returns:
        How many bytes of zeros there are, and where a further archive begins; None at the end of the stream.
    """
    begin = stream.at - BLOCK
    if stream.take_block() != ZERO:
        raise stream.damage("a zero block where a member's header should be", begin)
    while (block := stream.take_block()) and not block.strip(b"\0"):
        pass
    here = stream.at - len(block)
    if not block:
        return here - begin, None
    if len(block) < BLOCK or not _is_header(block):
        raise stream.damage("bytes after the end that are no tar archive", here)
    stream.give_back(block)
    return here - begin, here


def _read_member(stream: "_Stream", block: bytes) -> tuple[str, int, bytes]:
    """(name, size, kind) of the member that begins with the header `block`, past its long names and pax headers."""
    name: str | None = None
    records: dict[bytes, bytes] = {}
    notes = 0
    while True:
        if not _is_header(block):
            raise stream.damage("a header whose checksum does not fit", stream.at - BLOCK)
        size, kind = _read_number(block[124:136]), block[156:157]
        if size is None:
            raise stream.damage("a header whose size is no number", stream.at - BLOCK)
        if kind not in (*PAX, PAX_OF_ALL, LONG_NAME, LONG_LINK):
            break
        notes += size
        if notes > MAX_NOTE:
            raise stream.damage(f"names and attributes of over {MAX_NOTE >> 20} MB", stream.at - BLOCK)
        text = stream.take(size, "a name or attribute")
        if kind == LONG_NAME:
            name = _decode(text.partition(b"\0")[0])
        elif kind in (*PAX, PAX_OF_ALL):
            found = _read_pax(text)
            if found is None or (kind == PAX_OF_ALL and found.keys() & {b"path", b"size"}):
                raise stream.damage("a pax header that cannot be read", stream.at - BLOCK)
            records.update(found if kind != PAX_OF_ALL else {})
        block = stream.take_header()
        if block == ZERO:
            raise stream.damage("a name or attributes without a member", stream.at - BLOCK)
    if kind == SPARSE or any(key.startswith(b"GNU.sparse.") for key in records):
        raise stream.damage("a sparse member, which no article is", stream.at - BLOCK)
    if b"path" in records:
        name = _decode(records[b"path"])
    if b"size" in records:
        if not records[b"size"].isdigit() or len(records[b"size"]) > 20:
            raise stream.damage("a pax header whose size is no number", stream.at - BLOCK)
        size = int(records[b"size"])
    if name is None:
        name = _decode(block[:100].partition(b"\0")[0])
        if block[257:263] == b"ustar\0" and (folder := block[345:500].partition(b"\0")[0]):
            name = f"{_decode(folder)}/{name}"
    if kind == b"\0" and name.endswith("/"):
        kind = b"5"  # a folder, as the oldest archives write it
    if kind not in (*FILES, *FOLDERS, *LINKS, LABEL):
        raise stream.damage(f"a member of the unknown kind {kind!r}", stream.at - BLOCK)
    return name, size, kind


def _check_name(name: str, kind: bytes, path: str) -> None:
    """Refuse what points out of the package, and links and devices."""
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise UserError(f"{path}: the member {name!r} points out of the package; refused")
    if kind in LINKS:
        raise UserError(f"{path}: the member {name!r} is a link or device; refused")


def _is_header(block: bytes) -> bool:
    """Whether a block's checksum fits: the sum of its bytes, the checksum itself taken as blanks.

    Some old writers summed signed bytes.
    """
    given = _read_number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * 32
    return given is not None and (given == total or given == total - 256 * sum(byte > 127 for byte in block))


def _read_number(field: bytes) -> int | None:
    """A header's number, in octal digits or in base 256; None where it is none, or negative."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    try:
        return int(digits or b"0", 8) if digits.isdigit() or not digits else None
    except ValueError:
        return None


def _read_pax(text: bytes) -> dict[bytes, bytes] | None:
    """The records `LENGTH KEY=VALUE\\n` of a pax header; None where they are damaged."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(text):
        length = _PAX_LENGTH.match(text, at)
        if length is None:
            return found if not text[at:].strip(b"\0") else None
        end = at + int(length[1])
        key, equals, value = text[length.end() : end - 1].partition(b"=")
        if end <= length.end() or end > len(text) or text[end - 1 : end] != b"\n" or not equals:
            return None
        found[key] = value
        at = end
    return found


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


class _Stream:
    """The bytes of a stream, in blocks.

    Args:
        chunks: the bytes; no chunk is empty.
        path: for messages.
    """

    def __init__(self, chunks: Iterator[bytes], path: str):
        self.chunks, self.path = chunks, path
        self.buffer, self.used = b"", 0
        self.at = 0  # bytes of the stream that were taken

    def damage(self, what: str, at: int) -> UserError:
        return UserError(f"{self.path}: not a readable tar package ({what}, at byte {at:,}); fetch the file again")

    def take_block(self) -> bytes:
        """The next block; fewer bytes at the end of the stream."""
        begin, self.used = self.used, self.used + BLOCK
        if self.used > len(self.buffer):
            self.used = begin
            return b"".join(self._pieces(BLOCK))
        self.at += BLOCK
        return self.buffer[begin : self.used]

    def take_header(self) -> bytes:
        """The next block, where there must be one."""
        block = self.take_block()
        if len(block) < BLOCK:
            for magic, name in _OTHERS.items() if self.at == len(block) else ():
                if block.startswith(magic):
                    raise UserError(f"{self.path}: is packed with {name}, which is not read; unpack it first")
            raise self.damage("it ends without the two zero blocks that end an archive: cut off", self.at)
        if self.at == BLOCK and (name := _OTHERS.get(block[:3])) and not _is_header(block):
            raise UserError(f"{self.path}: is packed with {name}, which is not read; unpack it first")
        return block

    def give_back(self, block: bytes) -> None:
        """Put the block that was taken last before what is still to come."""
        self.buffer, self.used = block + self.buffer[self.used :], 0
        self.at -= len(block)

    def take(self, size: int, name: str) -> bytes:
        """A member's bytes; what fills its last block is passed over."""
        found = b"".join(self._pieces(size))
        self._check(size, len(found), name)
        return found

    def skip(self, size: int, name: str) -> None:
        """Pass over a member's bytes."""
        self._check(size, sum(map(len, self._pieces(size))), name)

    def _check(self, size: int, found: int, name: str) -> None:
        filling = -size % BLOCK
        if found < size or sum(map(len, self._pieces(filling))) < filling:
            raise self.damage(f"it ends inside of {name!r}: cut off", self.at)

    def _pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes in pieces; fewer at the end of the stream."""
        while size:
            if self.used == len(self.buffer):
                self.buffer, self.used = next(self.chunks, b""), 0
                if not self.buffer:
                    return
            piece = self.buffer[self.used : self.used + size]
            self.used += len(piece)
            self.at += len(piece)
            size -= len(piece)
            yield piece
