"""HDF5 files that anyone may have written: nothing is followed out of the file, no value is believed that it lacks.

HDF5 invents fill values for whatever is declared and not stored. A file of a kilobyte can declare 10^12 numbers, and
one flipped bit in an index turns examples into zeros. `check_storage` therefore wants each chunk of a dataset stored,
once, inside the file. Every exception of h5py, which raises many kinds for a damaged file, becomes one line with its
path.
"""

import contextlib
import errno
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from modelzoo.config.errors import UserError
from modelzoo.reading import open_regular

MAX_CHUNK = 1 << 23  # bytes; HDF5 unpacks a whole chunk at once. h5py and PyTables choose at most 1 MiB by themselves
PACKED_SLACK = 1 << 16  # bytes by which a chunk may be stored in more than it holds; a bomb packed in it ends there
DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
PLUGINS = {307: "bzip2", 32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32015: "Zstandard", 32026: "Blosc2"}
FILTERS = (DEFLATE, SHUFFLE, FLETCHER32, LZF, *PLUGINS)
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of file systems that have none
FAILURES = (OSError, LookupError, RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError, SystemError,
             AttributeError)  # fmt: skip


@contextlib.contextmanager
def explaining(path: str, what: str = "not a readable HDF5 file; make it again") -> Iterator[None]:
    """Turn whatever h5py raises in the body into one line.

    Args:
        what: what to say of the file, after its path, where the exception does not tell.

    Raises:
        UserError: the body raised something that h5py raises.
    """
    try:
        yield
    except FAILURES as e:
        if isinstance(e, OSError) and e.errno:
            raise UserError(f"{path}: {_explain_system(e)}") from None
        raise UserError(f"{path}: {'truncated; make it again' if 'truncated' in str(e) else what}") from None


def _explain_system(e: OSError) -> str:
    """What the operating system refused, which is no damage, and what to do."""
    if e.errno in (errno.EAGAIN, errno.EACCES) and "lock" in str(e):
        return "is locked: another process has it open for writing; wait until that has closed it, and start again"
    reason = e.strerror if e.filename else os.strerror(e.errno or 0)  # h5py's text is long, and names no file
    if e.errno in (errno.EACCES, errno.EPERM):
        return f"cannot be read ({reason}); give this user the right to read it (ls -l shows who has it)"
    return f"cannot be read ({reason})"


def explain(error: BaseException) -> str:
    """The first line of an exception's text, cut; or its kind."""
    return next(iter(str(error).splitlines()), "")[:80] or type(error).__name__


def open_file(path: str):
    """An h5py.File for reading, if `path` is a regular file. Call it inside `explaining`.

    Raises:
        OSError: it is not there, is no regular file, or is no HDF5 file.
    """
    import h5py

    open_regular(path).close()  # HDF5 itself would wait for a FIFO's writer
    try:
        return h5py.File(path, "r")
    except OSError as e:
        if e.errno not in WITHOUT_LOCKS:
            raise
        return h5py.File(path, "r", locking=False)


def find_dataset(path: str, file, key: str):
    """The dataset `key` of a file, as one that keeps its values there itself, under filters that are at hand.

    Raises:
        UserError: there is none; it is a link to elsewhere, a group, external or virtual; or a filter is missing.
    """
    import h5py

    link = file.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        found = f"keys: {', '.join(map(str, file)) or 'none'}"[:120] if link is None else "a link elsewhere is refused"
        raise UserError(f"{path}: has no dataset '{key}' of its own ({found})")
    data = file[key]
    if not isinstance(data, h5py.Dataset):
        raise UserError(f"{path}: '{key}' is no dataset; not a Model Zoo shard")
    if data.external or data.is_virtual:
        raise UserError(f"{path}: '{key}' keeps its values in other files; external and virtual data is refused")
    for number in _list_filters(data):
        if number not in FILTERS:
            raise UserError(f"{path}: '{key}' is packed with HDF5's filter {number}, which is not read here")
        if not h5py.h5z.filter_avail(number):
            with contextlib.suppress(ImportError):
                import hdf5plugin  # noqa: F401  (it registers Model Zoo's lz4 and others)
            if not h5py.h5z.filter_avail(number):
                name = PLUGINS.get(number, "one of its own")
                raise UserError(f"{path}: '{key}' needs HDF5's filter {number} ({name}); pip install hdf5plugin")
    return data


def _list_filters(data) -> list[int]:
    plan = data.id.get_create_plist()
    return [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]


def check_storage(path: str, data, max_chunk: int = MAX_CHUNK) -> None:
    """Refuse a dataset of which not every value is stored in the file itself, or whose chunks could fill the memory.

    Args:
        max_chunk: bytes of an unpacked chunk at most.

    Raises:
        UserError: names what is declared, and what is stored.
    """
    if data.shape is None or 0 in data.shape:  # Model Zoo stores text and None as empty datasets
        return
    size, item = os.path.getsize(path), _check_type(path, data)
    declared = math.prod(data.shape) * item
    if data.chunks is None:
        _check_contiguous(path, data, declared, size)
        return
    if math.prod(data.chunks) * item > max_chunk:
        raise UserError(f"{path}: chunks of {data.chunks} are over {max_chunk >> 20:,} MiB; refused")
    for n, most, chunk in zip(data.shape, data.maxshape, data.chunks, strict=True):
        if most is not None and (most < n or chunk > n):
            raise UserError(f"{path}: chunks of {data.chunks} do not fit {data.shape}; damaged, make it again")
    wanted = math.prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True))
    chunks = _list_chunks(data, wanted)
    if len(chunks) != wanted:
        stored = sum(c.size for c in chunks)
        more = "more" if len(chunks) > wanted else f"{len(chunks):,}"
        raise UserError(
            f"{path}: declares {declared / 1e6:.0f} MB in {wanted:,} chunks but stores {stored:,} bytes in {more}; "
            "refused: HDF5 would invent the rest"
        )
    _check_chunks(path, data, chunks, math.prod(data.chunks) * item, size)


