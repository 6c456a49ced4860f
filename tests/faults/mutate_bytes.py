"""Damage that knows nothing of a format: what bad memory, disks and copies leave."""

from random import Random

SECTOR = 512


def flip_bit(data: bytes, draw: Random) -> bytes:
    """One bit is another; each region of a long file has the same chance, and so has its first and last kilobyte."""
    at = draw.randrange(len(data))
    if draw.random() < 0.25:  # headers and footers hold what decides how the rest is read
        at = at % 1024 if draw.random() < 0.5 else len(data) - 1 - at % 1024
        at = min(max(at, 0), len(data) - 1)
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def cut_end(data: bytes, draw: Random) -> bytes:
    """The file ends early: anywhere, at a sector, or a few bytes before its end."""
    kind = draw.randrange(3)
    if kind == 0:
        return data[: draw.randrange(len(data))]
    if kind == 1:
        return data[: draw.randrange((len(data) + SECTOR - 1) // SECTOR) * SECTOR]
    return data[: max(len(data) - draw.randint(1, 16), 0)]


def _sector(data: bytes, draw: Random) -> tuple[int, int]:
    start = draw.randrange((len(data) + SECTOR - 1) // SECTOR) * SECTOR
    return start, min(start + SECTOR, len(data))


def zero_sector(data: bytes, draw: Random) -> bytes:
    """A sector that was never written reads as zeros."""
    start, stop = _sector(data, draw)
    return data[:start] + bytes(stop - start) + data[stop:]


def double_sector(data: bytes, draw: Random) -> bytes:
    """A sector is written twice, and what follows moves on or is overwritten."""
    start, stop = _sector(data, draw)
    after = data[stop:] if draw.random() < 0.5 else data[stop + (stop - start) :]
    return data[:stop] + data[start:stop] + after


def drop_sector(data: bytes, draw: Random) -> bytes:
    """A sector is missing, and what follows moves up."""
    start, stop = _sector(data, draw)
    return data[:start] + data[stop:]


def append_bytes(data: bytes, draw: Random) -> bytes:
    """Bytes follow the end: zeros, rubbish, or the file's own beginning."""
    count = draw.choice((1, 7, SECTOR))
    return data + draw.choice((bytes(count), draw.randbytes(count), data[:count]))


DAMAGES = {f.__name__: f for f in (flip_bit, cut_end, zero_sector, double_sector, drop_sector, append_bytes)}


def damage(data: bytes, draw: Random, name: str | None = None) -> bytes:
    """`data` damaged in one way, half of all times by one bit; never equal to `data`.

    Args:
        name: of DAMAGES; None draws one.

    Raises:
        ValueError: `data` is empty.
    """
    if not data:
        raise ValueError("nothing to damage")
    for _ in range(100):
        chosen = name or ("flip_bit" if draw.random() < 0.5 else draw.choice(list(DAMAGES)))
        found = DAMAGES[chosen](data, draw)
        if found != data:
            return found
    return flip_bit(data, draw)  # all zeros: zeroed and doubled sectors change nothing
