"""Fetch NLM's public files by number: PubMed baseline and updates, PMC bulk packages. Resumable, checked by MD5.

A file under its own name is whole and checked; what is under way is called NAME.part and is continued by byte range.
"""

import concurrent.futures
import gzip
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass

from modelzoo.config.errors import UserError

BASE_URL = "https://ftp.ncbi.nlm.nih.gov"
CHUNK = 1 << 18
TIMEOUT = 60  # seconds without a byte
_PUBMED = re.compile(r'href="(pubmed\d\dn\d{4,}\.xml\.gz)"')
_PMC = re.compile(r'href="((?:oa_\w+_xml)\.PMC\d+x+\.baseline\.[\d-]+\.tar\.gz)"')
_MD5 = re.compile(r"\b([0-9a-f]{32})\b", re.I)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)$")


@dataclass(frozen=True)
class Settings:
    """Where from, and how often to try."""

    base_url: str = BASE_URL
    retries: int = 5
    backoff: float = 1.0  # seconds before the first retry; doubled each time
    timeout: float = TIMEOUT


def run(args) -> int:
    """Run the verb `download`; returns the exit code."""
    settings = Settings(base_url=(args.base_url or BASE_URL).rstrip("/"), retries=args.retries)
    if not re.match(r"https?://", settings.base_url):
        raise UserError(f"--base_url {settings.base_url}: give an http(s) address")
    if args.baseline:
        folder, pattern, wanted = "pubmed/baseline", _PUBMED, args.baseline
    elif args.updates:
        folder, pattern, wanted = "pubmed/updatefiles", _PUBMED, args.updates
    else:
        folder, pattern, wanted = f"pub/pmc/oa_bulk/{args.pmc_group}/xml", _PMC, args.pmc
    url = f"{settings.base_url}/{folder}"
    names = choose(listing(url, pattern, settings), wanted, url)
    try:
        os.makedirs(args.output, exist_ok=True)
    except OSError as e:
        raise UserError(f"{args.output}: cannot be made: {e.strerror}") from None
    begun, size = time.monotonic(), 0
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
        waiting = [pool.submit(fetch, f"{url}/{name}", os.path.join(args.output, name), settings) for name in names]
        try:
            for done, future in enumerate(concurrent.futures.as_completed(waiting), 1):
                path, fetched = future.result()
                size += fetched
                rate = size / 1e6 / max(time.monotonic() - begun, 1e-9)
                print(
                    f"{done:>5,}/{len(names):,}  {os.path.basename(path)}  "
                    f"{f'{rate:.1f} MB/s' if fetched else 'there already'}",
                    file=sys.stderr,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print(f"{args.output}: {len(names):,} files, {size / 1e6:,.1f} MB fetched, all checked")
    return 0


def listing(url: str, pattern: re.Pattern, settings: Settings) -> list[str]:
    """File names in a folder's index page, sorted."""
    page = _get(url + "/", settings).decode("utf-8", "replace")
    names = sorted(set(pattern.findall(page)))
    if not names:
        raise UserError(f"{url}/: lists no files of the kind asked for; is --base_url laid out as {BASE_URL}?")
    return names


def choose(names: list[str], wanted: str, where: str) -> list[str]:
    """'3' = the first three; '2-5' = numbers 2 to 5 (PubMed: as in the name, else by position); 'all'."""
    if wanted == "all":
        return names
    numbers = {int(m[1]) if (m := re.search(r"n(\d{4,})\.xml\.gz$", n)) else k for k, n in enumerate(names, 1)}
    by_number = {int(m[1]) if (m := re.search(r"n(\d{4,})\.xml\.gz$", n)) else k: n for k, n in enumerate(names, 1)}
    if wanted.isdigit() and int(wanted) > 0:
        return names[: int(wanted)]
    ends = re.fullmatch(r"(\d+)-(\d+)", wanted)
    if not ends or int(ends[1]) > int(ends[2]):
        raise UserError(f"{wanted!r}: give a count (3), a range (2-5) or 'all'")
    chosen = [by_number[k] for k in range(int(ends[1]), int(ends[2]) + 1) if k in by_number]
    if not chosen:
        raise UserError(f"{wanted}: {where}/ has numbers {min(numbers)} to {max(numbers)}")
    return chosen


def fetch(url: str, path: str, settings: Settings) -> tuple[str, int]:
    """Make `path` whole and checked; returns (path, bytes fetched now)."""
    md5 = _md5_of(url, settings)
    if os.path.exists(path):
        if md5 is None or _file_md5(path) == md5:
            return path, 0
        os.remove(path)  # an older release of the file under the same name
    fetched = 0
    for attempt in range(settings.retries + 1):
        try:
            fetched += _continue(url, path + ".part", settings)
            if md5 is not None and _file_md5(path + ".part") != md5:
                os.remove(path + ".part")
                raise _Again("its MD5 is not the published one")
            if md5 is None and path.endswith(".gz"):
                _whole_gzip(path + ".part")
            os.replace(path + ".part", path)
            return path, fetched
        except (_Again, urllib.error.URLError, http.client.HTTPException, OSError) as e:
            if isinstance(e, urllib.error.HTTPError) and e.code in (400, 401, 403, 404, 410):
                raise UserError(f"{url}: the server answers {e.code} {e.reason}") from None
            if isinstance(e, OSError) and e.errno == 28:
                raise UserError(f"{path}: the disk is full; free some space and run again to go on") from None
            if attempt == settings.retries:
                raise UserError(
                    f"{url}: failed {attempt + 1} times, last: {getattr(e, 'reason', None) or e}; "
                    "run again to go on from here"
                ) from None
            time.sleep(settings.backoff * 2**attempt)
    raise AssertionError("unreachable")


class _Again(Exception):
    """A transfer that failed and may be tried again."""


def _continue(url: str, part: str, settings: Settings) -> int:
    """Append what is missing from `part`; returns the bytes fetched."""
    have = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=settings.timeout)
    except urllib.error.HTTPError as e:
        if e.code == 416:  # nothing after `have`: whole already, or the part is longer than the file
            total = re.search(r"/(\d+)$", e.headers.get("Content-Range") or "")
            if total and int(total[1]) == have:
                return 0
            os.remove(part)
            raise _Again("the partial file does not fit the server's") from None
        raise
    with response:
        ranged = _CONTENT_RANGE.match(response.headers.get("Content-Range") or "")
        if have and (response.status != 206 or not ranged or int(ranged[1]) != have):
            have = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        expected = have + int(length) if length and length.isdigit() else None
        count = 0
        with open(part, "ab" if have else "wb") as f:
            while chunk := response.read(CHUNK):
                f.write(chunk)
                count += len(chunk)
            f.flush()
            os.fsync(f.fileno())
    if expected is not None and have + count != expected:
        raise _Again(f"the connection ended after {have + count:,} of {expected:,} bytes")
    return count


