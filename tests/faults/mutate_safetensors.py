"""safetensors files whose header and data disagree."""

import json
import struct
from random import Random

from tests.faults.mutate_json import mutate_json

DTYPES = ("F32", "F16", "BF16", "F64", "I32", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", "", 1)


def split(data: bytes) -> tuple[dict, bytes]:
    """The header of a safetensors file, and its data."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def mutate_safetensors(data: bytes, draw: Random) -> bytes:
    """A file that differs from `data` in its header, or in how header and data fit."""
    for _ in range(100):
        found = _mutate(data, draw)
        if found != data:
            return found
    raise AssertionError("no mutant found")


def _mutate(data: bytes, draw: Random) -> bytes:
    header, body = split(data)
    names = [n for n in header if n != "__metadata__"]
    name, other = draw.choice(names), draw.choice(names)
    about = header[name]
    kind = draw.randrange(10)
    if kind == 0:
        lengths = (0, 1, 8, len(data), len(data) * 2, 2**31, 2**62, 2**64 - 1, 100 << 20)
        return struct.pack("<Q", draw.choice(lengths)) + data[8:]
    if kind == 1:
        return join(mutate_json(json.dumps(header).encode(), draw), body)
    if kind == 2:
        about["dtype"] = draw.choice(DTYPES)
    elif kind == 3:
        n = draw.choice((-1, 0, 1, 2**31, 2**62, 2**64, 3, 1.5, "2", None))
        about["shape"] = draw.choice(([n], [n, n], [], [*about["shape"], 1], about["shape"][::-1], "x"))
    elif kind == 4:
        a, b = about["data_offsets"]
        about["data_offsets"] = draw.choice(
            ([b, a], [a, b + 4], [a + 4, b], [0, len(body)], [-4, b], [a, 2**63], [a], [], [a, a])
        )
    elif kind == 5:
        about["data_offsets"] = header[other]["data_offsets"]
    elif kind == 6:  # another name, often one that the model has not
        header[draw.choice((name + "x", "", "é", "x" * 5000, "__metadata__", "../x", name.upper()))] = header.pop(name)
    elif kind == 7:  # a tensor is gone, with its data or without
        a, b = header.pop(name)["data_offsets"]
        if draw.random() < 0.5:
            body = body[:a] + body[b:]
            for of in header.values():
                if "data_offsets" in of and of["data_offsets"][0] >= b:
                    of["data_offsets"] = [x - (b - a) for x in of["data_offsets"]]
    elif kind == 8:
        header["__metadata__"] = draw.choice(({}, {"format": "pt"}, {"format": 1}, [], None, {"x": "y" * 10000}))
    else:
        body = draw.choice((body + bytes(4), body[:-4], b"", body[::-1], bytes(len(body)), b"\xff" * len(body)))
    return join(header, body)
