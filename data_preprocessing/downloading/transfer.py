"""HTTP as `download` needs it: nothing waits for ever, goes to another host, or reads more than was announced.

The client is aiohttp: one thread holds hundreds of kept-alive connections, and redirects, statuses and headers are ours
to decide on. Objects of 60 kB over the loopback, 64 connections, each CPU-second: aiohttp 7,400, httpx 1,400, obstore
6,100 (whose errors hide the status and Retry-After).
"""

import asyncio
import contextlib
import email.utils
import random
import re
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import yarl

from modelzoo.config.errors import UserError
from modelzoo.redact import redact_text
from modelzoo.version import VERSION

BACKOFF = 1.0  # seconds before the first retry; doubled each time
TIMEOUT = 60.0  # seconds without a byte
LONGEST_PAUSE = 60  # seconds between two tries
LONGEST_HOLD = 600  # seconds that a server may ask everything to wait
SLOWEST = 1000  # bytes per second, on average over `timeout`; below it a transfer is begun anew
MAX_FILE = 256 << 30  # where a server announces no length; the largest of NLM's packages have some 15 GB
MAX_PAGE = 16 << 20  # of an index page, an MD5 file or an article's metadata
MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_LATER = (408, 425, 429)  # of the 4xx, those that another try may change
_T = TypeVar("_T")
_Item = TypeVar("_Item")


class Again(Exception):
    """A transfer that failed and may be tried again."""


class Refused(Exception):
    """A status other than 200 and 206. `headers` are those of the answer."""

    def __init__(self, url: str, status: int, reason: str, headers):
        super().__init__(f"{url}: the server answers {status} {redact_text(reason or '')[:200]}".rstrip())
        self.url, self.status, self.headers = url, status, headers


class Failed(UserError):
    """All tries of one transfer failed."""


@dataclass(frozen=True)
class Settings:
    """Where from, how often to try, and how much at once."""

    base_url: str
    retries: int = 5
    backoff: float = BACKOFF
    timeout: float = TIMEOUT
    connections: int = 2
    rate: float | None = None  # requests per second at most


def check_url(url: str) -> str:
    """A base URL without its last slash.

    Raises:
        UserError: it is no http(s) address of a host, or holds a user name or password.
    """
    shown = redact_text(url)
    if not re.match(r"https?://", url, re.I) or re.search(r"[\s\x00-\x1f]", url):
        raise UserError(f"--base_url {shown}: give an http(s) address")
    parts = _split_address(url, "--base_url")
    if parts.username is not None or parts.password is not None:
        raise UserError("--base_url: holds a user name or password, which NLM's files do not need; leave it out")
    if parts.query or parts.fragment:
        raise UserError(f"--base_url {shown}: give the address of a folder, without ? and #")
    return url.rstrip("/")


def _split_address(url: str, where: str) -> urllib.parse.SplitResult:
    """The parts of a URL that a connection can be made to.

    Args:
        where: the flag or variable that gave it.

    Raises:
        UserError: its host is missing or no name, or its port no number of one.
    """
    with contextlib.suppress(ValueError):  # of a name with a part that is empty or too long, half an IPv6 address
        parts = urllib.parse.urlsplit(url)
        if parts.hostname and parts.hostname.encode("idna") and parts.port != 0:
            return parts
    raise UserError(f"{where} {redact_text(url)[:80]}: names no host, or no port that there is; correct it")


