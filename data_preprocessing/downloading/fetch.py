"""Articles of PMC's cloud service, fetched many at a time: their metadata into the ledger, their XML into spools."""

import asyncio
import hashlib
import os
import time
from collections.abc import Iterable
from typing import NamedTuple

from data_preprocessing.downloading import bucket, transfer
from data_preprocessing.downloading.choice import ABSENT
from data_preprocessing.downloading.store import Ledger, Spool, Status
from data_preprocessing.downloading.transfer import Again, Client, Failed, Refused, run_all
from data_preprocessing.sources.pmc import MAX_ARTICLE
from modelzoo.progress import LiveLine, format_duration

LARGE = 4 << 20  # bytes of an XML above which one at a time is held in memory
AGAIN = "; run again to go on from here"
_GONE = (404, 410)


class Article(NamedTuple):
    """One article: its place in the list, and, once its metadata are known, the number of its tar and its MD5."""

    position: int
    pmcid: int
    version: int
    tar: int = 0
    md5: bytes = b""
    code: str = bucket.CODES[0]


class Pace:
    """The live line: articles, rate, time left.

    Args:
        total: how many articles the list has, or, `by_articles`, how many are asked for.
    """

    def __init__(self, total: int, by_articles: bool):
        self.total, self.by_articles = total, by_articles
        self.done = self.begun_at = 0  # of `total`
        self.articles = self.bytes = 0  # fetched now
        self._begun, self._line = time.monotonic(), LiveLine(live_every=0.2)

    def count(self, position: int, size: int) -> None:
        """Count one article that was fetched now."""
        self.articles += 1
        self.bytes += size
        self.done = self.done + 1 if self.by_articles else max(self.done, position + 1)
        self.show_if_due()

    def reach(self, done: int) -> None:
        """Everything before `done` is fetched, by this run or an earlier one."""
        self.done = max(self.done, done)
        if not self.articles:
            self.begun_at = self.done

    def show_if_due(self) -> None:
        """Print the line now and then."""
        if self._line.is_due():
            self.show()

    def show(self) -> None:
        """Print the line."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        here = self.done - self.begun_at
        left = f"  {format_duration((self.total - self.done) * seconds / here)} left" if here > 0 else ""
        what = "articles" if self.by_articles else "looked at"
        self._line.show(
            f"pmc        {self.done:,}/{self.total:,} {what}  {self.articles:,} fetched now  "
            f"{self.articles / seconds:,.0f}/s  {self.bytes / seconds / 1e6:.1f} MB/s{left}"
        )

    def close(self) -> None:
        """End the line."""
        if self.articles:
            self.show()
        self._line.close()


class Fetcher:
    """Fetches what the ledger leaves open.

    Args:
        codes: licences that are kept. folder: of the spools.
        skip_failed: record an article whose tries all failed, and go on without it.
    """

    def __init__(
        self, client: Client, ledger: Ledger, folder: str, codes: frozenset[str], keep_retracted: bool,
        skip_failed: bool, pace: Pace,
    ):  # fmt: skip
        self.client, self.ledger, self.folder, self.pace = client, ledger, folder, pace
        self.codes, self.keep_retracted, self.skip_failed = codes, keep_retracted, skip_failed
        self.spools: dict[int, Spool] = {}
        self._large = asyncio.Lock()
        self._failed_in_a_row = 0

    def open_spool(self, tar: int) -> Spool:
        """The spool of one tar, with what earlier runs left in it."""
        if tar not in self.spools:
            self.spools[tar] = Spool(os.path.join(self.folder, f"spool.{tar:05d}"))
        return self.spools[tar]

    def close_spool(self, tar: int) -> None:
        """Close the spool of one tar, which stays on the disk."""
        if (spool := self.spools.pop(tar, None)) is not None:
            spool.close()

    def close(self) -> None:
        """Close what is open; nothing is lost by a run that does not come to this."""
        for spool in self.spools.values():
            spool.close()
        self.ledger.close()

    async def fetch_metadata(self, articles: list[Article]) -> None:
        """Decide on each article by its metadata.

        Raises:
            Failed: some could not be fetched, in two rounds, and they are not to be skipped.
        """
        failed = await self._try_each(articles, self._decide)
        if failed:
            failed = await self._try_each(failed, self._decide)
        if failed and not self.skip_failed:
            raise Failed(explain_failures(failed, "metadata"))
        for article in failed:
            self.ledger.write(article.position, Status.FAILED)

    async def fetch_articles(self, articles: list[Article]) -> dict[Article, str]:
        """Put the XML of each article into the spool of its tar; returns those that failed in two rounds, and why."""
        missing = [a for a in articles if a.position not in self.open_spool(a.tar).places]
        failed = await self._try_each(missing, self._fetch_xml)
        return await self._try_each(failed, self._fetch_xml) if failed else {}

    async def _try_each(self, articles: Iterable[Article], work) -> dict[Article, str]:
        failed: dict[Article, str] = {}

        async def one(article: Article) -> None:
            try:
                await work(article)
                self._failed_in_a_row = 0
            except (Refused, Failed) as e:
                failed[article] = str(e)
                self._failed_in_a_row += 1
                if self._failed_in_a_row > max(10, self.client.settings.connections):
                    text = f"{self._failed_in_a_row} transfers failed in a row, the last: {e}"
                    raise Failed(text.removesuffix(AGAIN) + AGAIN) from None

        await run_all(articles, one, self.client.settings.connections)
        return failed

    async def _read_metadata(self, article: Article) -> bucket.Metadata:
        name = bucket.name_article(article.pmcid, article.version)
        url = f"{self.client.settings.base_url}/metadata/{name}.json"

        async def once() -> bucket.Metadata:
            async with self.client.requesting(url) as response:
                data = await self._read_whole(response, bucket.MAX_METADATA)
            return bucket.read_metadata(data, article.pmcid, article.version)

        return await self.client.persist(url, once)

    async def _decide(self, article: Article) -> None:
        self.pace.show_if_due()
        if article.version == ABSENT:
            self.ledger.write(article.position, Status.ABSENT)
            return
        try:
            found = await self._read_metadata(article)
        except Refused as e:
            if e.status not in _GONE:
                raise
            self.ledger.write(article.position, Status.GONE)
            return
        status = Status.KEPT
        if found.md5 is None:
            status = Status.NO_XML
        elif found.code not in self.codes:
            status = Status.LICENCE
        elif found.retracted and not self.keep_retracted:
            status = Status.RETRACTED
        self.ledger.write(article.position, status, found.code, found.md5 or b"")

    async def _fetch_xml(self, article: Article) -> None:
        url = f"{self.client.settings.base_url}/{bucket.name_xml(article.pmcid, article.version)}"
        md5 = article.md5

        async def once() -> bytes:
            nonlocal md5
            async with self.client.requesting(url) as response:
                if (transfer.announced(response) or 0) > LARGE:
                    async with self._large:
                        data = await self._read_whole(response, MAX_ARTICLE)
                else:
                    data = await self._read_whole(response, MAX_ARTICLE)
            if hashlib.md5(data).digest() != md5:
                # it may have changed since its metadata were read
                found = await self._read_metadata(article)
                md5 = found.md5 or md5
                if hashlib.md5(data).digest() != md5:
                    raise Again("its MD5 is not the published one")
            return data

        try:
            data = await self.client.persist(url, once)
        except Refused as e:
            if e.status not in _GONE:
                raise
            self.ledger.write(article.position, Status.KEPT_GONE, article.code, article.md5)
            return
        self.ledger.write(article.position, Status.KEPT, article.code, md5, len(data))
        self.open_spool(article.tar).add(article.position, data)
        self.pace.count(article.position, len(data))

    async def _read_whole(self, response, most: int) -> bytes:
        data, length = await self.client.read_body(response, most), transfer.announced(response)
        if length is not None and len(data) != length:
            raise Again(f"the connection ended after {len(data):,} of {length:,} bytes")
        return data


def explain_failures(failed: dict[Article, str], what: str) -> str:
    """One line about articles whose tries all failed."""
    first = next(iter(failed.values())).removesuffix(AGAIN)
    return (
        f"the {what} of {len(failed):,} articles could not be fetched, the first: {first}; "
        "run again to go on from here, or with --skip_failed to leave them out"
    )
