"""PMC full text (JATS): loose NXML files, or tar packages that are streamed and never extracted."""

import os
import re
from collections.abc import Iterator

from lxml import etree

from data_preprocessing import jats, streams, tar
from data_preprocessing.config import TextPolicy
from data_preprocessing.markup import hardened_parser
from data_preprocessing.records import Document, unreadable_record
from modelzoo.config.errors import UserError

MAX_ARTICLE = 128 << 20  # bytes of one article's XML
ADVICE = "fetch the file again, or pass --set unreadable=drop"
_ARTICLE_NAMES = (".nxml", ".xml")
_PROLOG = re.compile(rb"(?:\s++|<!--.*?-->|<\?.*?\?>)*+", re.S)
_SUBSET = re.compile(rb"""<!DOCTYPE(?:[^>\["']++|"[^"]*+"|'[^']*+')*+\[""")


def documents(
    path: str, policy: TextPolicy, max_bytes: int, unreadable: str = "refuse", name: str = ""
) -> Iterator[Document]:
    """Every article of one file or package, in order. `unreadable`: refuse the input, or count such articles.

    Args:
        name: of the file, for keys of articles without an id; its base name where it is "".

    Raises:
        UserError: not JATS, damaged, or hostile; the message names the file and the member.
    """
    chunks = streams.unpacked(path, max_bytes)
    if path.lower().endswith((".tar", ".tar.gz", ".tgz")):
        members = tar.read_files(chunks, path, lambda name: name.lower().endswith(_ARTICLE_NAMES), MAX_ARTICLE)
    else:
        members = iter([("", _whole(chunks, path))])
    name = name or os.path.basename(path)
    for member, data in members:
        where = f"{path}:{member}" if member else path
        key = f"{name}:{member}" if member else name
        try:
            yield from articles(data, where, member or os.path.basename(path), policy, unreadable, key)
        except UserError as e:
            if unreadable == "refuse":
                raise
            yield unreadable_record(key, member, str(e).removeprefix(f"{where}: "))


def articles(
    data: bytes, name: str, member: str, policy: TextPolicy, unreadable: str = "refuse", key: str = ""
) -> Iterator[Document]:
    """The articles of one XML file (usually one; an efetch article set has many).

    Args:
        name: of the file, for messages.
        member: what the documents name as their source.
        key: which the key of an article without an id is made of; `member` where it is "".
    """
    data = b"".join(streams.utf8(iter([data]), name))
    prolog = _PROLOG.match(data)
    if prolog and _SUBSET.match(data, prolog.end()):
        raise UserError(f"{name}: its DOCTYPE declares entities of its own; refused (PMC's files never do)")
    parser = hardened_parser(remove_comments=True, remove_pis=True, encoding="utf-8")
    try:
        root = etree.fromstring(data, parser)
        found = [root] if etree.QName(root).localname == "article" else list(root.iter("{*}article"))
        if not found:
            raise UserError(f"{name}: no JATS article in it (root <{etree.QName(root).localname}>)")
    except (etree.XMLSyntaxError, ValueError) as e:
        raise UserError(f"{name}: broken XML: {e}; {ADVICE}") from None
    for k, article in enumerate(found):
        number = "" if len(found) == 1 else f"#{k + 1}"
        try:
            yield jats.document(article, policy, member + number, (key or member) + number)
        except (ValueError, RecursionError) as e:
            why = f"broken XML: {e}" if isinstance(e, ValueError) else "elements are nested too deeply to be read"
            if unreadable == "refuse":
                raise UserError(f"{name}{number}: {why}; {ADVICE}") from None
            yield unreadable_record((key or member) + number, member + number, why)


def _whole(chunks: Iterator[bytes], path: str) -> bytes:
    parts, size = [], 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_ARTICLE:
            raise UserError(f"{path}: larger than {MAX_ARTICLE >> 20} MB unpacked; refused as an article")
        parts.append(chunk)
    return b"".join(parts)
