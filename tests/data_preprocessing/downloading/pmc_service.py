"""A stand-in of PMC's cloud service on the loopback, which goes wrong as it is asked to."""

import contextlib
import gzip
import hashlib
import http.server
import json
import re
import sys
import threading
import time
import urllib.parse

INVENTORIES = "inventory-reports/pmc-oa-opendata/metadata/"
DATES = ("2026-11-24T01-00Z", "2026-11-23T01-00Z", "2026-11-22T01-00Z", "2026-11-21T01-00Z")
CODES = ("CC BY", "CC BY-NC", "CC0", None, "CC BY-ND", "TDM")


def make_xml(pmcid: int, version: int = 1) -> bytes:
    """An article of its own as JATS."""
    words = " ".join(hashlib.sha256(f"{pmcid} {version} {k}".encode()).hexdigest()[:7] for k in range(120))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<article article-type="research-article"><front><article-meta>'
        f'<article-id pub-id-type="pmcid">PMC{pmcid}</article-id><title-group><article-title>Number {pmcid}, version '
        f"{version}</article-title></title-group><abstract><p>Of {pmcid} {words}.</p></abstract></article-meta></front>"
        f"<body><sec><title>Results</title><p>{words[::-1]}</p></sec></body></article>\n"
    ).encode()


def make_articles(count: int, first: int = 101) -> dict[tuple[int, int], tuple[bytes, str | None, bool, str]]:
    """{(id, version): (XML, licence code, is retracted, day of its metadata)}: every fifth id has two versions."""
    found = {}
    for k in range(count):
        for version in (1, 2) if k % 5 == 0 else (1,):
            day = f"2026-{1 + k % 9:02d}-1{version}"
            found[first + k, version] = make_xml(first + k, version), CODES[k % len(CODES)], k % 11 == 10, day
    return found


