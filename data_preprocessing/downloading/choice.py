"""Which articles of PMC's cloud service a download is for: a sorted list on disk, 8 bytes an article.

An article is one number, id << 26 | version << 16 | day: sorting those brings the versions of an article together, the
highest last. 7.8 million take 62 MB; a list that is made takes three times that for a moment.
"""

import datetime
import os
import re
import sys
from array import array
from typing import NamedTuple

import numpy as np

from data_preprocessing.downloading import bucket, resumable
from data_preprocessing.downloading.transfer import Client, Failed, Refused, run_all
from modelzoo.config.errors import UserError
from modelzoo.files import replacing
from modelzoo.reading import open_regular

LISTED = 2000  # ids at most whose versions are listed one by one; for more, the inventory is quicker
MAX_IDS = 256 << 20  # bytes of a file of ids
ABSENT = 0  # the version of an id that the service does not have
_ID = re.compile(rb"(?:PMC)?0*([1-9][0-9]{0,9})", re.I)


class Ask(NamedTuple):
    """What was asked for."""

    first: int  # ids of the range, both included
    last: int
    since: int  # day; metadata that changed before it are passed over
    ids: np.ndarray | None  # sorted and unique; None for all


class Choice(NamedTuple):
    """The articles in the order of their ids, and where the list is from."""

    packed: np.ndarray  # int64
    source: str  # "version listing", or the date of an inventory


def unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, versions) of packed articles."""
    return packed >> 26, packed >> 16 & 1023


def read_day(text: str) -> int:
    """A date as days since 1970.

    Raises:
        UserError: it is none of the form 2026-09-01, or lies ahead.
    """
    try:
        date = datetime.date.fromisoformat(text) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) else None
    except ValueError:
        date = None
    if date is None:
        raise UserError(f"--since {text[:40]!a}: give a date, for example 2026-09-01")
    if date > datetime.datetime.now(datetime.UTC).date():
        raise UserError(f"--since {text}: lies ahead; nothing has changed since then")
    return max(0, (date - datetime.date(1970, 1, 1)).days)


def read_ids(path: str) -> np.ndarray:
    """The ids of a file, one a line (PMC176545 or 176545; # begins a remark), sorted and unique.

    Raises:
        UserError: a line is none, or there are none. OSError: the file cannot be read.
    """
    found = array("q")
    with open_regular(path, MAX_IDS) as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").partition(b"#")[0].strip()
            if not text:
                continue
            if not (m := _ID.fullmatch(text)):
                shown = ascii(text[:40].decode("utf-8", "replace"))
                more = "; leave the version out, the highest is fetched" if re.fullmatch(rb"\w+\.\d+", text) else ""
                raise UserError(f"{path}:{number}: {shown} is no PMC id, as PMC176545{more}")
            found.append(int(m[1]))
    if not found:
        raise UserError(f"{path}: holds no PMC ids; give one a line, as PMC176545")
    return np.unique(np.frombuffer(found, np.int64))


async def choose(client: Client, ask: Ask, folder: str) -> Choice:
    """The highest version of every article that is asked for; `ABSENT` where an id is asked for and is not there.

    Args:
        folder: for the inventory's files, which go on where they were.

    Raises:
        UserError: no inventory is complete, nothing is in the range, or the network.
    """
    if ask.ids is not None and ask.since == 0 and len(ask.ids) <= LISTED:
        return Choice(await _list_versions(client, ask), "version listing")
    reasons = []
    for date in await bucket.list_inventories(client):
        try:
            packed = await _read_inventory(client, date, ask, os.path.join(folder, date))
        except bucket.Incomplete as e:
            reasons.append(str(e))
            print(f"note       inventory {date} is not complete, an older one is looked at: {e}", file=sys.stderr)
            continue
        return Choice(packed, date)
    raise UserError(f"none of the newest {len(reasons)} inventories is complete; last: {reasons[-1]}; try again later")


async def _list_versions(client: Client, ask: Ask) -> np.ndarray:
    ids = [int(pmcid) for pmcid in ask.ids[(ask.ids >= ask.first) & (ask.ids <= ask.last)]]  # type: ignore[index]
    found: dict[int, int] = {}

    async def list_one(pmcid: int) -> None:
        try:
            found[pmcid] = await bucket.find_version(client, pmcid)
        except Refused as e:
            raise UserError(str(e)) from None

    await run_all(ids, list_one, client.settings.connections)
    return np.array([pmcid << 26 | found[pmcid] << 16 for pmcid in ids], np.int64)


async def _read_inventory(client: Client, date: str, ask: Ask, folder: str) -> np.ndarray:
    """What is asked for of a day's inventory, packed, and the ids that it does not have."""
    inventory = await bucket.read_manifest(client, date)
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, f"{n:05d}.csv.gz") for n in range(len(inventory.files))]

    async def fetch_one(job: tuple[str, tuple[str, str | None]]) -> None:
        path, (key, md5) = job
        try:
            await resumable.fetch(client, f"{client.settings.base_url}/{key}", path, md5.lower() if md5 else None)
        except (Refused, Failed) as e:
            raise bucket.Incomplete(str(e)) from None

    await run_all(zip(paths, inventory.files, strict=True), fetch_one, min(4, client.settings.connections))
    rows, parts, part = 0, [], np.empty(0, np.int64)
    for path in paths:
        numbers = (row.pmcid << 26 | row.version << 16 | row.day for row in bucket.read_rows(path, inventory.columns))
        part = np.fromiter(numbers, np.int64)
        rows += len(part)
        parts.append(part[_is_asked_for(part, ask)])
    if not rows:
        raise bucket.Incomplete(f"{bucket.INVENTORIES}{date}: lists no article")
    packed = np.concatenate(parts)
    del parts, part
    return select(packed, ask)


def _is_asked_for(packed: np.ndarray, ask: Ask) -> np.ndarray:
    ids = packed >> 26
    mask = (ids >= ask.first) & (ids <= ask.last)
    return mask if ask.ids is None else mask & _contains(ask.ids, ids)


def select(packed: np.ndarray, ask: Ask) -> np.ndarray:
    """The highest version of each article, if it is new enough, and the ids that are not there; sorts `packed`."""
    packed.sort()
    differs = packed[1:] ^ packed[:-1]
    differs >>= 26  # in place: each array of these has 62 MB
    last = np.append(differs != 0, [True] * (len(packed) > 0))
    del differs
    packed = packed[last] if not last.all() else packed
    new = packed[packed & 65535 >= ask.since] if ask.since else packed
    if ask.ids is None:
        return new
    absent = ask.ids[~_contains(packed >> 26, ask.ids) & (ask.ids >= ask.first) & (ask.ids <= ask.last)]
    return np.sort(np.concatenate([new, absent << 26]))


def _contains(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which of `values` are in a sorted array; a part at a time, to take little memory."""
    found = np.zeros(len(values), bool)
    for begin in range(0, len(values) if len(ordered) else 0, 1 << 18):
        part = values[begin : begin + (1 << 18)]
        found[begin : begin + len(part)] = ordered[np.minimum(np.searchsorted(ordered, part), len(ordered) - 1)] == part
    return found


def save(packed: np.ndarray, path: str) -> None:
    """Write the list, whole, and to the disk."""
    with replacing(path, durable=True) as temporary, open(temporary, "wb") as file:
        file.write(np.ascontiguousarray(packed, "<i8").data)


def load(path: str, begin: int = 0, count: int = -1) -> np.ndarray:
    """Articles `begin` to `begin + count` of a list that `save` wrote."""
    with open_regular(path) as file:
        return np.fromfile(file, "<i8", count, offset=8 * begin)
