"""Mirrors of NLM's baseline and of PMC's cloud service on this machine: a process of its own that serves files."""

import functools
import gzip
import hashlib
import http.server
import json
import os
import signal
import threading
import time
import urllib.parse
from pathlib import Path

from tests.faults.world import World

ARTICLES = 5
INVENTORIES = "inventory-reports/pmc-oa-opendata/metadata/"
_running: dict[Path, str] = {}


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words) -> None:
        pass

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if "list-type" not in query:
            super().do_GET()
            return
        folder = Path(self.translate_path(self.path), query["prefix"][0])
        names = [f"{query['prefix'][0]}{name}/" for name in sorted(os.listdir(folder))]
        found = "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in names)
        body = f"<ListBucketResult>{found}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def address(world: World) -> str:
    """The mirror's address; it starts at the first call and ends with this process."""
    if world.path not in _running:
        root = world.path.with_name(f"{world.path.name}-mirror-{os.getpid()}")
        _fill(world, root / "pubmed/baseline")
        _fill_pmc(root / "pmc")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(root)))
        parent = os.getpid()
        if not os.fork():
            _serve(server, parent)
        server.socket.close()
        _running[world.path] = f"http://127.0.0.1:{server.server_port}"
    return _running[world.path]


def _fill(world: World, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n, path in enumerate(sorted((world.path / "xml").iterdir()), 1):
        data, name = path.read_bytes(), f"pubmed30n{n:04d}.xml.gz"
        (folder / name).write_bytes(data)
        (folder / f"{name}.md5").write_text(f"MD5({name})= {hashlib.md5(data).hexdigest()}\n")


def _fill_pmc(folder: Path) -> None:
    """A bucket of a few articles, the second under another licence."""
    rows = []
    for n in range(1, ARTICLES + 1):
        name, xml = f"PMC{n}.1", f"<article><p>{hashlib.sha256(bytes([n])).hexdigest()}</p></article>".encode()
        url = f"s3://pmc-oa-opendata/{name}/{name}.xml?md5={hashlib.md5(xml).hexdigest()}"
        code = "CC BY-NC" if n == 2 else "CC BY"
        facts = {"pmcid": f"PMC{n}", "version": 1, "license_code": code, "is_retracted": False, "xml_url": url}
        _write(folder / name / f"{name}.xml", xml)
        _write(folder / "metadata" / f"{name}.json", json.dumps(facts).encode())
        rows.append(f'"pmc-oa-opendata","metadata/{name}.json","2030-01-01T00:00:00.000Z","0"\n')
    data = gzip.compress("".join(rows).encode(), mtime=0)
    files = [{"key": "rows.csv.gz", "MD5checksum": hashlib.md5(data).hexdigest()}]
    manifest = {"fileFormat": "CSV", "fileSchema": "Bucket, Key, LastModifiedDate, ETag", "files": files}
    _write(folder / "rows.csv.gz", data)
    _write(folder / INVENTORIES / "2030-01-02T01-00Z" / "manifest.json", json.dumps(manifest).encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _serve(server: http.server.ThreadingHTTPServer, parent: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)
