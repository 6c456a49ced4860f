"""A data folder as it lies on the disk: its shards, opened with every check, and its manifest. No torch.

Anyone may have written a shard: nothing is followed out of its file, and no shape is believed that it does not store.
"""

import math
import os
from typing import Any, NamedTuple

from modelzoo.config.errors import UserError
from modelzoo.data import format as f
from modelzoo.data import storage
from modelzoo.data.side_files import read_manifest_file
from modelzoo.folders import SHARD_SUFFIXES
from modelzoo.reading import exists


class Recorded(NamedTuple):
    """What a manifest records of a shard."""

    file: str
    sha256: str | None  # of the file
    data_sha256: str | None  # of its values
    n_examples: int | None
    loss_tokens: int | None = None  # places that count for the loss

    @property
    def has_hash(self) -> bool:
        return bool(self.sha256 or self.data_sha256)


UNRECORDED = Recorded("", None, None, None)
NEGATIVE = (
    "-100 is the label by which PyTorch and Hugging Face leave a place out of the loss; here the loss mask (row 1) "
    "does, and labels are ids: set mask[labels < 0] = 0, then labels[labels < 0] = 0"
)


def name_working_folder(path: str) -> str:
    """From where a relative path is looked up, which is another place after a run or a shell has moved."""
    return "" if os.path.isabs(path) else f" in {os.getcwd()}"


def list_shards(folder: str) -> list[str]:
    """Paths of the shards in a folder, sorted by name. Hidden files are none.

    Raises:
        UserError: there is no such folder.
        OSError: it cannot be looked into.
    """
    try:
        found = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder}: no such data folder{name_working_folder(folder)}; make it with "
            "`python -m data_preprocessing`, or give another"
        ) from None
    names = sorted(n for n in found if n.endswith(SHARD_SUFFIXES) and not n.startswith("."))
    return [os.path.join(folder, n) for n in names]


def open_shard(path: str, whole: bool = True):
    """Open a shard and check all that can be checked without reading its examples.

    Args:
        whole: check too that every chunk is stored (`storage.check_storage`); False where that was done before.

    Returns:
        (h5py.File, h5py.Dataset): the caller closes the file. The dataset is [n, 3 or 5, msl] or [tokens] of integers.

    Raises:
        UserError: no regular file, truncated, no HDF5, links or storage that lead out of the file, wrong rank, rows or
            type, sizes that cannot be, or values that are declared and not stored.
    """
    with storage.explaining(path, "not a readable HDF5 file; make this shard again"):
        file = storage.open_file(path)
        try:
            data = storage.find_dataset(path, file, f.DATASET)
            _check_shape(path, file, data)
            if whole:
                storage.check_storage(path, data, _largest_chunk(data))
        except BaseException:
            file.close()
            raise
    return file, data


def check_masks(path: str, data, recorded: Recorded = UNRECORDED) -> None:
    """Refuse a shard in which no place counts for the loss: training on it ends at a loss of 0, and nothing is learnt.

    What a manifest counts is believed. Without one, examples are read until a place counts: the first, nearly always.

    Raises:
        UserError: no place counts, or an example cannot be read.
    """
    if data.ndim != 3 or 0 in data.shape or recorded.loss_tokens:
        return
    if recorded.loss_tokens is None:
        step = max(1, 2**22 // math.prod(data.shape[1:]))
        spans = [(0, 1), (data.shape[0] // 2, 1), *((i, step) for i in range(0, data.shape[0], step))]
        if any(storage.read_values(path, data, i, n, f"example {i}")[:, 1].any() for i, n in spans):
            return
    raise UserError(
        f"{path}: no place of its {data.shape[0]:,} examples counts for the loss: the loss mask (row 1, Model Zoo's "
        "attention_mask) is 0 throughout; write 1 where a label counts, or leave this file out"
    )


def _largest_chunk(data) -> int:
    """Bytes that a chunk may have: this project and Model Zoo make one of each example, however long it is."""
    example = math.prod(data.shape[1:]) * data.dtype.itemsize if data.ndim == 3 else 0
    return max(storage.MAX_CHUNK, example)


def _check_shape(path: str, file, data) -> None:
    shape, kind = data.shape, data.dtype
    if kind.kind not in "iu" or kind.itemsize not in (1, 2, 4, 8):
        raise UserError(f"{path}: '{f.DATASET}' holds {str(kind)[:40]}, not integers")
    if shape is None or len(shape) != 1 and (len(shape) != 3 or shape[1] not in (len(f.ROWS), len(f.VSL_ROWS))):
        raise UserError(
            f"{path}: '{f.DATASET}' is {list(shape or ())}; shards are [n, {len(f.ROWS)} or {len(f.VSL_ROWS)}, msl] or "
            "[tokens]"
        )
    if len(shape) == 3 and shape[2] > f.MAX_MSL:
        raise UserError(f"{path}: sequences of {shape[2]:,} tokens; at most {f.MAX_MSL:,} are taken")
    declared = _read_count(path, file)
    if declared is not None and len(shape) == 3 and declared != shape[0]:
        raise UserError(f"{path}: declares n_examples = {declared} but holds {shape[0]}; make this shard again")


def _read_count(path: str, file) -> int | None:
    """The attribute n_examples, if there is one: a single integer, read only after its type says so."""
    if f.N_EXAMPLES not in file.attrs:
        return None
    about = file.attrs.get_id(f.N_EXAMPLES)
    if about.shape not in ((), (1,)) or about.dtype.kind not in "iu":
        raise UserError(f"{path}: its attribute {f.N_EXAMPLES} is no integer; make this shard again")
    found = file.attrs[f.N_EXAMPLES]
    return int(found[0] if about.shape else found)


def read_manifest(folder: str) -> dict[str, Any]:
    """The manifest of a data folder; empty where there is none.

    Raises:
        UserError: of `side_files.read_manifest_file`.
        OSError: whether there is one cannot be seen.
    """
    path = os.path.join(folder, f.MANIFEST)
    return read_manifest_file(path) if exists(path) else {}


def read_shards(folder: str) -> list[Recorded]:
    """What a folder's manifest records of each shard; none without a manifest.

    Raises:
        UserError: of `read_manifest`.
    """
    return [
        Recorded(s["file"], s.get("sha256"), s.get("data_sha256"), s.get("n_examples"), s.get("loss_tokens"))
        for s in read_manifest(folder).get("shards") or ()
    ]