def is_stored(data, first: Sequence[int], block: Any) -> bool:
    """Whether what was read of a dataset is stored there, and not invented by HDF5 because its index is damaged.

    HDF5's own list of chunks does not tell: it leaves out a part of their keys that looking one up compares. A part of
    the block that is one value throughout is therefore looked up by its chunk.

    Args:
        first: the place in the dataset at which the block, an array of as many axes, begins.
    """
    if data.chunks is None:
        return True
    corners = [range(a // c * c, a + n, c) for a, n, c in zip(first, block.shape, data.chunks, strict=True)]
    for corner in itertools.product(*corners):
        part = block[tuple(slice(max(0, o - a), o + c - a) for o, a, c in zip(corner, first, data.chunks, strict=True))]
        if part.size and part.flat[0] == part.flat[-1] and (part == part.flat[0]).all():
            try:
                data.id.read_direct_chunk(corner)
            except FAILURES:
                return False
    return True


def read_values(path: str, data, first: int, count: int, what: str):
    """Values [first, first + count) of a dataset's first axis.

    Args:
        what: what is read, for the message: "example 3".

    Raises:
        UserError: they cannot be read, or are not stored.
    """
    try:
        found = data[first : first + count]
        stored = is_stored(data, (first,) + (0,) * (data.ndim - 1), found)
    except FAILURES as e:  # LookupError and ValueError: it shrank since it was opened
        raise UserError(f"{path}: {what} cannot be read ({explain(e)}); make this shard again") from None
    if not stored:
        reason = "its index is damaged: it names no values"
        raise UserError(f"{path}: {what} cannot be read ({reason}); make this shard again")
    return found


def _check_type(path: str, data) -> int:
    """Bytes of a value, all bits of which are used: a flipped bit in a type could hide some."""
    kind = data.id.get_type()
    whole = not hasattr(kind, "get_precision") or (
        kind.get_precision() == 8 * kind.get_size() and kind.get_offset() == 0
    )
    if not whole:
        raise UserError(f"{path}: its numbers use {kind.get_precision()} of {8 * kind.get_size()} bits; refused")
    return kind.get_size()


def _check_contiguous(path: str, data, declared: int, size: int) -> None:
    import h5py

    stored, at = data.id.get_storage_size(), data.id.get_offset()
    compact = data.id.get_create_plist().get_layout() == h5py.h5d.COMPACT
    if stored < declared or (at is None and not compact):
        raise UserError(
            f"{path}: declares {declared / 1e6:.0f} MB but stores {0 if at is None else stored:,} bytes; refused: "
            "HDF5 would invent the rest"
        )
    if at is not None and at + declared > size:
        raise UserError(f"{path}: truncated: its values would end at byte {at + declared:,} of {size:,}; make it again")


def _list_chunks(data, wanted: int) -> list[Any]:
    """What the index says of each chunk, at most one more than `wanted`: a damaged index may go in circles."""
    found: list[Any] = []

    def take(chunk: Any) -> bool | None:
        found.append(chunk)
        return True if len(found) > wanted else None

    data.id.chunk_iter(take)
    return found


def _check_chunks(path: str, data, chunks: list[Any], whole: int, size: int) -> None:
    """Refuse an index in which a chunk lacks, is there twice, overlaps another, or is not wholly in the file.

    Args:
        whole: bytes of an unpacked chunk; size: of the file.
    """
    import numpy as np

    at = np.array([c.chunk_offset for c in chunks], np.uint64)
    first, length = (np.array([getattr(c, k) for c in chunks], np.uint64) for k in ("byte_offset", "size"))
    mask = np.array([c.filter_mask for c in chunks], np.uint32)
    filters = _list_filters(data)
    whole += 4 * (FLETCHER32 in filters)  # bytes of a checksum
    order = np.argsort(first)
    starts, ends = first[order], first[order] + length[order]
    shape, steps = np.array(data.shape, np.uint64), np.array(data.chunks, np.uint64)
    # A filter that does not make a chunk smaller is passed over, and says so; shuffling never is.
    packing = sum(1 << i for i, number in enumerate(filters) if number not in (SHUFFLE, FLETCHER32))
    bare = (mask != 0) | (packing == 0)
    faults = {
        "a chunk is listed twice": len(np.unique(at, axis=0)) < len(at),
        "a chunk lies outside the declared shape": (at >= shape).any() or (at % steps).any(),
        "a chunk lies outside the file": (first > size).any() or (ends > size).any(),
        "two chunks overlap": (starts[1:] < ends[:-1]).any(),
        "a chunk leaves out a filter that it needs": (mask & ~np.uint32(packing)).any(),
        "a chunk has another length than its values": (length == 0).any() or (length[bare] != whole).any(),
        "a chunk is packed in more than it holds": (length > whole + PACKED_SLACK).any(),
    }
    if wrong := next((text for text, found in faults.items() if found), None):
        raise UserError(f"{path}: {wrong}: its index is damaged; make it again")