class Service(http.server.ThreadingHTTPServer):
    """The bucket.

    Attributes:
        articles: as of `make_articles`.
        faults: key of an object -> what happens at the next requests for it: a status, or a word of `Handler.do_GET`.
        always: the same, at every request. asked: the keys that were asked for, and when.
        damaged: date of an inventory -> what is wrong with it.
        changed: key of an XML -> its bytes once its metadata were sent, and new metadata with them.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, articles: dict):
        super().__init__(("127.0.0.1", 0), Handler)
        self.articles = articles
        self.faults: dict[str, list[str]] = {}
        self.always: dict[str, str] = {}
        self.damaged: dict[str, str] = {}
        self.changed: dict[str, bytes] = {}
        self.asked: list[tuple[str, float]] = []
        self.pause = 0.0  # seconds before each answer

    def handle_error(self, request, client_address):
        """Clients are killed here, in the middle of answers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def find(self, key: str) -> bytes | None:
        """The bytes of an object."""
        if key.startswith(INVENTORIES):
            return next((files[key] for date in DATES if key in (files := self._list_articles(date))), None)
        if m := re.fullmatch(r"metadata/PMC(\d+)\.(\d+)\.json", key):
            return self._describe(int(m[1]), int(m[2]))
        m = re.fullmatch(r"PMC(\d+)\.(\d+)/PMC\1\.\2\.xml", key)
        found = self.articles.get((int(m[1]), int(m[2]))) if m else None
        return self.changed.get(key, found[0]) if found else None

    def _describe(self, pmcid: int, version: int) -> bytes | None:
        if (found := self.articles.get((pmcid, version))) is None:
            return None
        name = f"PMC{pmcid}.{version}"
        key = f"{name}/{name}.xml"
        seen = any(asked == f"metadata/{name}.json" for asked, _ in self.asked[:-1])
        xml = self.changed.get(key, found[0]) if seen else found[0]
        facts = {"pmcid": f"PMC{pmcid}", "version": version, "title": "Größe", "pmid": None, "media_urls": []}
        facts |= {"license_code": found[1], "is_retracted": found[2], "is_pmc_openaccess": True}
        facts["xml_url"] = f"s3://pmc-oa-opendata/{key}?md5={hashlib.md5(xml).hexdigest()}" if xml else None
        return json.dumps(facts).encode()

    def _list_articles(self, date: str) -> dict[str, bytes]:
        """The files of one day's inventory, their rows in no order."""
        fault = self.damaged.get(date, "")
        rows = [
            f'"pmc-oa-opendata","metadata/PMC{i}.{v}.json","{day}T08:00:00.000Z","{i:032x}"\n'
            for (i, v), (_, _, _, day) in sorted(self.articles.items(), key=lambda a: a[0][0] * 7919 % 1009)
        ]
        rows.append('"pmc-oa-opendata","metadata/","2026-01-01T00:00:00.000Z","0"\n')
        parts = [gzip.compress("".join(rows[k::2]).encode(), mtime=0) for k in (0, 1)]
        keys = [f"{INVENTORIES}data/{date[:10]}-{k}.csv.gz" for k in (0, 1)]
        entries = [{"key": key, "size": len(part)} for key, part in zip(keys, parts, strict=True)]
        if "no md5" not in fault:
            for entry, part in zip(entries, parts, strict=True):
                entry["MD5checksum"] = hashlib.md5(part).hexdigest()
        manifest = {"sourceBucket": "pmc-oa-opendata", "version": "2016-11-30", "fileFormat": "CSV", "files": entries}
        text = json.dumps(manifest | {"fileSchema": "Bucket, Key, LastModifiedDate, ETag"}).encode()
        files = {f"{INVENTORIES}{date}/manifest.json": text[: len(text) // 2] if "cut manifest" in fault else text}
        if "no manifest" in fault:
            files.clear()
        if "cut file" in fault:
            parts[1] = parts[1][: len(parts[1]) // 2]
        return files | dict(zip(keys[: 1 if "no file" in fault else 2], parts, strict=False))

    def list_folders(self, prefix: str) -> list[str]:
        """What a listing with the delimiter / shows."""
        if prefix == INVENTORIES:
            return [f"{prefix}{date}/" for date in DATES] + [f"{prefix}data/", f"{prefix}hive/"]
        return sorted(name for i, v in self.articles if (name := f"PMC{i}.{v}/").startswith(prefix))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, *_):
        pass

    def do_GET(self):
        where = urllib.parse.urlsplit(self.path)
        key, query = where.path.lstrip("/"), urllib.parse.parse_qs(where.query)
        name = key or query["prefix"][0]
        self.server.asked.append((name, time.monotonic()))
        time.sleep(self.server.pause)
        left = self.server.faults.get(name, [])
        fault = left.pop(0) if left else self.server.always.get(name, "")
        body = self.server.find(key) if key else self._list(query)
        if fault.isdigit() or body is None:
            self._reply(b"<Error><Code>NoSuchKey</Code></Error>", int(fault) if fault.isdigit() else 404)
        elif fault.startswith("429 after "):
            self._reply(b"", 429, Retry_After=fault.removeprefix("429 after "))
        elif fault == "flip":
            self._reply(bytes([body[0] ^ 1]) + body[1:])
        elif fault == "junk":
            self._reply(b"<html>")
        elif fault in ("cut", "drip"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for byte in body[:30] if fault == "drip" else b"":
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)
                self.wfile.write(body[: len(body) // 2] if fault == "cut" else b"")
            self.close_connection = True
        else:
            self._reply(body)

    def _list(self, query: dict) -> bytes:
        """Two folders a page."""
        assert query["list-type"] == ["2"] and query["delimiter"] == ["/"]
        folders, begin = self.server.list_folders(query["prefix"][0]), int(query.get("continuation-token", ["0"])[0])
        more = begin + 2 < len(folders)
        token = f"<NextContinuationToken>{begin + 2}</NextContinuationToken>" if more else ""
        found = "".join(f"<CommonPrefixes><Prefix>{f}</Prefix></CommonPrefixes>" for f in folders[begin : begin + 2])
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated><Prefix>{query['prefix'][0]}</Prefix>{token}{found}"
            "</ListBucketResult>"
        ).encode()

    def _reply(self, body: bytes, code: int = 200, **headers):
        head = f"HTTP/1.1 {code} X\r\nContent-Length: {len(body)}\r\n"
        head += "".join(f"{key.replace('_', '-')}: {value}\r\n" for key, value in headers.items())
        with contextlib.suppress(OSError):
            self.wfile.write(head.encode() + b"\r\n" + body)


@contextlib.contextmanager
def serving(articles: dict):
    """A service that answers while the body runs."""
    service = Service(articles)
    threading.Thread(target=service.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()


if __name__ == "__main__":  # python pmc_service.py COUNT: prints its address, and serves until it is ended
    with serving(make_articles(int(sys.argv[1]))) as found:
        print(found.url, flush=True)
        threading.Event().wait()
