"""`download --pmc`: from the inventory of PMC's cloud service to tars of articles, and a record of what was asked.

OUT/pmc.00001.tar.gz ...   articles in the order of their ids, `articles_per_tar` each
OUT/download.json          what was asked, from which inventory, and counts by licence and reason
OUT/skipped.tsv            the articles that fit and are not in the tars, and why
OUT/state/                 the list, the ledger and the spools: the same command goes on from there
"""

import asyncio
import datetime
import hashlib
import math
import os
import re
import shlex
import shutil

import numpy as np

from data_preprocessing.downloading import bucket, choice, store
from data_preprocessing.downloading.fetch import Article, Fetcher, Pace, explain_failures
from data_preprocessing.downloading.record import Request, Tar, summarize, write_record
from data_preprocessing.downloading.store import Ledger, Member, Status
from data_preprocessing.downloading.transfer import Client, Failed, Settings, run_all
from modelzoo.config.errors import UserError
from modelzoo.files import remove_temporaries, write_json
from modelzoo.lock import lock_folder
from modelzoo.reading import exists
from modelzoo.records import check_record, is_inside, read_json, read_record

PER_TAR = 10_000
_TAR = re.compile(r"pmc\.\d{5,}\.tar\.gz")
STEP = 10_000  # articles whose metadata are fetched while those before them are


def run(args, settings: Settings) -> int:
    """Download what the flags ask for; returns the exit code."""
    wanted, ask = _read_ask(args)
    codes = _read_codes(args.licence)
    request = Request(
        range=wanted,
        licences=sorted(codes),
        since=args.since,
        ids=None if ask.ids is None else hashlib.sha256(ask.ids.tobytes()).hexdigest(),
        keep_retracted=bool(args.keep_retracted),
        articles_per_tar=args.articles_per_tar or PER_TAR,
    )
    limit = int(wanted) if wanted.isdigit() else None
    with lock_folder(args.output):
        download = Download(args.output, request, limit, bool(args.skip_failed))
        asyncio.run(download.run(settings, ask))
        request = download.request
        counts = write_record(args.output, request, download.tars, settings.base_url, limit, not download.failed)
    if download.failed:
        raise Failed(explain_failures(download.failed, "XML"))
    if not counts.articles:
        raise UserError(f"{args.output}: no article fits: {summarize(counts)}; give another --licence or range")
    then = f"python -m data_preprocessing pmc --input {shlex.quote(args.output)} --output shards --tokenizer train"
    print(f"{args.output}: {summarize(counts)}; next: {then}")
    return 0


def _read_ask(args) -> tuple[str, choice.Ask]:
    """(the range as it is compared with that of an earlier run, what was asked for)."""
    wanted = args.pmc or "all"
    first, last = 0, 10**10
    if "-" in wanted:
        first, last = map(int, wanted.split("-"))
    since = choice.read_day(args.since) if args.since else 0
    return wanted, choice.Ask(first, last, since, choice.read_ids(args.ids) if args.ids else None)


def _read_codes(groups: list[str] | None) -> frozenset[str]:
    groups = groups or ["comm"]
    return frozenset(bucket.CODES if "all" in groups else [code for group in groups for code in bucket.GROUPS[group]])


