"""Fetch NLM's public files by number: PubMed baseline and updates, PMC bulk packages. Resumable, checked by MD5.

A file under its own name is whole and checked; what is under way is called NAME.part and is continued by byte range.
"""

import enum
import gzip
import hashlib
import http.client
import os
import queue
import re
import shutil
import sys
import threading
import time
import urllib.error
import zlib
from dataclasses import dataclass

from data_preprocessing import transfer
from data_preprocessing.transfer import Again
from modelzoo.config.errors import UserError
from modelzoo.files import naming, sync
from modelzoo.lock import lock_folder
from modelzoo.reading import open_regular

BASE_URL = "https://ftp.ncbi.nlm.nih.gov"
TIMEOUT = 60  # seconds without a byte
LONGEST_PAUSE = 60  # seconds between two tries
_PUBMED = re.compile(r'href="(pubmed\d\dn\d{4,}\.xml\.gz)"')
_PMC = re.compile(r'href="((?:oa_\w+_xml)\.PMC\d+x+\.baseline\.[\d-]+\.tar\.gz)"')
_MD5 = r"[0-9a-fA-F]{32}"
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})$")


class Check(enum.Enum):
    """What a file was held to."""

    MD5 = "by MD5"
    GZIP = "by gzip's own checksum (no MD5 is published)"
    NONE = "not checked now (no MD5 is published)"


@dataclass(frozen=True)
class Settings:
    """Where from, and how often to try."""

    base_url: str = BASE_URL
    retries: int = 5
    backoff: float = 1.0  # seconds before the first retry; doubled each time
    timeout: float = TIMEOUT


def run(args) -> int:
    """Run the verb `download`; returns the exit code."""
    settings = Settings(base_url=transfer.check_url(args.base_url or BASE_URL), retries=args.retries)
    if args.baseline is not None:
        folder, pattern, wanted = "pubmed/baseline", _PUBMED, args.baseline
    elif args.updates is not None:
        folder, pattern, wanted = "pubmed/updatefiles", _PUBMED, args.updates
    else:
        folder, pattern, wanted = f"pub/pmc/oa_bulk/{args.pmc_group}/xml", _PMC, args.pmc
    url = f"{settings.base_url}/{folder}"
    check_range(wanted)
    names = choose(listing(url, pattern, settings), wanted, url)
    with lock_folder(args.output):  # two would append to one .part
        results = _fetch_all(url, names, args.output, args.workers, settings)
    print(f"{args.output}: {summarize(results)}")
    return 0


def _fetch_all(url: str, names: list[str], output: str, workers: int, settings: Settings) -> list[tuple[int, Check]]:
    """Fetch files, several at a time; returns (bytes fetched now, check) of each.

    The threads are daemons: Ctrl-C ends the command now, not when the last server has answered.
    """
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[str, tuple[int, Check] | Exception]] = queue.SimpleQueue()
    for name in names:
        todo.put(name)

    def work() -> None:
        while True:
            try:
                name = todo.get_nowait()
            except queue.Empty:
                return
            try:
                answers.put((name, fetch(f"{url}/{name}", os.path.join(output, name), settings)))
            except Exception as e:
                answers.put((name, e))
                return

    for _ in range(min(workers, len(names))):
        threading.Thread(target=work, daemon=True).start()
    results, begun = [], time.monotonic()
    for done in range(1, len(names) + 1):
        name, answer = answers.get()
        if isinstance(answer, Exception):
            raise answer
        results.append(answer)
        rate = sum(size for size, _ in results) / 1e6 / max(time.monotonic() - begun, 1e-9)
        state = f"{rate:.1f} MB/s" if answer[0] else "there already"
        print(f"{done:>5,}/{len(names):,}  {name}  {state}", file=sys.stderr)
    return results


