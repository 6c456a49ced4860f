"""Packages give all of their articles or are refused: nothing is lost in silence, whatever is damaged."""

import bz2
import gzip
import io
import lzma
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import TextPolicy
from data_preprocessing.inputs import tar
from data_preprocessing.sources import pmc
from modelzoo.config.errors import UserError

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def pack(members: dict[str, bytes], form: int = tarfile.PAX_FORMAT, **header) -> bytes:
    """A tar archive as the standard library writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in header.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(data: bytes, step: int = 4096) -> list[tuple[str, bytes]]:
    chunks = (data[i : i + step] for i in range(0, len(data), step))
    return list(tar.read_files(chunks, "p.tar", lambda name: True, 1 << 20))


names = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=150).filter(
    lambda name: name not in (".", "..")
)
contents = st.dictionaries(names, st.binary(max_size=1500), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(contents, st.sampled_from(FORMATS[1:]), st.integers(1, 3), st.integers(1, 1500))
def test_every_member_of_whole_archives_is_read(members, form, joined, step):
    data = pack(members, form)
    assert read(data * joined, step) == list(members.items()) * joined


@pytest.mark.parametrize("form", FORMATS)
def test_names_in_every_format(form):
    members = {"a" * 60 + "/" + "b" * 90 + ".nxml": b"1", "c.nxml": b""}
    assert read(pack(members, form)) == list(members.items())


def test_the_shortest_end_mark_is_enough():
    """Go, libarchive and others write two zero blocks and fill no record."""
    members = {"a.nxml": b"1" * 700, "b.nxml": b"2"}
    short = pack(members, tarfile.GNU_FORMAT)[: 5 * 512] + bytes(1024)
    assert read(short) == list(members.items()) and read(short * 3) == list(members.items()) * 3


MEMBERS = {f"PMC{k}/article.nxml": bytes([65 + k]) * (300 + 700 * k**3) for k in range(4)}


@pytest.mark.parametrize("form", FORMATS)
def test_every_cut_is_refused(form):
    data = pack(MEMBERS, form)
    used = len(data.rstrip(b"\0"))
    end = -(-used // 512) * 512 + 1024
    for size in [*range(0, end, 97), *range(0, end, 512)]:
        with pytest.raises(UserError, match=r"p\.tar: not a readable tar package \("):
            read(data[:size])
    assert read(data[:end]) == list(MEMBERS.items())


@pytest.mark.parametrize("form", FORMATS)
def test_no_damage_to_a_header_loses_a_member(form):
    data = pack(MEMBERS, form)
    headers, at = [], 0  # a last member that is zeros throughout would be no damage that can be seen
    for content in MEMBERS.values():
        headers.append(at)
        at += 512 + -(-len(content) // 512) * 512
    for header in headers:
        for change in (bytes(512), b"x" * 512, data[header + 512 : header + 1024], bytes(1024), bytes(4096)):
            damaged = data[:header] + change + data[header + len(change) :]
            try:
                found = read(damaged)
            except UserError:
                continue
            assert len(found) == len(MEMBERS), (header, change[:1])
        for byte in range(header, header + 512, 7):
            damaged = bytearray(data)
            damaged[byte] ^= 4
            with pytest.raises(UserError, match=r"at byte [\d,]+"):
                read(bytes(damaged))


def test_what_follows_the_end_is_zeros_or_an_archive():
    data = pack(MEMBERS)
    assert read(data + bytes(777)) == list(MEMBERS.items())
    for more in (b"garbage", bytes(512) + b"x" * 512, data[512:1024], data[:512]):
        with pytest.raises(UserError, match=r"p.tar: not a readable tar package"):
            read(data + more)
    with pytest.raises(UserError, match="hole"):  # zeros that no writer leaves between two archives
        read(data[: 5 * 512] + bytes(1536) + data)


def block(name: bytes, size: bytes = b"", kind: bytes = b"0", more: bytes = b"") -> bytes:
    """A header with any fields and a right checksum."""
    head = name.ljust(100, b"\0") + bytes(24) + size.ljust(12, b"\0") + bytes(12) + b" " * 8 + kind
    head = (head.ljust(257, b"\0") + b"ustar\0" + b"00" + more).ljust(512, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def pax(text: bytes, kind: bytes = b"x") -> bytes:
    return block(b"pax", b"%o" % len(text), kind) + text.ljust(-(-len(text) // 512) * 512, b"\0")


END = bytes(1024)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pax(b"22 GNU.sparse.major=1\n") + block(b"a.nxml", b"1000") + b"9999999999\n".ljust(512), "sparse"),
        (block(b"a.nxml", b"1000", b"S", b"x" * 240), "sparse"),
        (pax(b"0 path=a\n" * 5) + block(b"a.nxml") + END, "pax header"),
        (pax(b"99999 path=a\n") + block(b"a.nxml") + END, "pax header"),
        (pax(b"9 path=a\n", b"g") + block(b"a.nxml") + END, "pax header"),
        (pax(b"13 size=-100\n") + block(b"a.nxml") + END, "no number"),
        (pax(b"9 path=a\n") + END, "without a member"),
        (block(b"x", b"77777777777", b"x"), "attributes of over"),
        (block(b"a.nxml", b"\xff" * 12) + END, "size is no number"),
        (block(b"a.nxml", b"0009\xb2") + END, "size is no number"),
        (block(b"a.nxml", b"\x80" + b"\xff" * 11) + END, "larger than 1 MB"),
        (block(b"a.nxml", b"77777777"), "larger than 1 MB"),
        (block(b"a.nxml", b"", b"Q") + END, "unknown kind"),
        (pax(b"19 path=../evil.xml\n"[:-1] + b"\n") + block(b"a.nxml") + END, "points out|pax header"),
        (block(b"..\\evil.xml") + END, "points out"),
        (block(b"a.nxml", b"", b"2") + END, "link or device"),
        (bytes(10240), "no members"),
        (b"", "without the two zero blocks"),
        (bz2.compress(pack(MEMBERS)), "packed with bzip2"),
        (lzma.compress(pack(MEMBERS)), "packed with xz"),
    ],
)
def test_hostile_headers_are_refused_at_once(data, message):
    with pytest.raises(UserError, match=f"p.tar: .*({message})"):
        read(data)


def test_a_name_that_is_not_text_is_shown_as_it_can_be():
    ((name, _),) = read(block(b"caf\xe9.nxml") + END)
    assert name == "caf\\xe9.nxml"


ARTICLE = (
    b"<article><front><article-meta><article-id pub-id-type='pmcid'>PMC%d</article-id></article-meta></front>"
    b"<body><p>Text.</p></body></article>"
)


@pytest.mark.parametrize("pad", [0, 700])
def test_joined_packages_give_every_article(tmp_path, pad):
    parts = [pack({f"PMC{k}.nxml": ARTICLE % k for k in range(n, n + 3)}) for n in (1, 4, 7)]
    (tmp_path / "a.tar.gz").write_bytes(b"".join(gzip.compress(p) + bytes(pad) for p in parts))
    (tmp_path / "b.tar").write_bytes(b"".join(parts))
    for name in ("a.tar.gz", "b.tar"):
        found = list(pmc.documents(str(tmp_path / name), TextPolicy(), 1 << 30))
        assert [d.key for d in found] == [f"PMC{k}" for k in range(1, 10)]


@pytest.mark.parametrize("joined", [1, 2])
def test_a_gzip_package_with_any_damage_is_refused(tmp_path, joined):
    whole = gzip.compress(pack({f"PMC{k}.nxml": ARTICLE % k for k in range(1, 9)}), mtime=0)
    for at in range(10, len(whole), 29):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :]):
            path = tmp_path / "p.tar.gz"
            path.write_bytes(whole * (joined - 1) + damaged)
            with pytest.raises(UserError, match=r"p.tar.gz"):
                list(pmc.documents(str(path), TextPolicy(), 1 << 30, "drop"))


def test_articles_without_an_id_of_two_packages_are_two(tmp_path):
    article = ARTICLE.replace(b"PMC%d", b"")
    keys = set()
    for name in ("x.tar", "y.tar"):
        (tmp_path / name).write_bytes(pack({"article.nxml": article}))
        keys |= {d.key for d in pmc.documents(str(tmp_path / name), TextPolicy(), 1 << 30, name=name)}
    assert len(keys) == 2
