"""HDF5 files that are sound as HDF5 and lie: shards and .mdl checkpoints, changed through h5py in memory."""

import io
import json
from random import Random

import h5py
import hdf5plugin  # noqa: F401  the filter of .mdl's datasets
import numpy as np

from tests.faults.mutate_json import ODD, mutate_tree

DTYPES = ("i1", "u1", "i2", "u2", ">i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "S4", "?", "V7")
SHAPES = (
    (),
    (0,),
    (1,),
    (0, 3, 8),
    (1, 3, 8),
    (2, 0, 8),
    (2, 3, 0),
    (2, 4, 8),
    (2, 5, 8),
    (2, 3, 7),
    (2, 3, 8, 1),
    (48,),
    (7,),
)
HUGE = ((10**12, 3, 8), (2**40,), (10**6, 3, 2**20), (1, 3, 2**31), (2**62, 3, 8))
NUMBERS = (0, -1, 1, 5, 2**31 - 1, 2**31, 2**40, -(2**31))


def edit(data: bytes, change) -> bytes:
    """The bytes of an HDF5 file after `change(file)`."""
    held = io.BytesIO(data)
    with h5py.File(held, "r+") as file:
        change(file)
    return held.getvalue()


def mutate_shard(data: bytes, draw: Random, outside: str) -> bytes:
    """A shard that differs in what it declares or how it is stored.

    Args:
        outside: a file that links and external data point to.
    """
    while True:
        found = edit(data, lambda file: _change(file, draw, outside))
        if found != data:
            return found


def _change(file: h5py.File, draw: Random, outside: str) -> None:
    rows = file["data"][...]
    kind = draw.randrange(15)
    if kind == 0:
        file.attrs["n_examples"] = draw.choice(
            (*NUMBERS, 2.5, float("nan"), "3", b"x", np.arange(3), np.bool_(True), h5py.Empty("i4"))
        )
        return
    if kind == 1:  # ids out of range, in one place or in all
        where = tuple(draw.randrange(n) for n in rows.shape)
        file["data"][where] = np.int64(draw.choice(NUMBERS)).astype(rows.dtype)
        return
    if kind == 2 and rows.ndim == 3:  # an example of zeros, a mask of other values, labels shifted otherwise
        n = draw.randrange(len(rows))
        rows[n] = draw.choice((np.zeros_like(rows[n]), np.full_like(rows[n], 1), np.roll(rows[n], 1, axis=1)))
        file["data"][...] = rows
        return
    if kind == 3:
        file.attrs[draw.choice(("x", "é", "n_examples\0x", "dtype"))] = draw.choice(
            (1, "x" * 40000, np.zeros(5000), "\udcff"[:0] + "é")
        )
        return
    del file["data"]
    if kind == 4:
        dtype = draw.choice(DTYPES)
        file.create_dataset("data", rows.shape, dtype=dtype)
        if np.dtype(dtype).kind in "iuf":
            file["data"][...] = rows.astype(dtype)
    elif kind == 5:
        shape = draw.choice(SHAPES)
        file.create_dataset("data", data=np.resize(rows, shape).astype("i4"))
    elif kind == 6:  # declares much, stores nothing
        shape = draw.choice(HUGE)
        file.create_dataset(
            "data", shape, "i4", chunks=tuple(min(n, 8) for n in shape), fillvalue=draw.choice((0, 1, None))
        )
        file.attrs["n_examples"] = shape[0]
    elif kind == 7:  # chunks of which some were never written
        file.create_dataset(
            "data", rows.shape, rows.dtype, chunks=(1, *rows.shape[1:]), compression=draw.choice((None, "gzip"))
        )
        for n in range(len(rows)):
            if draw.random() < 0.7:
                file["data"][n] = rows[n]
    elif kind == 8:
        links = (
            h5py.SoftLink("/data"),
            h5py.SoftLink("/nowhere"),
            h5py.ExternalLink(outside, "data"),
            h5py.ExternalLink("/dev/zero", "x"),
        )
        file["data"] = draw.choice(links)
    elif kind == 9:
        layout = h5py.VirtualLayout(rows.shape, rows.dtype)
        layout[...] = h5py.VirtualSource(outside, "data", shape=rows.shape)
        file.create_virtual_dataset("data", layout)
    elif kind == 10:
        file.create_dataset("data", rows.shape, rows.dtype, external=[(outside, 0, rows.nbytes)])
    elif kind == 11:
        options = (
            {"compression": "lzf"},
            {"shuffle": True},
            {"fletcher32": True},
            {"scaleoffset": 4},
            {"compression": "gzip", "shuffle": True},
        )
        file.create_dataset("data", data=rows, chunks=(1, *rows.shape[1:]), **draw.choice(options))
    elif kind == 12:  # a filter that nobody has
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_chunk((1, *rows.shape[1:]))
        create.set_obj_track_times(False)
        create.set_filter(draw.choice((300, 32004, 40000)), h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(file.id, b"data", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple(rows.shape), create)
    elif kind == 13:
        file.create_group("data").create_dataset("data", data=rows)
    else:
        other = draw.choice(("Data", "data ", "x", "data/x", "input_ids"))
        file.create_dataset(other, data=rows)


def mutate_mdl(data: bytes, draw: Random, outside: str) -> bytes:
    """A .mdl checkpoint that differs in its metadata, its datasets or its attributes."""
    while True:
        found = edit(data, lambda file: _change_mdl(file, draw, outside))
        if found != data:
            return found


def _change_mdl(file: h5py.File, draw: Random, outside: str) -> None:
    kind = draw.randrange(10)
    names = sorted(map(str, file.attrs))
    if kind < 5:  # the JSON of one leaf
        name = draw.choice(names)
        text = file.attrs[name]
        try:
            new = (
                json.dumps(mutate_tree(json.loads(text), draw))[:50000]
                if isinstance(text, str)
                else draw.choice(ODD[:17])
            )
        except ValueError:
            new = draw.choice(("", "x", "[]", "{"))
        try:
            file.attrs[name] = new if new is not None else ""
        except (TypeError, ValueError, OSError, OverflowError):
            file.attrs[name] = "x"
        return
    if kind == 5:
        del file.attrs[draw.choice(names)]
        return
    if kind == 6:
        file.attrs[draw.choice(("__version__", "__SUCCESS__", "x.__metadata__", "model.x.__metadata__"))] = draw.choice(
            ("x", -1.0, float("nan"), 0.1, 0.4, 99.0, "{}", "null", False, 2**60)
        )
        return
    datasets: list[str] = []
    file.visit(lambda n: datasets.append(n) if isinstance(file[n], h5py.Dataset) else None)
    name = draw.choice(sorted(datasets))
    values = file[name][...]
    del file[name]
    if kind == 7:
        file[name] = draw.choice((h5py.ExternalLink(outside, "data"), h5py.SoftLink("/x"), h5py.SoftLink(f"/{name}")))
    elif kind == 8:
        shape = draw.choice(((), (0,), (1,), (2**40,), (10**6, 10**6), values.shape[::-1], (*values.shape, 1)))
        file.create_dataset(
            name,
            shape,
            draw.choice(("f4", "i8", "S3", values.dtype)),
            chunks=True if shape and 0 not in shape else None,
        )
    elif draw.random() < 0.5:
        file.create_dataset(
            name,
            data=np.full_like(values, draw.choice((np.nan, np.inf, 1e30))) if values.dtype.kind == "f" else values + 1,
        )