class Client:
    """Kept-alive connections to the servers of a download, at most `settings.connections` of them at work at once."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._free = asyncio.Semaphore(settings.connections)
        self._turn = 0.0  # when the next request may begin, by --rate
        self._held = 0.0  # until when a server asked to be left alone

    async def __aenter__(self) -> "Client":
        wait = self.settings.timeout
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=wait, sock_read=wait),
            headers={"User-Agent": f"mediswift-trainer/{VERSION}", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_) -> None:
        await self._session.close()

    @contextlib.asynccontextmanager
    async def requesting(self, url: str, first: int = 0) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a request for `url`, from byte `first` on.

        Raises:
            UserError: it redirects to another host. Refused: another status than 200 or 206.
            Again: it begins too late. OSError, aiohttp.ClientError: the network.
        """
        async with self._free:
            await self._wait_turn()
            response = await self._answer(url, {"Range": f"bytes={first}-"} if first else {})
            try:
                yield response
            finally:
                response.release()  # an answer that was not read to its end closes its connection

    async def read(self, url: str, most: int = MAX_PAGE) -> bytes:
        """A small file, whole, however many tries that takes.

        Raises:
            Refused: another try would not change the answer. Failed: all tries failed.
        """

        async def once() -> bytes:
            async with self.requesting(url) as response:
                return await self.read_body(response, most)

        return await self.persist(url, once)

    async def read_body(self, response: aiohttp.ClientResponse, most: int) -> bytes:
        """The rest of an answer of at most `most` bytes; errors as in `read_chunks`."""
        body = bytearray()
        async for chunk in self.read_chunks(response, most):
            body += chunk
        return bytes(body)

    async def read_chunks(self, response: aiohttp.ClientResponse, most: int) -> AsyncIterator[bytes]:
        """The body of an answer, as it comes.

        Raises:
            Again: it is longer than `most` bytes, or slower than `SLOWEST` over the timeout.
        """
        total, since, before = 0, time.monotonic(), 0
        while chunk := await response.content.readany():
            total += len(chunk)
            if total > most:
                raise Again(f"sends more than {most:,} bytes")
            yield chunk
            if (now := time.monotonic()) - since > self.settings.timeout:
                if total - before < SLOWEST * (now - since):
                    raise Again(f"sends fewer than {SLOWEST:,} bytes/s")
                since, before = now, total

    async def persist(self, url: str, once: Callable[[], Awaitable[_T]]) -> _T:
        """The result of `once`, tried again after pauses that double, with jitter, and after those a server asks for.

        Raises:
            Refused: another try would not change the answer. Failed: all tries failed. Otherwise as `once`.
        """
        last = ""
        for attempt in range(self.settings.retries + 1):
            try:
                return await once()
            except Refused as e:
                if e.status < 500 and e.status not in _LATER:
                    raise
                last = str(e).removeprefix(f"{e.url}: ")
            except (Again, aiohttp.ClientError, TimeoutError) as e:
                last = explain(e)
            except OSError as e:
                if e.filename is not None:  # a file of ours: the network's errors name none
                    raise
                last = explain(e)
            if attempt < self.settings.retries:
                pause = min(LONGEST_PAUSE, self.settings.backoff * 2 ** min(attempt, 30))
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # together, all would come back at once
        raise Failed(f"{url}: failed {self.settings.retries + 1} times, last: {last}; run again to go on from here")

    async def _answer(self, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """The answer to one request, past redirects that stay on the host and do not leave TLS."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                async with asyncio.timeout(self.settings.timeout):  # however slowly its header drips in
                    where = yarl.URL(url, encoded=True)
                    response = await self._session.get(
                        where, headers=headers, allow_redirects=False, proxy=_choose_proxy(url)
                    )
            except TimeoutError:
                raise Again(f"no answer within {self.settings.timeout:g} seconds") from None
            if response.status in (200, 206):
                return response
            try:
                if 0 <= (response.content_length or 0) < 1 << 16:
                    async with asyncio.timeout(self.settings.timeout):
                        await response.read()  # so that the connection stays
            finally:
                response.release()
            place = response.headers.get("Location")
            if response.status not in _REDIRECTS or place is None:
                self._heed(response)
                raise Refused(url, response.status, response.reason or "", response.headers)
            url = _redirect(url, place)
        raise Again(f"redirects more than {MAX_REDIRECTS} times")

    def _heed(self, response: aiohttp.ClientResponse) -> None:
        """Hold every request until a server that is asked too much wants to be asked again."""
        wait = read_pause(response.headers.get("Retry-After", ""))
        if response.status in (429, 503) and wait is not None:
            self._held = max(self._held, time.monotonic() + min(wait, LONGEST_HOLD))

    async def _wait_turn(self) -> None:
        if self.settings.rate is not None:
            self._turn = max(time.monotonic(), self._turn) + 1 / self.settings.rate
            await asyncio.sleep(self._turn - time.monotonic() - 1 / self.settings.rate)
        while (wait := self._held - time.monotonic()) > 0:
            await asyncio.sleep(wait + random.uniform(0, 0.1 * wait))


async def run_all(items: Iterable[_Item], work: Callable[[_Item], Awaitable[object]], at_once: int) -> None:
    """Do `work` for each item, `at_once` at a time, in order of their beginning.

    Raises:
        Whatever `work` raises first; the others are stopped.
    """
    left = iter(items)

    async def take() -> None:
        for item in left:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(take())
    except BaseExceptionGroup as e:
        first: BaseException = e
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def _redirect(url: str, place: str) -> str:
    try:
        target = urllib.parse.urljoin(url, place)
        before, after = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
    except ValueError:
        raise UserError(f"{url}: redirects to what is no address") from None
    if before.netloc != after.netloc or after.scheme not in (before.scheme, "https"):
        shown = redact_text(f"{after.scheme}://{after.hostname or ''}")
        raise UserError(f"{url}: redirects to {shown}; give that as --base_url if you trust it")
    return target


def _choose_proxy(url: str) -> str | None:
    """The proxy of the environment (http_proxy, https_proxy, no_proxy) for this address.

    Raises:
        UserError: it is of another kind than http(s), or names no host.
    """
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return None
    kind, there, _ = proxy.partition("://")
    if there and kind.lower() not in ("http", "https"):
        raise UserError(f"{parts.scheme}_proxy: is a proxy of the kind {kind[:20]!a}; http and https ones are used")
    found = proxy if there else f"http://{proxy}"
    _split_address(found, f"{parts.scheme}_proxy")
    return found


def read_pause(text: str) -> float | None:
    """The seconds of a Retry-After header, a number or a date; None where it is neither."""
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def announced(response: aiohttp.ClientResponse) -> int | None:
    """The length in an answer's header; None where there is none, or none that is a number."""
    text = response.headers.get("Content-Length", "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def explain(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, aiohttp.ClientConnectorError):
        text = f"cannot be reached ({' '.join(str(error.os_error).split())[:200]})"
    return redact_text(text) or type(error).__name__
