"""PMC full text (JATS): loose files with one article or many, or tar packages that are streamed and never extracted."""

import codecs
import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice

from lxml import etree

from data_preprocessing.config import TextPolicy
from data_preprocessing.inputs import streams, tar
from data_preprocessing.inputs.listing import is_package, is_wanted
from data_preprocessing.sources import jats
from data_preprocessing.sources.article_set import MAX_ARTICLE, WHOLE, cut
from data_preprocessing.text.document import Document, unreadable_record
from data_preprocessing.text.xml import hardened_parser
from modelzoo.config.errors import UserError

ADVICE = "fetch the file again, or pass --set unreadable=drop"
MAX_TAGS = 4_000_000  # of one article: its tree takes some 200 bytes each
_ARTICLE_NAMES = (".nxml", ".xml")
_PROLOG = re.compile(rb"(?:\s++|<!--.*?-->|<\?.*?\?>)*+", re.S)
_SUBSET = re.compile(rb"""<!DOCTYPE(?:[^>\["']++|"[^"]*+"|'[^']*+')*+\[""")
_ARTICLE = re.compile(rb"<(?:[\w.-]{1,100}:)?article[\s/>]")


def documents(
    path: str,
    policy: TextPolicy,
    max_bytes: int,
    unreadable: str = "refuse",
    name: str = "",
    passed: Counter[str] | None = None,
) -> Iterator[Document]:
    """Every article of one file or package, in order. `unreadable`: refuse the input, or count such articles.

    Args:
        name: of the file, for keys of articles without an id; its base name where it is "".
        passed: counts the members of a package that are not read: "hidden", "other names", and .xml files without an
            article as "no article".

    Raises:
        UserError: not JATS, damaged, or hostile; the message names the file and the member.
    """
    passed = Counter() if passed is None else passed
    chunks = streams.unpacked(path, max_bytes)
    name = name or os.path.basename(path)
    if is_package(path):
        files = tar.read_files(chunks, path, lambda member: is_wanted(member, _ARTICLE_NAMES, passed), MAX_ARTICLE)
    else:
        head = _take(chunks, WHOLE)
        if len(head) > WHOLE:  # damage of a file that is not held in memory ends the job, as a package's does
            text = streams.utf8(chain([head], chunks), path)
            yield from _read(text, path, os.path.basename(name), policy, unreadable, name)
            return
        files = iter([("", head)])
    for member, data in files:
        where, key = (f"{path}:{member}", f"{name}:{member}") if member else (path, name)
        if member and not member.lower().endswith(".nxml") and not _may_hold_article(data):
            passed["no article"] += 1  # a manifest, a supplement
            continue
        try:
            yield from articles(data, where, member or os.path.basename(name), policy, unreadable, key)
        except UserError as e:
            if unreadable == "refuse":
                raise
            yield unreadable_record(key, member, str(e).removeprefix(f"{where}: "))


def _may_hold_article(data: bytes) -> bool:
    return _ARTICLE.search(data) is not None or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _take(chunks: Iterator[bytes], size: int) -> bytes:
    """The first chunks of a file that have more than `size` bytes together, or all of them."""
    parts, held = [], 0
    for chunk in chunks:
        parts.append(chunk)
        held += len(chunk)
        if held > size:
            break
    return b"".join(parts)


def articles(
    data: bytes, name: str, member: str, policy: TextPolicy, unreadable: str = "refuse", key: str = ""
) -> Iterator[Document]:
    """The articles of one XML file (usually one; an efetch article set has many).

    Args:
        name: of the file, for messages.
        member: what the documents name as their source.
        key: which the key of an article without an id is made of; `member` where it is "".

    Raises:
        UserError: the file is damaged around its articles; or an article cannot be read and `unreadable` refuses it.
    """
    return _read(streams.utf8(iter([data]), name), name, member, policy, unreadable, key or member)


def _read(
    chunks: Iterator[bytes], where: str, member: str, policy: TextPolicy, unreadable: str, key: str
) -> Iterator[Document]:
    """The same for chunks in UTF-8, of a file of any size."""
    pieces = cut(chunks, where)
    first = list(islice(pieces, 2))
    for k, piece in enumerate(chain(first, pieces) if first else [b""], 1):
        number = f"#{k}" if len(first) > 1 else ""
        try:
            yield jats.document(_parse(piece), policy, member + number, key + number)
        except (ValueError, RecursionError) as e:
            why = str(e) if isinstance(e, ValueError) else "elements are nested too deeply to be read"
            if unreadable == "refuse":
                raise UserError(f"{where}{number}: {why}; {ADVICE}") from None
            yield unreadable_record(key + number, member + number, why)


def _parse(data: bytes | ValueError) -> etree._Element:
    """The element <article> of one article's file.

    Raises:
        ValueError: it is too large, broken or none.
    """
    if isinstance(data, ValueError):
        raise data
    if len(data) > 3 * MAX_TAGS and (tags := data.count(b"<")) > MAX_TAGS:
        raise ValueError(f"{tags:,} tags, of which at most {MAX_TAGS:,} are taken; refused as an article")
    prolog = _PROLOG.match(data)
    if prolog and _SUBSET.match(data, prolog.end()):
        raise ValueError("its DOCTYPE declares entities of its own; refused (PMC's files never do)")
    try:
        root = etree.fromstring(data, hardened_parser(remove_comments=True, remove_pis=True, encoding="utf-8"))
    except etree.XMLSyntaxError as e:
        raise ValueError(f"broken XML: {e}") from None
    if etree.QName(root).localname == "article":
        return root
    if (found := next(root.iter("{*}article"), None)) is None:
        raise ValueError(f"no JATS article in it (root <{etree.QName(root).localname}>)")
    return found
