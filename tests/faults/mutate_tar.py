"""Tar packages as broken downloads, other tools and attackers write them."""

import gzip
import io
import tarfile
from random import Random

BLOCK = 512
Members = list[tuple[str, bytes]]
ODD_NAMES = (
    "../evil.nxml", "/abs.nxml", "a/../../b.nxml", "..\\evil.nxml", "C:\\x.nxml", "", ".", "..",
    "a" * 300 + ".nxml", "x\0.nxml",
    "\udcff.nxml", "é.nxml", "a\nb.nxml", "no_suffix", "x.NXML", "x.xml/", "-rf.nxml", "$x^$.nxml", "<b>.nxml",
    ".hidden.nxml",
)  # fmt: skip
TYPES = (
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE,
    tarfile.CONTTYPE,
    tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    b"\0", b"Z", b"V",
)  # fmt: skip
PAX = (
    {"path": "../x.nxml"}, {"path": "/x.nxml"}, {"size": "-1"}, {"size": "99999999999999"}, {"size": "²"},
    {"size": "x"}, {"mtime": "x"},
    {"GNU.sparse.map": "0,1,x"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
    {"GNU.sparse.realsize": "9" * 30},
    {"hdrcharset": "BINARY"}, {"linkpath": "/etc/passwd"}, {"x" * 200: "y" * 200}, {"comment": "x" * 100000},
    {"uid": "9" * 30},
)  # fmt: skip


def pack(members: Members, form: int = tarfile.GNU_FORMAT, odd: dict[int, dict] | None = None) -> bytes:
    """A plain tar of (name, bytes); `odd` sets attributes of the TarInfo of some members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for number, (name, data) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in (odd or {}).get(number, {}).items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def _checksum(header: bytes) -> bytes:
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    return header[:148] + b"%06o\0 " % total + header[156:]


def headers(data: bytes) -> list[int]:
    """Where the headers of a plain tar's members are."""
    found, at = [], 0
    while at + BLOCK <= len(data) and data[at] != 0:
        found.append(at)
        at += BLOCK + (int(data[at + 124 : at + 135].strip(b"\0 ") or b"0", 8) + BLOCK - 1) // BLOCK * BLOCK
    return found


def _mutate_header(header: bytes, draw: Random) -> bytes:
    """A header with one field otherwise; its checksum fits, half of all times."""
    fields = {
        (0, 100): (b"", b"\0", b"../x.nxml", b"/x.nxml", b"\xff" * 100, draw.randbytes(20)),
        (124, 12): (
            b"00000000000",
            b"77777777777",
            b"-1",
            b"\xff" * 12,
            b"\x80" + b"\xff" * 11,
            b"\x80" + b"\0" * 10 + b"\x01",
            b"zzz",
        ),
        (136, 12): (b"zzz", b"\xff" * 12, b"77777777777"),
        (156, 1): TYPES,
        (157, 100): (b"/etc/passwd", b"../../x"),
        (257, 8): (b"\0" * 8, b"ustar\0" + b"00", b"USTAR\0zz"),
        (345, 155): (b"..", b"/", b"../../..", b"\xff" * 155),
    }
    (at, length), values = draw.choice(list(fields.items()))
    value = draw.choice(values)[:length]
    new = header[:at] + value.ljust(length, b"\0") + header[at + length :]
    return _checksum(new) if draw.random() < 0.7 else new


def mutate_tar(members: Members, draw: Random, zipped: bool) -> tuple[bytes, set[int]]:
    """A package of `members` that differs from `pack(members)`, in its structure or in one member's facts.

    Args:
        zipped: as a .tar.gz, at times of several gzip members.

    Returns:
        Its bytes, and the numbers of the members that a reader must still find, if it takes the package at all.
    """
    plain = pack(members)
    for _ in range(100):
        found, needed, parts = _mutate(members, plain, draw)
        if found != plain or len(parts) > 1:
            return b"".join(gzip.compress(p, 1, mtime=0) for p in parts) if zipped else found, needed
    raise AssertionError("no mutant found")


def _mutate(members: Members, plain: bytes, draw: Random) -> tuple[bytes, set[int], list[bytes]]:
    number, every = draw.randrange(len(members)), set(range(len(members)))
    at = headers(plain)
    ends = [*at[1:], at[-1] + BLOCK + (len(members[-1][1]) + BLOCK - 1) // BLOCK * BLOCK]
    body = plain[: ends[-1]]
    start, stop = at[number], ends[number]
    owner = lambda byte: max(i for i, first in enumerate(at) if first <= byte)
    kind = draw.randrange(12)
    needed = every - {number}
    if kind == 0:
        form = draw.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        found = pack([(draw.choice(ODD_NAMES) if i == number else n, d) for i, (n, d) in enumerate(members)], form)
    elif kind == 1:
        odd = {"type": draw.choice(TYPES), "linkname": draw.choice(("/etc/passwd", members[0][0], "../../x", ""))}
        found, needed = pack(members, tarfile.GNU_FORMAT, {number: odd}), needed - {number + 1}
    elif kind == 2:
        found = pack(members, tarfile.PAX_FORMAT, {number: {"pax_headers": draw.choice(PAX)}})
    elif kind < 5:  # a header may say that its data is the next one's name
        header = _mutate_header(plain[start : start + BLOCK], draw)
        found, needed = plain[:start] + header + plain[start + BLOCK :], needed - {number + 1}
    elif kind == 5:  # cut: at a header, at a member's end, within, or before the end mark
        cuts = (plain[:start], plain[:stop], plain[: draw.randint(start, stop)], body, body + bytes(BLOCK))
        found, needed = draw.choice(cuts), every
    elif kind == 6:  # zeros where a header or data should be
        where = draw.choice((start, start + BLOCK))
        after = plain[draw.choice((where, where + BLOCK)) :]
        found = plain[:where] + bytes(BLOCK * draw.choice((1, 2, 3))) + after
        needed = needed if where > start else every
    elif kind == 7:  # blocks lost or twice
        block = draw.randrange(len(body) // BLOCK) * BLOCK
        found = draw.choice((plain[:block] + plain[block + BLOCK :], plain[: block + BLOCK] + plain[block:]))
        needed = every - {owner(block)}
    elif kind == 8:  # two packages in one file
        other = pack([(f"second/{n}", d) for n, d in members])
        found = draw.choice((plain + other, body + other, plain + b"x", plain + draw.randbytes(700)))
        cut = draw.choice((len(plain), len(body), stop))
        return found, every, [found[:cut], found[cut:]]
    elif kind == 9:  # a member twice
        found, needed = pack([*members, members[number]]), every
    elif kind == 10:
        found, needed = plain[:start] + draw.randbytes(BLOCK) + plain[start + BLOCK :], every
    else:
        byte = draw.randrange(len(body))
        found = plain[:byte] + bytes([plain[byte] ^ (1 << draw.randrange(8))]) + plain[byte + 1 :]
        needed = every - {owner(byte)}
    return found, needed, [found]


def joined(members: Members, zipped: bool) -> bytes:
    """Two whole packages, one after the other: valid as files of gzip, and half of their articles easily overlooked."""
    parts = [pack(members), pack([(f"second/{n}", d) for n, d in members])]
    return b"".join(gzip.compress(p, 1, mtime=0) for p in parts) if zipped else b"".join(parts)
