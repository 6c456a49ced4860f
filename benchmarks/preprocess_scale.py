"""Memory and time of the steps that look across the whole corpus, on made-up keys, hashes and signatures.

    nice -n 19 python benchmarks/preprocess_scale.py --documents 2000000 --buckets 8

The units are written as `extract` leaves them, without any text: 6 % of the records are newer versions of others, 2 %
have a text that came before, 2 % nearly one; orders delete 0.2 %. Each call is a process of its own, whose peak of
resident memory and CPU time (user + system) are measured; `import` is what a call holds that has nothing to do.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))
PERMUTATIONS = 64


def main() -> None:
    args = _arguments()
    if args.call:
        print(json.dumps(_make_call(args)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        _run(args, ["make", "0"], work)
        parts = {
            "import": [0],
            **dict.fromkeys(("keys", "texts", "near"), range(args.buckets)),
            "groups": [0],
            "encode": range(min(8, args.units)),  # the last step's reading of its drops
        }
        print(f"{args.documents:,} documents in {args.units:,} units, {args.buckets} buckets")
        print("step      calls    CPU s  peak MB a call  dropped or paired")
        digest = hashlib.sha256()
        for step, numbers in parts.items():
            found = [_run(args, [step, str(k)], work) for k in numbers]
            cpu, peak = sum(f["cpu"] for f in found), max(f["peak"] for f in found)
            print(f"{step:<9} {len(found):>5} {cpu:>8.2f} {peak / 1e6:>15,.0f}  {sum(f['count'] for f in found):,}")
            for k in numbers if step in ("keys", "texts", "near", "groups") else ():
                digest.update(Path(work, step, f"{k:05d}.npy").read_bytes())
        print(f"SHA-256 of what the steps left: {digest.hexdigest()}")


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--documents", type=int, default=2_000_000)
    p.add_argument("--units", type=int, default=80)
    p.add_argument("--buckets", type=int, default=8)
    p.add_argument("--memory", type=int, metavar="MB", help="of what a call sorts at a time (default: that of a job)")
    p.add_argument("--folder", metavar="DIR", help="where the made-up units go (1 GB for 2 million)")
    p.add_argument("--call", nargs=3, help=argparse.SUPPRESS)
    return p.parse_args()


def _run(args: argparse.Namespace, call: list[str], work: str) -> dict:
    flags = [f"--{name}={getattr(args, name)}" for name in ("documents", "units", "buckets")]
    flags += [f"--memory={args.memory}"] if args.memory else []
    words = [sys.executable, os.path.abspath(__file__), *flags, "--call", *call, work]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)


def _make_call(args: argparse.Namespace) -> dict:
    from data_preprocessing.config import Filters, Job
    from data_preprocessing.steps import drops, encode, minhash, resolve, store

    step, number, work = args.call
    job = Job(
        source="jsonl", input=(work,), output=work, buckets=args.buckets,
        filters=Filters(near_duplicates=0.8, near_permutations=PERMUTATIONS),
    )  # fmt: skip
    more = {"memory": args.memory << 20} if args.memory else {}
    os.makedirs(os.path.join(work, step), exist_ok=True)
    found: dict = {}
    if step == "make":
        _write_units(args, job, work)
    elif step in ("keys", "texts"):
        found = getattr(resolve, step)(job, work, int(number), args.buckets, args.units, **more)
    elif step == "near":
        found = minhash.near(job, work, int(number), args.buckets, args.units, **more)
    elif step == "groups":
        found = minhash.groups(job, work, args.buckets, **more)
    elif step == "encode":
        (reasons,) = store.load_columns(work, int(number), "reasons")
        reasons = drops.put(drops.load(work, encode.steps_before(job), args.buckets), int(number), reasons)
        found = {"dropped": int((reasons > 0).sum())}
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu": used.ru_utime + used.ru_stime,
        "peak": _peak(),
        "count": found.get("dropped", 0) or found.get("pairs", 0),
    }


def _peak() -> int:
    from modelzoo.host import peak_memory

    return peak_memory() or 0


def _write_units(args: argparse.Namespace, job, work: str) -> None:
    import numpy as np

    from data_preprocessing.steps import minhash, store

    os.makedirs(os.path.join(work, "extract"))
    rng = np.random.default_rng(0)
    edges = np.linspace(0, args.documents, args.units + 1).astype(int)
    numbers = lambda n: rng.integers(0, 2**64, n, np.uint64)
    before = None
    for unit, n in enumerate(np.diff(edges)):
        keys, hashes = numbers(n), np.stack([numbers(n), numbers(n)], 1)
        signatures = rng.integers(0, 2**32, (n, PERMUTATIONS), np.uint32)
        if before is not None:
            most = min(n, len(before[0]))
            at = rng.integers(0, most, int(0.06 * n))
            keys[at] = before[0][at]
            at = rng.integers(0, most, int(0.02 * n))
            hashes[at] = before[1][at]
            at = rng.integers(0, most, int(0.02 * n))
            signatures[at, 4:] = before[2][at, 4:]
        before = keys, hashes, signatures
        orders = int(0.002 * n)
        store.save(
            store.unit_path(work, "extract", unit, ".npz"),
            store.Extracted(
                keys=keys, versions=np.ones(n, np.int32), dates=np.zeros(n, np.int32), years=np.zeros(n, np.int16),
                reasons=np.zeros(n, np.uint8), lengths=np.full(n, 1500), hashes=hashes, prompts=np.zeros(n, np.int64),
                deleted=keys[:orders].copy(), deleted_at=np.full(orders, n),
            ),
        )  # fmt: skip
        store.save_array(store.unit_path(work, "extract", unit, ".sig.npy"), signatures)
        minhash.band_unit(job, work, unit, np.arange(n))


if __name__ == "__main__":
    main()
