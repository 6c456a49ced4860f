"""What a download from PMC's cloud service was asked and what it made: request.json, download.json, skipped.tsv."""

import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from data_preprocessing.downloading import bucket, choice
from data_preprocessing.downloading.store import REASONS, Ledger, Status
from modelzoo.files import replacing, write_json
from modelzoo.records import Record

STEP = 1 << 17  # records read at once


class Request(Record):
    """What decides which articles a download makes, and, once it is begun, the list that it works through."""

    range: str
    licences: list[str]
    since: str | None
    ids: str | None  # SHA-256 of the sorted ids
    keep_retracted: bool
    articles_per_tar: PositiveInt
    source: str = ""  # "version listing", or the date of the inventory
    articles: NonNegativeInt = 0  # in the list
    begun: str = ""  # the day

    def compare(self, begun: "Request") -> str:
        """The first way in which a download that was begun differs from this one; "" if in none."""
        for name in ("range", "licences", "since", "ids", "keep_retracted", "articles_per_tar"):
            if getattr(self, name) != getattr(begun, name):
                if name == "ids":
                    return "other --ids"
                flag = {"range": "pmc", "licences": "licence"}.get(name, name)
                return f"--{flag} {_show(getattr(begun, name))}, here {_show(getattr(self, name))}"
        return ""


def _show(value) -> str:
    return ", ".join(value) if isinstance(value, list) else "none" if value is None else str(value)


class Tar(Record):
    """One tar that is whole."""

    bytes: PositiveInt
    sha256: str
    articles: PositiveInt


@dataclass
class Counts:
    """What became of the articles of a list."""

    listed: int = 0
    articles: int = 0
    bytes: int = 0  # of XML
    tars: int = 0
    codes: Counter[str] = field(default_factory=Counter)  # of the articles that are in the tars
    left_out: Counter[Status] = field(default_factory=Counter)


def write_record(
    output: str, request: Request, tars: dict[str, Tar], base_url: str, limit: int | None, complete: bool
) -> Counts:
    """Write download.json and skipped.tsv; returns the counts.

    Args:
        complete: nothing failed.
        limit: how many articles were asked for; what follows them in the list is not counted.
    """
    ledger = Ledger(os.path.join(output, "state", "ledger.bin"))
    counts = Counts(tars=len(tars), articles=sum(tar.articles for tar in tars.values()))
    try:
        with (
            replacing(os.path.join(output, "skipped.tsv")) as temporary,
            open(temporary, "w", encoding="utf-8") as file,
        ):
            kept = 0
            for begin in range(0, request.articles, STEP):
                packed = choice.load(os.path.join(output, "state", "articles.bin"), begin, STEP)
                records = ledger.read(begin, len(packed))
                if limit is not None:
                    ranks = kept + np.cumsum(records["status"] >= Status.KEPT)
                    records, packed = records[: (n := _reach(ranks, limit))], packed[:n]
                kept += int((records["status"] >= Status.KEPT).sum())
                _count(counts, records)
                _write_skipped(file, records, packed)
                if limit is not None and kept == limit:
                    break
    finally:
        ledger.close()
    record = {
        "source": "NIH NLM NCBI PubMed Central (PMC) Article Datasets, PMC Cloud Service",
        "base_url": base_url,
        "cite": "https://registry.opendata.aws/ncbi-pmc",
        "request": request.model_dump(exclude={"source", "articles", "begun"}),
        "inventory": request.source,
        "begun": request.begun,
        "complete": complete,
        "listed": counts.listed,
        "articles": counts.articles,
        "xml_bytes": counts.bytes,
        "articles_by_licence": {code: counts.codes[code] for code in bucket.CODES if counts.codes[code]},
        "left_out": {status.name.lower(): n for status, n in sorted(counts.left_out.items())},
        "tars": {name: tar.model_dump() for name, tar in sorted(tars.items())},
    }
    write_json(os.path.join(output, "download.json"), record)
    return counts


def _reach(ranks: np.ndarray, limit: int) -> int:
    """How many records there are up to the `limit`-th kept one."""
    return min(int(np.searchsorted(ranks, limit)) + 1, len(ranks))


def _count(counts: Counts, records: np.ndarray) -> None:
    statuses = records["status"]
    counts.listed += len(records)
    there = records[(statuses == Status.KEPT) & (records["bytes"] > 0)]
    counts.bytes += int(there["bytes"].sum(dtype=np.int64))
    for code, n in zip(*np.unique(there["code"], return_counts=True), strict=True):
        counts.codes[bucket.CODES[code]] += int(n)
    for status, n in zip(*np.unique(statuses, return_counts=True), strict=True):
        if status not in (Status.OPEN, Status.KEPT):
            counts.left_out[Status(status)] += int(n)


def _write_skipped(file, records: np.ndarray, packed: np.ndarray) -> None:
    ids, versions = choice.unpack(packed)
    for k in np.flatnonzero(np.isin(records["status"], list(REASONS))):
        name = bucket.name_article(ids[k], versions[k]) if versions[k] else f"PMC{ids[k]}"
        file.write(f"{name}\t{REASONS[Status(records['status'][k])]}\n")


def summarize(counts: Counts) -> str:
    """The counts in one line."""
    tars = f"{counts.tars:,} tars" if counts.tars != 1 else "1 tar"
    named = sum(n for status, n in counts.left_out.items() if status in REASONS)
    left = []
    if n := counts.left_out[Status.LICENCE]:
        left.append(f"{n:,} of other licences")
    for status, reason in REASONS.items():
        if n := counts.left_out[status]:
            left.append(f"{n:,}: {reason}")
    text = f"{counts.articles:,} articles ({counts.bytes / 1e6:,.1f} MB of XML) in {tars}"
    codes = ", ".join(f"{code} {n:,}" for code, n in counts.codes.most_common())
    text += f" ({codes})" if codes else ""
    return text + (f"; left out {', '.join(left)}" if left else "") + (" (skipped.tsv)" if named else "")
