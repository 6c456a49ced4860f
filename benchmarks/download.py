"""How many articles `download --pmc` fetches a second, and in how much memory, from a stand-in on the loopback.

    python benchmarks/download.py --articles 20000 --workers 64

The stand-in is a process of its own on the same cores: an inventory, metadata, and XML of 82 kB, the mean of PMC's,
made of words so that gzip has as much to do as on real text. No network is this near: the figure is what the program
can take, two requests an article, with MD5, spool, check and tar.gz. Time is that of the whole command.
"""

import argparse
import asyncio
import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from modelzoo.config.arguments import positive_int
from modelzoo.host import wait_for_child

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))
BODIES, BYTES = 64, 82_000
DATE = "inventory-reports/pmc-oa-opendata/metadata/2026-11-24T01-00Z/"


def main() -> None:
    args = _arguments()
    if args.serve:
        asyncio.run(serve(args.articles))
        return
    from forced import describe

    from modelzoo.kernels.processor import model_name

    print(f"{model_name()}, {describe()}, {os.cpu_count()} cores")
    command = [sys.executable, __file__, "--serve", "--articles", str(args.articles)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        assert server.stdout
        with tempfile.TemporaryDirectory() as folder:
            measure(server.stdout.readline().strip(), os.path.join(folder, "pmc"), args)
    finally:
        server.kill()


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--articles", type=positive_int, default=20_000)
    p.add_argument("--workers", type=positive_int, default=64)
    p.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return p.parse_args()


def measure(url: str, output: str, args: argparse.Namespace) -> None:
    """Run the command once and print its figures."""
    command = ["-m", "data_preprocessing", "download", "--pmc", "all", "--licence", "all", "--output", output]
    command += ["--base_url", url, "--workers", str(args.workers)]
    begun = time.monotonic()
    child = subprocess.Popen([sys.executable, *command], cwd=REPO, stderr=subprocess.DEVNULL)
    code, cpu, memory = wait_for_child(child.pid)
    seconds = time.monotonic() - begun
    if code:
        raise SystemExit(f"the download failed ({code})")
    size = sum(path.stat().st_size for path in Path(output).glob("*.tar.gz"))
    print(
        f"{args.articles:,} articles, {args.workers} connections: {args.articles / seconds:,.0f} articles/s, "
        f"{2 * args.articles / seconds:,.0f} requests/s, {args.articles * BYTES / seconds / 1e6:.1f} MB/s; "
        f"{1e3 * cpu / args.articles:.2f} CPU-ms an article; peak {memory / 1e6:.0f} MB; "
        f"{size / 1e6:,.0f} MB of tars"
    )


async def serve(articles: int) -> None:
    """Answer until the process is killed; the first line printed is the address."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randrange(2, 11))) for _ in range(5000)]
    bodies = []
    for _ in range(BODIES):
        text = " ".join(draw.choices(words, k=BYTES // 4))[: BYTES - 27]
        bodies.append(f"<article><p>{text}</p></article>".encode())
    sums = [hashlib.md5(body).hexdigest() for body in bodies]
    rows = (f'"b","metadata/PMC{k}.1.json","2026-11-01T00:00:00.000Z","0"\n' for k in range(1, articles + 1))
    inventory = gzip.compress("".join(rows).encode())
    files = [{"key": "inventory.csv.gz", "MD5checksum": hashlib.md5(inventory).hexdigest()}]
    manifest = {"fileFormat": "CSV", "fileSchema": "Bucket, Key, LastModifiedDate, ETag", "files": files}
    known = {
        "/inventory.csv.gz": inventory,
        f"/{DATE}manifest.json": json.dumps(manifest).encode(),
        "/": f"<ListBucketResult><CommonPrefixes><Prefix>{DATE}</Prefix></CommonPrefixes></ListBucketResult>".encode(),
    }
    article = re.compile(r"/(?:metadata/)?PMC(\d+)\.1(?:\.json|/.*)")

    def find(path: str) -> bytes:
        if (found := known.get(path)) is not None:
            return found
        k = int(article.fullmatch(path)[1])  # type: ignore[index]
        if not path.startswith("/metadata/"):
            return bodies[k % BODIES]
        url = f"s3://b/PMC{k}.1/PMC{k}.1.xml?md5={sums[k % BODIES]}"
        facts = {"pmcid": f"PMC{k}", "version": 1, "license_code": "CC BY", "is_retracted": False, "xml_url": url}
        return json.dumps(facts).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                body = find(head.split(b" ", 2)[1].decode().partition("?")[0])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    main()
