"""Reading: gzip in all its shapes, and damage that must not go unnoticed."""

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing import streams
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