def summarize(results: list[tuple[int, Check]]) -> str:
    """How many files were fetched, were there, and were checked by what."""
    fetched = [size for size, _ in results if size]
    checks = [f"{n:,} {check.value}" for check in Check if (n := sum(c is check for _, c in results))]
    return (
        f"{len(results):,} files: {len(fetched):,} fetched ({sum(fetched) / 1e6:,.1f} MB), "
        f"{len(results) - len(fetched):,} there already; checked: {', '.join(checks)}"
    )


def listing(url: str, pattern: re.Pattern, settings: Settings) -> list[str]:
    """File names in a folder's index page, sorted."""
    if (found := _get_if_there(url + "/", settings)) is None:
        raise UserError(f"{url}/: the server answers 404; is --base_url laid out as {BASE_URL}?")
    page = found.decode("utf-8", "replace")
    names = sorted(set(pattern.findall(page)))
    if not names:
        raise UserError(f"{url}/: lists no files of the kind asked for; is --base_url laid out as {BASE_URL}?")
    return names


def check_range(wanted: str) -> None:
    """Refuse what is neither a count, a range nor `all`.

    Raises:
        UserError: it is another text, or a range that ends before it begins.
    """
    ends = re.fullmatch(r"0*([1-9][0-9]{0,8})(?:-0*([1-9][0-9]{0,8}))?", wanted)
    if wanted != "all" and (not ends or int(ends[1]) > int(ends[2] or ends[1])):
        raise UserError(f"{wanted[:40]!a}: give a count (3), a range (2-5) or 'all'")


def choose(names: list[str], wanted: str, where: str) -> list[str]:
    """'3' = the first three; '2-5' = numbers 2 to 5 (PubMed: as in the name, else by position); 'all'.

    Fewer than were asked for are reported.
    """
    check_range(wanted)
    if wanted == "all":
        return names
    numbered = [(int(m[1]) if (m := re.search(r"n(\d{4,})\.xml\.gz$", n)) else k, n) for k, n in enumerate(names, 1)]
    if "-" in wanted:
        first, last = map(int, wanted.split("-"))
        chosen, asked = [name for k, name in numbered if first <= k <= last], last - first + 1
    else:
        chosen, asked = names[: int(wanted)], int(wanted)
    numbers = [k for k, _ in numbered]
    if not chosen:
        raise UserError(f"{wanted}: {where}/ has numbers {min(numbers)} to {max(numbers)}")
    if len(chosen) < asked:
        have = f"{len(names):,}, numbers {min(numbers)} to {max(numbers)}"
        print(f"note       {wanted}: {len(chosen):,} of {asked:,} are there (the server has {have})", file=sys.stderr)
    return chosen


def fetch(url: str, path: str, settings: Settings) -> tuple[int, Check]:
    """Make `path` whole and checked; returns (bytes fetched now, what it was held to).

    An older release under the same name stays until the newer one is whole.
    """
    md5 = _md5_of(url, settings)
    if os.path.lexists(path):
        if md5 is None:
            open_regular(path).close()
            return 0, Check.NONE
        if _file_md5(path) == md5:
            return 0, Check.MD5
    part, fetched, last = path + ".part", 0, ""
    for attempt in range(settings.retries + 1):
        try:
            fetched += _continue(url, part, settings)
            if md5 is not None and _file_md5(part) != md5:
                os.remove(part)
                raise Again("its MD5 is not the published one")
            if md5 is None and path.endswith("gz"):
                _whole_gzip(part)
            sync(part)
            os.replace(part, path)
            return fetched, Check.MD5 if md5 is not None else Check.GZIP
        except urllib.error.HTTPError as e:
            if e.code in (400, 401, 403, 404, 410):
                raise UserError(f"{url}: the server answers {e.code} {transfer.explain(e)}") from None
            last = f"{e.code} {transfer.explain(e)}"
        except (Again, urllib.error.URLError, http.client.HTTPException) as e:
            last = transfer.explain(e)
        except OSError as e:
            if e.filename is not None:  # a file of ours: the network's errors name none
                raise
            last = transfer.explain(e)
        if attempt < settings.retries:
            _pause(settings, attempt)
    raise UserError(f"{url}: failed {settings.retries + 1} times, last: {last}; run again to go on from here")


