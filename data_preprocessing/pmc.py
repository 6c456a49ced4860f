"""PMC full text (JATS): loose NXML files, or tar packages that are streamed and never extracted."""

import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from lxml import etree

from data_preprocessing import jats, streams
from data_preprocessing.config import TextPolicy
from data_preprocessing.markup import hardened_parser
from data_preprocessing.records import Document
from modelzoo.config.errors import UserError

MAX_ARTICLE = 128 << 20  # bytes of one article's XML
_ARTICLE_NAMES = (".nxml", ".xml")
_SUBSET = re.compile(rb"<!DOCTYPE[^>\[]*\[")


def documents(path: str, policy: TextPolicy, max_bytes: int, unreadable: str = "refuse") -> Iterator[Document]:
    """Every article of one file or package, in order. `unreadable`: refuse the input, or count such articles.

    Raises:
        UserError: not JATS, damaged, or hostile; the message names the file and the member.
    """
    chunks = streams.unpacked(path, max_bytes)
    if path.lower().endswith((".tar", ".tar.gz", ".tgz")):
        members = _members(chunks, path)
    else:
        members = [("", _whole(chunks, path))]
    for member, data in members:
        name = f"{path}:{member}" if member else path
        try:
            yield from articles(data, name, member or os.path.basename(path), policy)
        except UserError:
            if unreadable == "refuse":
                raise
            yield Document(key=f"unreadable:{member or os.path.basename(path)}", source=member, kinds=("unreadable",))


def articles(data: bytes, name: str, member: str, policy: TextPolicy) -> Iterator[Document]:
    """The articles of one XML file (usually one; an efetch article set has many)."""
    data = b"".join(streams.utf8(iter([data]), name))
    if _SUBSET.search(data[: 1 << 16]):
        raise UserError(f"{name}: its DOCTYPE declares entities of its own; refused (PMC's files never do)")
    parser = hardened_parser(remove_comments=True, remove_pis=True, encoding="utf-8")
    try:
        root = etree.fromstring(data, parser)
        found = [root] if etree.QName(root).localname == "article" else list(root.iter("{*}article"))
        if not found:
            raise UserError(f"{name}: no JATS article in it (root <{etree.QName(root).localname}>)")
        for k, article in enumerate(found):
            yield jats.document(article, policy, member if len(found) == 1 else f"{member}#{k + 1}")
    except (etree.XMLSyntaxError, ValueError) as e:
        raise UserError(f"{name}: broken XML: {e}; fetch the file again, or pass --set unreadable=drop") from None


def _whole(chunks: Iterator[bytes], path: str) -> bytes:
    parts, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_ARTICLE:
            raise UserError(f"{path}: larger than {MAX_ARTICLE >> 20} MB unpacked; refused as an article")
        parts.append(chunk)
    return b"".join(parts)


def _members(chunks: Iterator[bytes], path: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the articles of a tar stream. Nothing is written to disk, so no member can land anywhere."""
    try:
        reader: Any = _Reader(chunks)  # a stream's archive calls `read` alone
        with tarfile.open(fileobj=reader, mode="r|", errorlevel=2) as archive:
            for info in archive:
                parts = info.name.replace("\\", "/").split("/")
                if info.name.startswith("/") or ".." in parts:
                    raise UserError(f"{path}: the member {info.name!r} points out of the package; refused")
                if info.isdir():
                    continue
                if not info.isreg():
                    raise UserError(f"{path}: the member {info.name!r} is a link or device; refused")
                if not info.name.lower().endswith(_ARTICLE_NAMES):
                    continue
                if info.size > MAX_ARTICLE:
                    raise UserError(f"{path}: the member {info.name!r} is larger than {MAX_ARTICLE >> 20} MB; refused")
                member = archive.extractfile(info)
                assert member is not None  # of a regular file
                yield info.name, member.read()
    except (tarfile.TarError, EOFError) as e:
        raise UserError(f"{path}: not a readable tar package ({e}); fetch the file again") from None


class _Reader:
    """An iterator of bytes as a file object that tarfile can stream."""

    def __init__(self, chunks: Iterator[bytes]):
        self.chunks, self.buffer = chunks, b""

    def read(self, size: int) -> bytes:
        while len(self.buffer) < size:
            chunk = next(self.chunks, b"")
            if not chunk:
                break
            self.buffer += chunk
        out, self.buffer = self.buffer[:size], self.buffer[size:]
        return out
