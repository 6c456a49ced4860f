"""PMC's cloud service, the public bucket `pmc-oa-opendata`: its keys, inventories, version listings and metadata.

    PMC<id>.<version>/PMC<id>.<version>.xml    an article as JATS
    metadata/PMC<id>.<version>.json            its licence, flags, and the MD5 of its files
    inventory-reports/pmc-oa-opendata/metadata/<date>T<time>Z/manifest.json
                                               of a day: names the CSV files that list every metadata key

Source: https://pmc.ncbi.nlm.nih.gov/tools/pmcaws/. There are no packages, so each article costs two requests.
"""

import csv
import datetime
import gzip
import html
import io
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any, NamedTuple

from zlib_ng import gzip_ng, zlib_ng

from data_preprocessing.downloading.transfer import Again, Client, Failed, Refused
from modelzoo.config.errors import UserError
from modelzoo.reading import open_regular, parse_json

INVENTORIES = "inventory-reports/pmc-oa-opendata/metadata/"
NEWEST = 3  # inventories that are looked at: the newest may still be being written
MAX_METADATA = 4 << 20
CODES = (  # the licence codes that are counted by name
    "no code", "CC0", "CC BY", "CC BY-SA", "CC BY-ND", "CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND", "TDM", "another code"
)  # fmt: skip
GROUPS = {"comm": CODES[1:5], "noncomm": CODES[5:8], "other": (CODES[0], *CODES[8:])}  # as PMC groups them
_DATE = re.compile(rf"{INVENTORIES}(\d{{4}}-\d\d-\d\dT[\d-]+Z)/")
_METADATA = re.compile(r"(?:metadata|PMC\d+\.\d+)/PMC([1-9]\d{0,9})\.([1-9]\d{0,2})\.json")
_VERSION = re.compile(r"PMC\d+\.([1-9]\d{0,2})/")
_MD5 = re.compile(r"[0-9a-fA-F]{32}")
_ERROR: type[Exception] = zlib_ng.error  # pyright: ignore[reportAssignmentType] its stub calls the class an Exception
_TRUE, _FALSE = (True, "true", "yes", "1", 1), (False, None, "false", "no", "0", "", 0)


class Row(NamedTuple):
    """One metadata key of an inventory: an article's version, and the day on which its metadata last changed."""

    pmcid: int
    version: int
    day: int  # since 1970-01-01


class Metadata(NamedTuple):
    """What the service says of one version of an article."""

    code: str  # of CODES
    retracted: bool
    md5: bytes | None  # of its XML; None where it has no XML


class Inventory(NamedTuple):
    """One day's inventory, by its manifest."""

    date: str  # as in its key, 2026-09-14T01-00Z
    files: tuple[tuple[str, str | None], ...]  # (key, MD5)
    columns: tuple[str, ...]


class Incomplete(UserError):
    """An inventory that is still being written, or damaged."""


def name_article(pmcid: int, version: int) -> str:
    """PMC176545.1"""
    return f"PMC{pmcid}.{version}"


def name_xml(pmcid: int, version: int) -> str:
    """The key of an article's JATS, PMC176545.1/PMC176545.1.xml; its name in the tars too."""
    name = name_article(pmcid, version)
    return f"{name}/{name}.xml"


def sort_licence(code: str | None) -> str:
    """A licence code as one of CODES, whatever its case, blanks and hyphens."""
    text = re.sub(r"[\s_-]+", "-", (code or "").strip().upper())
    text = re.sub(r"-\d\.\d$", "", text).replace("CC-0", "CC0")
    known = {name.upper().replace(" ", "-"): name for name in CODES}
    return known.get(text, CODES[-1]) if text else CODES[0]


async def list_folders(client: Client, prefix: str) -> list[str]:
    """The folders of the bucket whose names begin with `prefix`, through all pages of the listing.

    Raises:
        Refused: the service does not list. Failed: all tries failed.
    """
    found: list[str] = []
    token = ""
    while True:
        query = f"list-type=2&prefix={urllib.parse.quote(prefix, safe='/')}&delimiter=/{token}"
        url = f"{client.settings.base_url}/?{query}"

        async def once(url: str = url) -> str:
            async with client.requesting(url) as response:
                page = (await client.read_body(response, 16 << 20)).decode("utf-8", "replace")
            if "</ListBucketResult>" not in page:
                raise Again("sends no listing of a bucket")
            return page

        page = await client.persist(url, once)
        found += [html.unescape(name) for name in re.findall(r"<CommonPrefixes>\s*<Prefix>([^<]*)</Prefix>", page)]
        more = re.search(r"<NextContinuationToken>([^<]+)<", page)
        if not more:
            return found
        token = f"&continuation-token={urllib.parse.quote(html.unescape(more[1]), safe='')}"


async def find_version(client: Client, pmcid: int) -> int:
    """The highest version of an article that the service has; 0 where it has none.

    Raises:
        Refused, Failed: as `list_folders`.
    """
    folders = await list_folders(client, f"PMC{pmcid}.")
    return max((int(m[1]) for name in folders if (m := _VERSION.fullmatch(name))), default=0)


