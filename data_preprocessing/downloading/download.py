"""The verb `download`: PubMed's baseline and updates by number, or PMC's full texts from its cloud service.

A file under its own name is whole and checked; what is under way is called NAME.part and is continued by byte range.
"""

import asyncio
import os
import re
import sys
import time

from data_preprocessing import limits
from data_preprocessing.downloading import resumable, transfer
from data_preprocessing.downloading.resumable import Check
from data_preprocessing.downloading.transfer import Client, Refused, Settings, check_url, run_all
from modelzoo.config.errors import UserError
from modelzoo.lock import lock_folder

PUBMED_URL = "https://ftp.ncbi.nlm.nih.gov"
PMC_URL = "https://pmc-oa-opendata.s3.amazonaws.com"
_PUBMED = re.compile(r'href="(pubmed\d\dn\d{4,}\.xml\.gz)"')
_MD5 = r"[0-9a-fA-F]{32}"
_OF_PMC = ("licence", "since", "keep_retracted", "skip_failed", "articles_per_tar")


def run(args) -> int:
    """Run the verb `download`; returns the exit code."""
    if args.pmc_group is not None:
        raise UserError(
            f"--pmc_group {args.pmc_group[:40]}: PMC's packages left NLM's FTP site in August 2026; --pmc fetches from "
            "PMC's cloud service now: give --licence comm (was oa_comm), noncomm or other in place of --pmc_group"
        )
    pubmed = args.baseline is not None or args.updates is not None
    pmc = args.pmc is not None or (args.ids is not None and not pubmed)
    if not pmc and not pubmed:
        raise UserError("what to download is missing: give --baseline, --updates, --pmc or --ids")
    if given := [f"--{name}" for name in ("ids", *_OF_PMC) if getattr(args, name)] if not pmc else []:
        raise UserError(f"{given[0]}: is for --pmc, not for PubMed's files, which hold every citation")
    if not pmc and (args.workers or 0) > limits.TRANSFERS:
        raise UserError(f"--workers {args.workers}: NLM's FTP site asks for few; give at most {limits.TRANSFERS}")
    settings = Settings(
        base_url=check_url(args.base_url or (PMC_URL if pmc else PUBMED_URL)),
        retries=args.retries,
        backoff=transfer.BACKOFF,
        timeout=transfer.TIMEOUT,
        connections=args.workers or (64 if pmc else 2),
        rate=args.rate,
    )
    check_range(next((w for w in (args.baseline, args.updates) if w is not None), args.pmc or "all"))
    if not pmc:
        return _fetch_pubmed(args, settings)
    from data_preprocessing.downloading import articles

    return articles.run(args, settings)


def _fetch_pubmed(args, settings: Settings) -> int:
    folder, wanted = ("baseline", args.baseline) if args.baseline is not None else ("updatefiles", args.updates)

    async def fetch_all() -> list[tuple[int, Check]]:
        async with Client(settings) as client:
            url = f"{settings.base_url}/pubmed/{folder}"
            names = choose(await listing(client, url, _PUBMED), wanted, url)
            with lock_folder(args.output):  # two would append to one .part
                return await _fetch_all(client, url, names, args.output)

    print(f"{args.output}: {summarize(asyncio.run(fetch_all()))}")
    return 0


async def _fetch_all(client: Client, url: str, names: list[str], output: str) -> list[tuple[int, Check]]:
    """Fetch files, several at a time; returns (bytes fetched now, check) of each."""
    results: list[tuple[int, Check]] = []
    begun = time.monotonic()

    async def fetch_one(name: str) -> None:
        answer = await fetch(client, f"{url}/{name}", os.path.join(output, name))
        results.append(answer)
        rate = sum(size for size, _ in results) / 1e6 / max(time.monotonic() - begun, 1e-9)
        state = f"{rate:.1f} MB/s" if answer[0] else "there already"
        print(f"{len(results):>5,}/{len(names):,}  {name}  {state}", file=sys.stderr)

    await run_all(names, fetch_one, client.settings.connections)
    return results


def summarize(results: list[tuple[int, Check]]) -> str:
    """How many files were fetched, were there, and were checked by what."""
    fetched = [size for size, _ in results if size]
    checks = [f"{n:,} {check.value}" for check in Check if (n := sum(c is check for _, c in results))]
    return (
        f"{len(results):,} files: {len(fetched):,} fetched ({sum(fetched) / 1e6:,.1f} MB), "
        f"{len(results) - len(fetched):,} there already; checked: {', '.join(checks)}"
    )


async def listing(client: Client, url: str, pattern: re.Pattern) -> list[str]:
    """File names in a folder's index page, sorted."""
    page = await _read_if_there(client, url + "/")
    if page is None:
        raise UserError(f"{url}/: the server answers 404; is --base_url laid out as {PUBMED_URL}?")
    names = sorted(set(pattern.findall(page.decode("utf-8", "replace"))))
    if not names:
        raise UserError(f"{url}/: lists no files of the kind asked for; is --base_url laid out as {PUBMED_URL}?")
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


async def fetch(client: Client, url: str, path: str) -> tuple[int, Check]:
    """Make `path` whole and held to the MD5 that is published next to it; as `resumable.fetch`.

    Raises:
        UserError: the server has no such file, or all tries failed.
    """
    try:
        return await resumable.fetch(client, url, path, await _md5_of(client, url))
    except Refused as e:
        raise UserError(str(e)) from None


async def _md5_of(client: Client, url: str) -> str | None:
    """The published MD5 (NAME.md5 next to the file), None where none is published."""
    if (page := await _read_if_there(client, url + ".md5")) is None:
        return None
    name, text = url.rsplit("/", 1)[1], page[:4096].decode("ascii", "replace")
    forms = (rf"MD5\s?\({re.escape(name)}\)\s?=\s?({_MD5})", rf"({_MD5})(?:\s[ *]?{re.escape(name)})?")
    found = [m for line in text.splitlines() for form in forms if (m := re.fullmatch(form, line.strip()))]
    if len(found) != 1:
        raise UserError(f"{url}.md5: does not hold the MD5 of {name} in a form that is known; try again later")
    return found[0][1].lower()


async def _read_if_there(client: Client, url: str) -> bytes | None:
    """A small file, whole; None where the server has none."""
    try:
        return await client.read(url)
    except Refused as e:
        if e.status == 404:
            return None
        raise UserError(str(e)) from None