def _pause(settings: Settings, attempt: int) -> None:
    time.sleep(min(LONGEST_PAUSE, settings.backoff * 2 ** min(attempt, 30)))


def _continue(url: str, part: str, settings: Settings) -> int:
    """Append what is missing from `part`; returns the bytes fetched."""
    have = _size(part)
    try:
        with transfer.requesting(url, settings.timeout, have) as response:
            ranged = _CONTENT_RANGE.match(response.headers.get("Content-Range") or "")
            if have and (response.status != 206 or not ranged or int(ranged[1]) != have):
                if response.status == 206:
                    os.remove(part)
                    raise Again("the server sends another range than was asked for")
                have = 0  # the server sends the whole file
            length = transfer.announced(response.headers)
            if have and ranged and length is not None and have + length != int(ranged[2]):
                raise Again("the server contradicts itself about the length")
            _require_room(part, length or 0)
            count = _append(response, part, have, length, settings.timeout)
    except urllib.error.HTTPError as e:
        if e.code != 416:
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


def _append(response, part: str, have: int, length: int | None, timeout: float) -> int:
    """Write the body to `part` from byte `have` on; returns its length."""
    count = 0
    # never through a link (O_NOFOLLOW)
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(part, flags | (os.O_APPEND if have else os.O_TRUNC), 0o666), "wb", buffering=0) as f:
        for chunk in transfer.read_chunks(response, transfer.MAX_FILE if length is None else length, timeout):
            with naming(part):
                left = memoryview(chunk)
                while left:
                    left = left[f.write(left) :]
            count += len(chunk)
    return count


def _size(part: str) -> int:
    if not os.path.lexists(part):
        return 0
    with open_regular(part) as file:
        return os.fstat(file.fileno()).st_size


def _require_room(part: str, length: int) -> None:
    folder = os.path.dirname(part) or os.curdir
    if length > (free := shutil.disk_usage(folder).free):
        raise UserError(f"{part}: needs {length:,} bytes, and {folder} has {free:,} left; free some space, run again")


def _md5_of(url: str, settings: Settings) -> str | None:
    """The published MD5 (NAME.md5 next to the file), None where none is published (PMC packages)."""
    if (page := _get_if_there(url + ".md5", settings)) is None:
        return None
    name, text = url.rsplit("/", 1)[1], page[:4096].decode("ascii", "replace")
    forms = (rf"MD5\s?\({re.escape(name)}\)\s?=\s?({_MD5})", rf"({_MD5})(?:\s[ *]?{re.escape(name)})?")
    found = [m for line in text.splitlines() for form in forms if (m := re.fullmatch(form, line.strip()))]
    if len(found) != 1:
        raise UserError(f"{url}.md5: does not hold the MD5 of {name} in a form that is known; try again later")
    return found[0][1].lower()


def _get_if_there(url: str, settings: Settings) -> bytes | None:
    """A small file, whole; None where the server has none."""
    last = ""
    for attempt in range(settings.retries + 1):
        try:
            return transfer.read_page(url, settings.timeout)
        except urllib.error.HTTPError as e:
            if e.code == 404:
                return None
            last = f"the server answers {e.code} {transfer.explain(e)}"
            if e.code < 500 and e.code != 429:
                break
        except (Again, urllib.error.URLError, http.client.HTTPException, OSError) as e:
            last = f"cannot be reached ({transfer.explain(e)})"
        if attempt < settings.retries:
            _pause(settings, attempt)
    raise UserError(f"{url}: {last}")


def _file_md5(path: str) -> str:
    with open_regular(path) as f, naming(path):
        return hashlib.file_digest(f, "md5").hexdigest()


def _whole_gzip(path: str) -> None:
    """Where no MD5 is published, check gzip's own checksum."""
    try:
        with gzip.open(path) as f:
            while f.read(1 << 22):
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        os.remove(path)
        raise Again(f"not a whole gzip file ({e})") from None
