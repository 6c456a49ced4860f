"""Reading: gzip in all its shapes, and damage that must not go unnoticed."""

import bz2
import gzip
import lzma
import random
import sys
import zlib
from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.inputs import packings, streams
from modelzoo.config.errors import UserError


def read(path, limit=1 << 40) -> bytes:
    return b"".join(streams.unpacked(str(path), limit))


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=4), st.integers(0, 600))
def test_any_gzip_is_what_the_standard_library_reads(tmp_path_factory, members, padding):
    path = tmp_path_factory.mktemp("gz") / "a.gz"
    path.write_bytes(b"".join(map(gzip.compress, members)) + bytes(padding))
    assert read(path) == b"".join(members)


def test_large_members_and_plain_files(tmp_path):
    data = bytes(range(256)) * 50_000
    (tmp_path / "a.gz").write_bytes(gzip.compress(data) + gzip.compress(b"tail"))
    (tmp_path / "b").write_bytes(data)
    assert read(tmp_path / "a.gz") == data + b"tail" and read(tmp_path / "b") == data


@pytest.mark.parametrize("cut", [1, 8, 9, 40, 200])
def test_truncated_gzip_is_refused_by_name(tmp_path, cut):
    path = tmp_path / "short.xml.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 4, mtime=0)[:-cut])
    with pytest.raises(UserError, match=r"short.xml.gz"):
        read(path)


@pytest.mark.parametrize("where", [12, 100, -6])
def test_flipped_bytes_are_refused(tmp_path, where):
    data = bytearray(gzip.compress(b"some text " * 500 + bytes(range(256)), mtime=0))
    data[where] ^= 0x40
    (tmp_path / "bad.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"bad.gz"):
        read(tmp_path / "bad.gz")


def test_garbage_after_the_stream(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"x") + b"garbage")
    with pytest.raises(UserError, match="after the end"):
        read(tmp_path / "a.gz")


def test_bomb_is_refused_long_before_its_end(tmp_path):
    packer = zlib.compressobj(9, wbits=31)
    with open(tmp_path / "bomb.gz", "wb") as f:
        for _ in range(600):
            f.write(packer.compress(bytes(1 << 20)))
        f.write(packer.flush())
    seen = 0
    with pytest.raises(UserError, match="gzip bomb"):
        for chunk in streams.unpacked(str(tmp_path / "bomb.gz"), 1 << 40):
            seen += len(chunk)
    assert seen < 200 << 20


def test_limit(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(1000)))
    with pytest.raises(UserError, match="unpacks to over"):
        read(tmp_path / "a.gz", 500)


def test_missing_file():
    with pytest.raises(UserError, match=r"no/such.gz"):
        read("no/such.gz")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "utf-8-sig"])
def test_declared_encodings(encoding):
    text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?><a>é ü</a>'
    data = text.encode(encoding)
    chunks = [data[i : i + 7] for i in range(0, len(data), 7)]
    first = b"".join(chunks[:20])
    assert b"".join(streams.utf8(iter([first, *chunks[20:]]), "f")).decode().endswith("<a>é ü</a>")


def test_unknown_encoding():
    with pytest.raises(UserError, match="klingon"):
        list(streams.utf8(iter([b'<?xml version="1.0" encoding="klingon"?><a/>']), "f"))


zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
PACK = {
    "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
    "zst": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}),
}  # fmt: skip
NOISE = bytes(random.Random(1).randbytes(5000))


@pytest.mark.parametrize("kind", PACK)
def test_each_packing_is_read_in_all_its_shapes_and_damage_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(streams, "CHUNK", 700)
    pack, path = PACK[kind], tmp_path / "a.txt"  # known by its bytes, not by its name
    members = [b"", b"some text " * 500, NOISE, b"x"]
    whole = b"".join(map(pack, members))
    skippable = b"\x50\x2a\x4d\x18" + (900).to_bytes(4, "little") + bytes(900) if kind == "zst" else b""
    for data in (whole, skippable + whole, whole + bytes(1600)):
        path.write_bytes(data)
        assert read(path) == b"".join(members)
    one = pack(b"some text " * 500 + NOISE)
    flipped = bytearray(one)
    flipped[len(one) // 2] ^= 0x40
    for damaged in (one[:-1], one[: len(one) // 2], one[:9], bytes(flipped), one + b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.txt: "):
            read(path)


@pytest.mark.parametrize("kind", PACK)
def test_a_bomb_of_each_packing_is_refused_early(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(streams, "CHUNK", 1 << 16)
    monkeypatch.setattr(streams, "RATIO_SLACK", 1 << 20)
    path = tmp_path / "bomb"
    path.write_bytes(PACK[kind](bytes(16 << 20)))
    seen = 0
    with pytest.raises(UserError, match="refused as a"):
        for chunk in streams.unpacked(str(path), 1 << 40):
            assert len(chunk) <= 1 << 20
            seen += len(chunk)
    assert seen < 8 << 20


def test_windows_that_would_fill_the_memory_are_refused(tmp_path):
    """The header of a frame asks for 2 GiB, a block for a dictionary of 1.5 GiB."""
    data = zstd.compress(NOISE, options={zstd.CompressionParameter.enable_long_distance_matching: 1})
    frame = data[:4] + bytes([data[4] & ~0x20 & 0x1F]) + bytes([21 << 3])  # no single segment; window 2^31
    (tmp_path / "a.zst").write_bytes(frame + data[7:])
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4096}]
    xz = bytearray(lzma.compress(NOISE, filters=filters))
    at = xz.index(b"\x21\x01", 12) + 2  # LZMA2's only property: the size of its dictionary
    xz[at] = 39
    size = (xz[12] + 1) * 4
    xz[12 + size - 4 : 12 + size] = zlib.crc32(xz[12 : 12 + size - 4]).to_bytes(4, "little")
    (tmp_path / "a.xz").write_bytes(xz)
    for name in ("a.zst", "a.xz"):
        with pytest.raises(UserError, match=rf"{name}: needs over 256 MB to be unpacked"):
            read(tmp_path / name)


def test_many_small_members_are_read_in_linear_time(tmp_path, monkeypatch):
    """What is left of a chunk is not copied at every member's end."""
    copied = 0
    real = packings.Packing.unused_data.fget

    def count(self):
        nonlocal copied
        copied += len(real(self))
        return real(self)

    monkeypatch.setattr(packings.Packing, "unused_data", property(count))
    for kind in PACK:
        copied, (path, member) = 0, (tmp_path / kind, PACK[kind](b"x"))
        path.write_bytes(member * 2000)
        assert read(path) == b"x" * 2000
        assert copied < 2000 * 40 * streams.WINDOW
