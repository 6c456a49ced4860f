"""The shard files of a data folder: find them, check them before a run, and read their checksums."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.data import format as f
from modelzoo.data.folder import UNRECORDED, Recorded, check_masks, list_shards, open_shard, read_manifest, read_shards
from modelzoo.folders import SHARD_SUFFIXES, add_kind

SOME = 16  # shards that a plan opens: it is read in a second, whatever the data


class Stamp(NamedTuple):
    """Size, time of the last change and inode of a file."""

    size: int
    mtime_ns: int
    inode: int


class Shard(NamedTuple):
    """What is known of a shard before its examples are read."""

    path: str
    examples: int
    msl: int
    rows: int  # 3, 5 (VSL), or 0 for a corpus of plain tokens
    recorded: Recorded  # what its folder's manifest says of it
    stamp: Stamp  # of the file that was checked


def list_shards_below(folder: str) -> list[str]:
    """The shards of a folder that may not be there."""
    return list_shards(folder) if os.path.isdir(folder) else []


def find_shards(data_dir: Sequence[str]) -> list[str]:
    """The shard files of the folders, sorted by name within each folder.

    Raises:
        UserError: a folder is missing or holds no shard, or a shard that its manifest lists is missing.
    """
    files = []
    for folder in data_dir:
        if os.path.isfile(folder):
            files.append(folder)
            continue
        found = list_shards(folder)
        if not found and read_manifest(folder).get("n_examples") == 0:
            raise UserError(
                f"{folder}: holds no example, as its manifest records: no document fell into this split; raise "
                "--val_fraction when the data is made, or leave this folder out"
            )
        if not found:
            below = next((d for part in ("train", "val") if list_shards_below(d := os.path.join(folder, part))), None)
            message = f"{folder}: holds no HDF5 shard ({', '.join(SHARD_SUFFIXES)})"
            raise UserError(f"{message}; did you mean {below}?" if below else add_kind(message, folder))
        if missing := sorted({s.file for s in read_shards(folder)} - set(map(os.path.basename, found))):
            raise UserError(
                f"{os.path.join(folder, missing[0])}: missing ({f.MANIFEST} lists it); restore it, or name the shards "
                "to train on one by one in data_dir"
            )
        files += found
    return files


def list_recorded(files: Sequence[str]) -> list[tuple[str, Recorded]]:
    """Each shard with what its folder's manifest records of it.

    Raises:
        UserError: a manifest that cannot be read.
    """
    known = {folder: {s.file: s for s in read_shards(folder)} for folder in {os.path.dirname(p) for p in files}}
    return [(p, known[os.path.dirname(p)].get(os.path.basename(p), UNRECORDED)) for p in files]


def check_some(path: str, msl: int | None = None, vsl: bool = False) -> list[tuple[str, int, int]]:
    """Refuse what a run would refuse of a data folder, or of a single shard: each that is missing, and some opened.

    Args:
        msl: tokens of a sequence, where the config names them.
        vsl: documents do not see each other.

    Returns:
        Path, rows and length of each that was opened and holds examples, not plain tokens.

    Raises:
        UserError: of `find_shards`, `open_shard`, `check_masks`, `require_length` and `require_rows`.
    """
    found, shapes = list_recorded(find_shards([path])), []
    for name, recorded in found[:: -(-len(found) // SOME)]:
        file, data = open_shard(name)
        with file:
            check_masks(name, data, recorded)
            require_length(name, data.shape, msl)
            require_rows(name, data.shape[1] if data.ndim == 3 else 0, vsl)
            if data.ndim == 3:
                shapes.append((name, *data.shape[1:]))
    return shapes


def require_length(path: str, shape: Sequence[int], msl: int | None) -> None:
    """Refuse a shard whose sequences are not of `msl` tokens, and plain tokens that nothing says how to cut.

    Raises:
        UserError: names both lengths.
    """
    if len(shape) == 1 and msl is None:
        raise UserError(f"{path}: is a corpus of plain tokens; give max_sequence_length to cut it")
    if len(shape) == 3 and msl is not None and shape[2] != msl:
        raise UserError(f"{path}: sequences of {shape[2]} tokens, but max_sequence_length is {msl}")


def count_examples(shape: Sequence[int], msl: int | None) -> int | None:
    """Examples of a shard of that shape, or those that its plain tokens are cut into; None where `msl` is missing."""
    if len(shape) == 3:
        return shape[0]
    return max(0, (shape[0] - 1) // msl) if msl else None


def require_rows(path: str, rows: int, vsl: bool) -> None:
    """Refuse a shard that does not say where its documents begin, if they are to be kept apart.

    Raises:
        UserError: with what packs such shards.
    """
    if vsl and rows != len(f.VSL_ROWS):
        raise UserError(f"{path}: use_vsl needs attention_span and position_ids rows; pack with --objective vsl")


def require_agreement(shards: Sequence[tuple[str, int, int]]) -> None:
    """Refuse shards of one run that differ in rows or in length.

    Args:
        shards: path, rows and length of each.

    Raises:
        UserError: names the first that differs from the first of all.
    """
    for path, rows, msl in shards[1:]:
        if (rows, msl) != shards[0][1:]:
            raise UserError(
                f"{path}: [{rows}, {msl}] but {shards[0][0]}: [{shards[0][1]}, {shards[0][2]}]; "
                "shards of one run must agree in rows and sequence length"
            )


def take_stamp(path: str) -> Stamp:
    """What changes when a file is replaced or written to.

    Raises:
        UserError: there is no such file.
    """
    try:
        found = os.stat(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be opened ({e.strerror})") from None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


def inspect_shards(path: str, msl: int | None = None, recorded: Recorded = UNRECORDED) -> Shard:
    """A shard's shape, with everything checked that can be checked without reading its examples.

    Raises:
        UserError: of `open_shard`; no examples, another number than is recorded, or of another length than `msl`; no
            place counts for the loss.
    """
    stamp = take_stamp(path)
    file, data = open_shard(path)
    with file:
        shape = data.shape
        check_masks(path, data, recorded)
    require_length(path, shape, msl)
    if len(shape) == 1 and msl is not None:
        return _nonempty(Shard(path, count_examples(shape, msl) or 0, msl, 0, recorded, stamp))
    if recorded.n_examples not in (None, shape[0]):
        raise UserError(
            f"{path}: holds {shape[0]:,} examples, its {f.MANIFEST} records {recorded.n_examples:,}; restore this shard"
        )
    return _nonempty(Shard(path, shape[0], shape[2], shape[1], recorded, stamp))


def _nonempty(shard: Shard) -> Shard:
    if shard.examples == 0 or shard.msl == 0:
        raise UserError(f"{shard.path}: holds no example")
    return shard