def _md5_of(url: str, settings: Settings) -> str | None:
    """The published MD5 (NAME.md5 next to the file), None where none is published (PMC packages)."""
    try:
        text = _get(url + ".md5", settings).decode("ascii", "replace")
    except UserError as e:
        if " 404 " in str(e):
            return None
        raise
    found = _MD5.search(text)
    if not found:
        raise UserError(f"{url}.md5: holds no MD5")
    return found[1].lower()


def _get(url: str, settings: Settings) -> bytes:
    """A small file, whole."""
    for attempt in range(settings.retries + 1):
        try:
            with urllib.request.urlopen(url, timeout=settings.timeout) as response:
                return response.read(64 << 20)
        except urllib.error.HTTPError as e:
            if e.code < 500 and e.code != 429 or attempt == settings.retries:
                raise UserError(f"{url}: the server answers {e.code} {e.reason}") from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as e:
            if attempt == settings.retries:
                raise UserError(f"{url}: cannot be reached ({getattr(e, 'reason', None) or e})") from None
        time.sleep(settings.backoff * 2**attempt)
    raise AssertionError("unreachable")


def _file_md5(path: str) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "md5").hexdigest()


def _whole_gzip(path: str) -> None:
    """Where no MD5 is published, check gzip's own checksum."""
    try:
        with gzip.open(path) as f:
            while f.read(1 << 22):
                pass
    except (OSError, EOFError, zlib.error) as e:
        os.remove(path)
        raise _Again(f"not a whole gzip file ({e})") from None