class Download:
    """One folder's download, from its first run to its last.

    Args:
        limit: how many articles to take at most; None for all.
    """

    def __init__(self, output: str, request: Request, limit: int | None, skip_failed: bool):
        self.output, self.state = output, os.path.join(output, "state")
        self.request, self.limit, self.skip_failed = request, limit, skip_failed
        self.tars: dict[str, Tar] = {}  # that are whole
        self.failed: dict[Article, str] = {}
        self.waiting: dict[int, list[Article]] = {}  # by tar: the articles of it that are known
        self.kept = 0  # articles that have a place in a tar

    async def run(self, settings: Settings, ask: choice.Ask) -> None:
        """Do what is left to do."""
        async with Client(settings) as client:
            self.request = await self._begin(client, ask)
            pace = Pace(self.request.articles if self.limit is None else self.limit, self.limit is not None)
            self.fetcher = Fetcher(
                client, Ledger(os.path.join(self.state, "ledger.bin")), self.state, frozenset(self.request.licences),
                self.request.keep_retracted, self.skip_failed, pace,
            )  # fmt: skip
            try:
                await self._fetch_all(pace)
                await self._finish()
            finally:
                pace.close()
                self.fetcher.close()

    async def _begin(self, client: Client, ask: choice.Ask) -> Request:
        """The request with the list that it was begun with; the list is made where there is none."""
        os.makedirs(self.state, exist_ok=True)
        remove_temporaries(self.state)
        remove_temporaries(self.output)
        path = os.path.join(self.state, "request.json")
        articles, inventory = (os.path.join(self.state, name) for name in ("articles.bin", "inventory"))
        if not exists(path):
            self._refuse_others()
            chosen = await choice.choose(client, ask, inventory)
            if not len(chosen.packed):
                raise UserError(f"--pmc {self.request.range}: {chosen.source} lists no article of that range and date")
            choice.save(chosen.packed, articles)
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            more = {"source": chosen.source, "articles": len(chosen.packed), "begun": today}
            write_json(path, self.request.model_dump() | more)
        if exists(inventory):  # its list is made
            shutil.rmtree(inventory)
        begun = read_record(path, Request, "is not there", "give another --output")
        if difference := self.request.compare(begun):
            raise UserError(f"{self.output}: was begun with {difference}; give another --output, or the same flags")
        if os.path.getsize(articles) != 8 * begun.articles:
            raise UserError(f"{articles}: is damaged; give another --output")
        self._read_tars()
        return begun

    def _refuse_others(self) -> None:
        """Begin with an empty folder: what is left of a list that is gone belongs to other articles."""
        if others := sorted(name for name in os.listdir(self.output) if _TAR.fullmatch(name)):
            raise UserError(f"{self.output}: holds {others[0]} of another download; give another --output")
        for entry in os.listdir(self.state):
            if entry != "inventory":
                os.remove(os.path.join(self.state, entry))

    def _read_tars(self) -> None:
        """The tars that are whole; one that was removed or cut since is made again."""
        path = os.path.join(self.state, "tars.json")
        found = read_json(path, "") if exists(path) else {}
        if not isinstance(found, dict):
            raise UserError(f"{path}: is no list of tars; give another --output")
        for name, facts in found.items():
            tar = check_record(facts, Tar, f"{path}: {name[:40]!a}", "give another --output")
            if is_inside(name) and store.is_there(os.path.join(self.output, name), tar.bytes):
                self.tars[name] = tar

    def _load(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ledger records, ids, versions) of a part of the list."""
        packed = choice.load(os.path.join(self.state, "articles.bin"), begin, end - begin)
        return self.fetcher.ledger.read(begin, len(packed)), *choice.unpack(packed)

    def _open_articles(self, begin: int, end: int) -> list[Article]:
        """The articles of a part of the list that are not decided on."""
        records, ids, versions = self._load(begin, end)
        places = np.flatnonzero(records["status"] == Status.OPEN)
        return [Article(begin + int(k), int(ids[k]), int(versions[k])) for k in places]

    def _place(self, begin: int, end: int) -> list[Article]:
        """Give the kept articles of a part their places in tars; returns those whose tar is not written yet."""
        records, ids, versions = self._load(begin, end)
        places = np.flatnonzero(records["status"] >= Status.KEPT)
        if self.limit is not None:
            places = places[: self.limit - self.kept]
        per_tar, found = self.request.articles_per_tar, []
        first, self.kept = self.kept, self.kept + len(places)
        written = {tar for tar in range(first // per_tar, self.kept // per_tar + 1) if _name(tar) in self.tars}
        for rank, k in enumerate(places, first):
            if (tar := rank // per_tar) in written:
                continue
            md5, code = records["md5"][k].tobytes(), bucket.CODES[records["code"][k]]
            article = Article(begin + int(k), int(ids[k]), int(versions[k]), tar, md5, code)
            self.waiting.setdefault(tar, []).append(article)
            if records["status"][k] == Status.KEPT:
                found.append(article)
        return found

    async def _fetch_all(self, pace: Pace) -> None:
        begin, end = 0, self._step(0)
        await self.fetcher.fetch_metadata(self._open_articles(begin, end))
        while begin < end:
            found = self._place(begin, end)
            begin, end = end, self._step(end)
            now = {article.tar for article in found}
            size = self.request.articles_per_tar
            full = [tar for tar, articles in self.waiting.items() if len(articles) == size and tar not in now]
            next_ones = self._open_articles(begin, end)
            work = [self._fetch_xml(found), self.fetcher.fetch_metadata(next_ones), self._pack(full)]
            await run_all(work, _wait_for, len(work))
            pace.reach(self.kept if self.limit is not None else begin)

    def _step(self, begin: int) -> int:
        """Where the next part of the list ends: where some are asked for, not far past those that will do."""
        size = STEP
        if self.limit is not None:
            left, share = self.limit - self.kept, (self.kept + 1) / (begin + 1)
            size = min(STEP, math.ceil(1.1 * left / share) + 8) if left else 0
        return min(begin + size, self.request.articles)

    async def _fetch_xml(self, articles: list[Article]) -> None:
        self.failed |= await self.fetcher.fetch_articles(articles)

    async def _pack(self, tars: list[int]) -> None:
        """Write the tars of which nothing is missing."""
        for tar in tars:
            if any(article.tar == tar for article in self.failed):
                self.fetcher.close_spool(tar)
            else:
                await self._write_tar(tar)

    async def _write_tar(self, tar: int) -> None:
        spool, ledger = self.fetcher.open_spool(tar), self.fetcher.ledger
        while True:
            members = []
            for article in self.waiting[tar]:
                record = ledger.read(article.position, 1)[0]
                if record["status"] < Status.KEPT:
                    raise UserError(f"{ledger.path}: was changed by another process; run again")
                if record["status"] == Status.KEPT:
                    name = bucket.name_xml(article.pmcid, article.version)
                    members.append(Member(article.position, name, record["md5"].tobytes()))
            damaged = {m.position: m.md5 for m in await asyncio.to_thread(store.find_damaged, spool, members)}
            if not damaged:
                break
            for position in damaged:
                spool.places.pop(position, None)
            again = [a._replace(md5=damaged[a.position]) for a in self.waiting[tar] if a.position in damaged]
            if failed := await self.fetcher.fetch_articles(again):
                self.failed |= failed
                return
        path = os.path.join(self.output, _name(tar))
        if members:
            size, sha256 = await asyncio.to_thread(store.write_tar, path, spool, members)
            self.tars[_name(tar)] = Tar(bytes=size, sha256=sha256, articles=len(members))
            tars = {name: tar.model_dump() for name, tar in sorted(self.tars.items())}
            write_json(os.path.join(self.state, "tars.json"), tars)
        del self.waiting[tar]
        self.fetcher.close_spool(tar)
        os.remove(spool.path)

    async def _finish(self) -> None:
        """Try what failed once more, and write the tars that are left, the last of which is shorter."""
        if self.failed:
            self.failed = await self.fetcher.fetch_articles(list(self.failed))
        if self.skip_failed:
            for article in self.failed:
                self.fetcher.ledger.write(article.position, Status.KEPT_FAILED, article.code, article.md5)
            self.failed = {}
        await self._pack(sorted(self.waiting))
        for entry in os.listdir(self.state):  # of tars that were written just before a kill
            if entry.startswith("spool.") and entry[6:].isdecimal() and int(entry[6:]) not in self.waiting:
                os.remove(os.path.join(self.state, entry))


def _name(tar: int) -> str:
    return f"pmc.{tar + 1:05d}.tar.gz"


async def _wait_for(work) -> None:
    await work
