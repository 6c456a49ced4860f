"""Downloads from PMC's cloud service, killed at random moments.

python -m tests.data_preprocessing.downloading.pmc_kills
"""

import argparse
import hashlib
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from data_preprocessing import cli
from tests.data_preprocessing.downloading.pmc_service import make_articles, serving


def words(service, out, *more):
    workers = () if "--workers" in more else ("--workers", "8")
    return ["download", "--output", str(out), "--base_url", service.url, *workers, *map(str, more)]


def tree(out: Path) -> dict[str, str]:
    """The SHA-256 of every file that a download leaves, but for the day in its record."""
    found = {p.name: p.read_bytes() for p in sorted(out.glob("[!.]*")) if p.is_file()}
    if (record := found.get("download.json")) is not None:
        found["download.json"] = json.dumps(json.loads(record) | {"begun": ""}).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def kill_at_random(service, out, flags, kills: int, seed: int) -> int:
    """Kill a download `kills` times, after a random number of requests each, and let it end; returns the kills."""
    draw, killed = random.Random(seed), 0
    while True:
        stop = len(service.asked) + draw.randrange(1, 60) if killed < kills else float("inf")
        if not (child := os.fork()):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            os._exit(cli.main(words(service, out, *flags)))
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if len(service.asked) >= stop:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.001)
        if (code := os.waitstatus_to_exitcode(ended[1])) == 0:
            return killed
        assert code == -signal.SIGKILL
        killed += 1


def main() -> None:
    """One download that is left alone, and one that is killed again and again: the same bytes, or an error."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--kills", type=int, default=60)
    p.add_argument("--articles", type=int, default=1500)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    flags = ["--pmc", "--articles_per_tar", 40]
    with tempfile.TemporaryDirectory() as folder, serving(make_articles(args.articles)) as service:
        whole, out = Path(folder, "whole"), Path(folder, "out")
        if cli.main(words(service, whole, *flags)):
            raise SystemExit("the download that was left alone failed")
        requests = len(service.asked)
        killed = kill_at_random(service, out, flags, args.kills, args.seed)
        if tree(out) != tree(whole):
            raise SystemExit(f"after {killed} kills the files differ")
        more, files = len(service.asked) - 2 * requests, len(tree(out))
        print(f"{killed} kills: {files} files equal to the byte; {requests:,} requests of one run, and {more:,} more")


if __name__ == "__main__":
    main()
