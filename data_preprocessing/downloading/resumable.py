"""One file over HTTP, continued by byte range and checked by its MD5: whole under its own name, NAME.part before."""

import asyncio
import enum
import gzip
import hashlib
import os
import re
import shutil
import zlib

import aiohttp

from data_preprocessing.downloading import transfer
from data_preprocessing.downloading.transfer import Again, Client
from modelzoo.config.errors import UserError
from modelzoo.files import naming, sync
from modelzoo.reading import exists, open_regular

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})$")


class Check(enum.Enum):
    """What a file was held to."""

    MD5 = "by MD5"
    GZIP = "by gzip's own checksum (no MD5 is published)"
    NONE = "not checked now (no MD5 is published)"


async def fetch(client: Client, url: str, path: str, md5: str | None) -> tuple[int, Check]:
    """Make `path` whole and checked; returns (bytes fetched now, what it was held to).

    An older release under the same name stays until the newer one is whole.

    Args:
        md5: what is published, in hexadecimal; None where nothing is.

    Raises:
        Refused, Failed, UserError: of `client`. OSError: the file cannot be written; it names it.
    """
    if exists(path):
        if md5 is None:
            open_regular(path).close()
            return 0, Check.NONE
        if await asyncio.to_thread(file_md5, path) == md5:
            return 0, Check.MD5
    part, fetched = path + ".part", 0

    async def once() -> None:
        nonlocal fetched
        fetched += await _continue(client, url, part)
        if md5 is not None and await asyncio.to_thread(file_md5, part) != md5:
            os.remove(part)
            raise Again("its MD5 is not the published one")
        if md5 is None and path.endswith("gz"):
            await asyncio.to_thread(_check_gzip, part)
        sync(part)
        os.replace(part, path)

    await client.persist(url, once)
    return fetched, Check.MD5 if md5 is not None else Check.GZIP


async def _continue(client: Client, url: str, part: str) -> int:
    """Append what is missing from `part`; returns the bytes fetched."""
    have = _size(part)
    try:
        async with client.requesting(url, have) as response:
            ranged = _CONTENT_RANGE.match(response.headers.get("Content-Range") or "")
            if have and (response.status != 206 or not ranged or int(ranged[1]) != have):
                if response.status == 206:
                    os.remove(part)
                    raise Again("the server sends another range than was asked for")
                have = 0  # the server sends the whole file
            length = transfer.announced(response)
            if have and ranged and length is not None and have + length != int(ranged[2]):
                raise Again("the server contradicts itself about the length")
            _require_room(part, length or 0)
            count = await _append(client, response, part, have, length)
    except transfer.Refused as e:
        if e.status != 416:
            raise
        # nothing after `have`: whole already, or the part is longer than the file
        total = re.search(r"/([0-9]{1,18})$", e.headers.get("Content-Range") or "")
        if total and int(total[1]) == have:
            return 0
        os.remove(part)
        raise Again("the partial file does not fit the server's") from None
    if length is not None and count != length:
        raise Again(f"the connection ended after {have + count:,} of {have + length:,} bytes")
    return count


async def _append(client: Client, response: aiohttp.ClientResponse, part: str, have: int, length: int | None) -> int:
    """Write the body to `part` from byte `have` on; returns its length."""
    count = 0
    # never through a link (O_NOFOLLOW)
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(part, flags | (os.O_APPEND if have else os.O_TRUNC), 0o666), "wb", buffering=0) as f:
        async for chunk in client.read_chunks(response, transfer.MAX_FILE if length is None else length):
            with naming(part):
                left = memoryview(chunk)
                while left:
                    left = left[f.write(left) :]
            count += len(chunk)
    return count


def _size(part: str) -> int:
    if not exists(part):
        return 0
    with open_regular(part) as file:
        return os.fstat(file.fileno()).st_size


def _require_room(part: str, length: int) -> None:
    folder = os.path.dirname(part) or os.curdir
    if length > (free := shutil.disk_usage(folder).free):
        raise UserError(f"{part}: needs {length:,} bytes, and {folder} has {free:,} left; free some space, run again")


def file_md5(path: str) -> str:
    """The MD5 of a regular file, in hexadecimal."""
    with open_regular(path) as f, naming(path):
        return hashlib.file_digest(f, "md5").hexdigest()


def _check_gzip(path: str) -> None:
    """Where no MD5 is published, check gzip's own checksum."""
    try:
        with gzip.open(path) as f:
            while f.read(1 << 22):
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        os.remove(path)
        raise Again(f"not a whole gzip file ({e})") from None
