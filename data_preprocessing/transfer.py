"""HTTP as `download` needs it: nothing waits for ever, goes to another host, or reads more than was announced."""

import contextlib
import http.client
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

from modelzoo.config.errors import UserError
from modelzoo.redact import redact_text

CHUNK = 1 << 18
SLOWEST = 1000  # bytes per second, on average over `timeout`; below it a transfer is begun anew
MAX_FILE = 256 << 30  # where a server announces no length; the largest of NLM's packages have some 15 GB
MAX_PAGE = 16 << 20  # of an index page or an MD5 file


class Again(Exception):
    """A transfer that failed and may be tried again."""


class _Guarded(http.client.HTTPConnection):
    """A connection whose answer begins within its timeout, however slowly its bytes drip in."""

    def getresponse(self) -> http.client.HTTPResponse:
        watch = threading.Timer(self.timeout or 60, self._give_up)
        watch.daemon = True
        watch.start()
        try:
            return super().getresponse()
        finally:
            watch.cancel()

    def _give_up(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # it may be closed by now
            self.sock.shutdown(socket.SHUT_RDWR)


class _GuardedTls(_Guarded, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req):
        return self.do_open(_Guarded, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req):
        return self.do_open(_GuardedTls, req)


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect that stays on the host, and does not leave TLS."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        before, after = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if before.netloc != after.netloc or after.scheme not in (before.scheme, "https"):
            place = redact_text(f"{after.scheme}://{after.hostname or ''}")
            raise UserError(f"{req.full_url}: redirects to {place}; give that as --base_url if you trust it")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Http, _Https, _SameHost)


def check_url(url: str) -> str:
    """A base URL without its last slash.

    Raises:
        UserError: it is no http(s) address of a host, or holds a user name or password.
    """
    shown = redact_text(url)
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise UserError(f"--base_url {shown}: {e}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"[\s\x00-\x1f]", url):
        raise UserError(f"--base_url {shown}: give an http(s) address")
    if parts.username is not None or parts.password is not None:
        raise UserError("--base_url: holds a user name or password, which NLM's files do not need; leave it out")
    if parts.query or parts.fragment:
        raise UserError(f"--base_url {shown}: give the address of a folder, without ? and #")
    return url.rstrip("/")


@contextlib.contextmanager
def requesting(url: str, timeout: float, first: int = 0) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request for `url`, from byte `first` on.

    Raises:
        UserError: it redirects to another host. OSError, http.client.HTTPException: of urllib.
    """
    request = urllib.request.Request(url, headers={"Range": f"bytes={first}-"} if first else {})
    with _OPENER.open(request, timeout=timeout) as response:
        yield response


def read_page(url: str, timeout: float) -> bytes:
    """A small file, whole.

    Raises:
        Again: it is longer than `MAX_PAGE` or comes too slowly. Otherwise as `requesting`.
    """
    with requesting(url, timeout) as response:
        return b"".join(read_chunks(response, MAX_PAGE, timeout))


def announced(headers: http.client.HTTPMessage, name: str = "Content-Length") -> int | None:
    """A length in a header; None where there is none, or none that is a number."""
    text = (headers.get(name) or "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def read_chunks(response: http.client.HTTPResponse, most: int, timeout: float) -> Iterator[bytes]:
    """The body of an answer, as it comes.

    Raises:
        Again: it is longer than `most` bytes, or slower than `SLOWEST` over `timeout` seconds.
    """
    total, since, before = 0, time.monotonic(), 0
    while chunk := response.read1(CHUNK):  # read() would wait for the whole of it
        total += len(chunk)
        if total > most:
            raise Again(f"sends more than {most:,} bytes")
        yield chunk
        if (now := time.monotonic()) - since > timeout:
            if total - before < SLOWEST * (now - since):
                raise Again(f"sends fewer than {SLOWEST:,} bytes/s")
            since, before = now, total


def explain(error: Exception) -> str:
    """What went wrong, in one line."""
    reason = getattr(error, "reason", None) or error
    text = " ".join(str(reason).split())[:200]
    return redact_text(text) or type(error).__name__
