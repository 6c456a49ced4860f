"""A data folder as it lies on the disk: its shards, opened with every check, and its manifest. No torch.

Anyone may have written a shard: nothing is followed out of its file, and no shape is believed that it does not store.
"""

import contextlib
import json
import math
import os

from modelzoo.config.errors import UserError
from modelzoo.data import format as f

MAX_CHUNK = 1 << 30  # bytes; HDF5 unpacks a chunk at once
MAX_RATIO, RATIO_SLACK = 2000, 1 << 20  # unpacked to stored bytes; small files may pass it


def list_shards(folder: str) -> list[str]:
    """Paths of the shards in a folder, sorted by name. Hidden files are none.

    Raises:
        UserError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such data folder; make it with `python -m data_preprocessing`, or give another")
    names = sorted(n for n in os.listdir(folder) if n.endswith(f.SHARD_SUFFIXES) and not n.startswith("."))
    return [os.path.join(folder, n) for n in names]


def open_shard(path: str):
    """Open a shard and check all that can be checked without reading its examples.

    Returns:
        (h5py.File, h5py.Dataset): the caller closes the file. The dataset is [n, 3 or 5, msl] or [tokens] of integers.

    Raises:
        UserError: truncated, no HDF5, links or storage that lead out of the file, wrong rank, rows or type, or sizes
            that cannot be.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
        try:
            data = _dataset(path, file)
            _check_shape(path, file, data)
        except BaseException:
            file.close()
            raise
    except (OSError, KeyError, RuntimeError) as e:
        if number := getattr(e, "errno", None):
            raise UserError(f"{path}: cannot be opened ({os.strerror(number)})") from None
        reason = "truncated" if "truncated" in str(e) else "not a readable HDF5 file"
        raise UserError(f"{path}: {reason}; make this shard again") from None
    return file, data


def _dataset(path: str, file):
    import h5py

    link = file.get(f.DATASET, getlink=True)
    if not isinstance(link, h5py.HardLink):
        found = f"keys: {', '.join(file) or 'none'}" if link is None else "a link to elsewhere is refused"
        raise UserError(f"{path}: has no dataset '{f.DATASET}' of its own ({found})")
    data = file[f.DATASET]
    if not isinstance(data, h5py.Dataset):
        raise UserError(f"{path}: '{f.DATASET}' is no dataset; not a Model Zoo shard")
    if data.external or data.is_virtual:
        raise UserError(f"{path}: '{f.DATASET}' keeps its values in other files; external and virtual data is refused")
    filters = data.id.get_create_plist()
    if not all(h5py.h5z.filter_avail(filters.get_filter(i)[0]) for i in range(filters.get_nfilters())):
        with contextlib.suppress(ImportError):  # without it, reading an example names what is missing
            import hdf5plugin  # noqa: F401  (Model Zoo's lz4 and others)
    return data


def _check_shape(path: str, file, data) -> None:
    shape, kind = data.shape, data.dtype
    if kind.kind not in "iu":
        raise UserError(f"{path}: '{f.DATASET}' holds {kind}, not integers")
    if len(shape) != 1 and (len(shape) != 3 or shape[1] not in (len(f.ROWS), len(f.VSL_ROWS))):
        raise UserError(
            f"{path}: '{f.DATASET}' is {list(shape)}; shards are [n, {len(f.ROWS)} or {len(f.VSL_ROWS)}, msl] or "
            "[tokens]"
        )
    if data.chunks and math.prod(data.chunks) * kind.itemsize > MAX_CHUNK:
        raise UserError(f"{path}: chunks of {data.chunks} are over 1 GiB; refused")
    # An empty or tiny file can declare any shape: HDF5 then invents fill values for what was never stored.
    stored, size = data.id.get_storage_size(), math.prod(shape) * kind.itemsize
    if size > RATIO_SLACK and size > MAX_RATIO * max(stored, 1):
        raise UserError(f"{path}: declares {size / 1e6:.0f} MB but stores {stored} bytes; refused")
    declared = file.attrs.get(f.N_EXAMPLES)
    if declared is not None and len(shape) == 3 and int(declared) != shape[0]:
        raise UserError(f"{path}: declares n_examples = {declared} but holds {shape[0]}; make this shard again")


def read_manifest(folder: str, strict: bool = True) -> dict:
    """The manifest of a data folder; empty where there is none.

    Args:
        strict: False takes one that cannot be read for none, where the manifest is only printed.

    Raises:
        UserError: it cannot be read, or is no JSON object.
    """
    path = os.path.join(folder, f.MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as e:
        if strict:
            raise UserError(f"{path}: cannot be read ({str(e)[:80]})") from None
        return {}
    return found