async def list_inventories(client: Client) -> list[str]:
    """The dates of the newest inventories, newest first.

    Raises:
        UserError: there are none, or they cannot be listed.
    """
    where = f"{client.settings.base_url}/{INVENTORIES}"
    try:
        folders = await list_folders(client, INVENTORIES)
    except Refused as e:
        raise UserError(f"{e}; is --base_url laid out as PMC's cloud service?") from None
    dates = sorted({m[1] for name in folders if (m := _DATE.fullmatch(name))}, reverse=True)
    if not dates:
        raise UserError(f"{where}: lists no inventory; is --base_url laid out as PMC's cloud service?")
    return dates[:NEWEST]


async def read_manifest(client: Client, date: str) -> Inventory:
    """The manifest of one day's inventory.

    Raises:
        Incomplete: it is not there, or is none.
    """
    where = f"{INVENTORIES}{date}/manifest.json"
    try:
        value = parse_json(await client.read(f"{client.settings.base_url}/{where}"))
        files = tuple((file["key"], file.get("MD5checksum")) for file in value["files"])
        columns = tuple(name.strip() for name in value.get("fileSchema", "Bucket, Key, LastModifiedDate").split(","))
        good = all(isinstance(key, str) and isinstance(md5, str | None) for key, md5 in files)
    except (Refused, Failed) as e:
        raise Incomplete(str(e)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise Incomplete(f"{where}: is no whole manifest ({type(e).__name__})") from None
    if not files or not good or value.get("fileFormat", "CSV") != "CSV" or "Key" not in columns:
        raise Incomplete(f"{where}: names no CSV files of keys")
    if any(not re.fullmatch(r"[\w./-]{1,500}", key) or ".." in key for key, _ in files):
        raise Incomplete(f"{where}: names files out of the bucket")
    return Inventory(date, files, columns)


def read_rows(path: str, columns: tuple[str, ...]) -> Iterator[Row]:
    """The article versions that one CSV file of an inventory lists; other keys are passed over.

    Raises:
        Incomplete: the file is no whole gzip, or a row has another number of columns.
    """
    at_key = columns.index("Key")
    at_date = columns.index("LastModifiedDate") if "LastModifiedDate" in columns else None
    days: dict[str, int] = {"": 0}
    try:
        with open_regular(path) as raw, gzip_ng.GzipNGFile(fileobj=raw, mode="rb") as unpacked:
            for row in csv.reader(io.TextIOWrapper(unpacked, "utf-8", "replace", newline="")):
                if len(row) != len(columns):
                    raise Incomplete(f"{path}: a row has {len(row)} columns, not {len(columns)}")
                if not (m := _METADATA.fullmatch(row[at_key])):
                    continue
                date = "" if at_date is None else row[at_date][:10]
                if date not in days:
                    days[date] = (datetime.date.fromisoformat(date) - datetime.date(1970, 1, 1)).days
                yield Row(int(m[1]), int(m[2]), days[date])
    except (EOFError, _ERROR, gzip.BadGzipFile, csv.Error, ValueError) as e:
        raise Incomplete(f"{path}: is no whole inventory ({e})") from None


def read_metadata(data: bytes, pmcid: int, version: int) -> Metadata:
    """What the metadata of one version of an article say.

    Raises:
        Again: they are no JSON, those of another article, or name no MD5 of its XML.
    """
    try:
        value: dict[str, Any] = parse_json(data)
        same = value["pmcid"] == f"PMC{pmcid}" and int(value["version"]) == version
        code, retracted, url = value.get("license_code"), value.get("is_retracted"), value.get("xml_url")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise Again(f"sends no metadata of an article ({type(e).__name__})") from None
    flag = retracted.strip().lower() if isinstance(retracted, str) else retracted
    if not same or not isinstance(code, str | None) or flag not in (*_TRUE, *_FALSE):
        raise Again("sends other metadata than those of the article")
    if url is None or url == "":
        return Metadata(sort_licence(code), flag in _TRUE, None)
    if (md5 := _read_md5(url, name_xml(pmcid, version))) is None:
        raise Again("its metadata name no XML of it with an MD5")
    return Metadata(sort_licence(code), flag in _TRUE, md5)


def _read_md5(url: Any, key: str) -> bytes | None:
    """The MD5 in a metadata's URL of `key`, s3://BUCKET/KEY?md5=HEX; None where it is no such URL."""
    try:
        parts = urllib.parse.urlsplit(url)
        values = urllib.parse.parse_qs(parts.query, max_num_fields=100).get("md5", [])
    except (ValueError, AttributeError, TypeError):
        return None
    if parts.scheme not in ("s3", "http", "https") or not parts.path.endswith(f"/{key}") or len(values) != 1:
        return None
    return bytes.fromhex(values[0]) if _MD5.fullmatch(values[0]) else None
