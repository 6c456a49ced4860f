"""Whole training steps on this machine: ours against peers', and what sparsity costs or saves.

    python benchmarks/train_step.py                     # d=384, 6 layers, T=256, V=16384, batch 8; HF too
    python benchmarks/train_step.py --nanogpt ../nanoGPT --litgpt-python ../litgpt/.venv/bin/python \\
            --csx-python .venv-csx/bin/python           # nanoGPT, litgpt and cerebras.pytorch too
    python benchmarks/train_step.py --patterns 0.5,0.75,0.9 --compile --hidden 768 --heads 12 --batch 4

With --patterns, sparsity patterns stored as live blocks run with dense and masked-dense instead of the peers, and
ratios are to the best dense step, torch.compile's included.

Contestants take turns step by step; the table gives medians of each round's ratio with quartiles. MFU counts the
FLOPs that the step needs (live weights alone; attention in full) against a plain product [tokens, d] x [d, 4d] of torch
in the same rounds. Peers need `pip install -e .[bench]`; what is not there is left out and named.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from harness import Worker, machine, rounds, table
from ours import our_backend, our_run
from peers import hf_raw, hf_trainer, nanogpt
from program import run
from shapes import add_shapes, random_batch, resolve_dtype, shapes

from modelzoo.backends.step import clip_gradients
from modelzoo.config.arguments import positive_int
from modelzoo.sparsity.ledger import Ledger

REPO = Path(__file__).resolve().parents[1]
PRODUCT = "plain product"
PATTERNS = {
    "unstructured": {"block": [1, 1]},
    "32x32": {"block": [32, 32]},
    "64x64": {"block": [64, 64]},
    "32x1": {"block": [32, 1]},
    "shared inputs (4)": {"shared_inputs": 4},
}


class Ours:
    """A contestant: one training step of `run` on `batch`."""

    def __init__(self, args, batch, sparsity=None, compiled: bool = False):
        self.run, self.batch = our_run(args, sparsity, compiled), batch
        self.backend = our_backend(args, self.run.init)

    def __call__(self) -> None:
        self.backend.train_step(self.run, self.batch, 1)

    def flops(self) -> tuple[int, int]:
        """FLOPs of one more step as run, and of a dense one."""
        ledger, (_, length) = Ledger(), self.batch["input_ids"].shape
        tokens = self.batch["input_ids"].numel()
        run = self.run
        ledger.add(run.init.model, run.shapes, run.frozen, run.sparsity, tokens, length, run.step + 1)
        return ledger.sparse, ledger.dense


def patterns(args, batch) -> dict[str, Ours]:
    """Dense, masked and packed contestants."""
    make = partial(Ours, args, batch)
    found = {"dense": make()}
    if args.compile:
        found["dense, torch.compile"] = make(compiled=True)
    found["75 % masked"] = make(0.75)
    for level in map(float, args.patterns.split(",")):
        for name, pattern in PATTERNS.items():
            section = {"sparsity": level, "storage": "packed", **pattern}
            found[f"{level:.0%} {name}"] = make(section)
            if args.compile and name == "32x32":
                found[f"{level:.0%} {name}, torch.compile"] = make(section, compiled=True)
    if args.rigl:
        section = {"algorithm": "rigl", "sparsity": 0.75, "storage": "packed", "block": [32, 32]}
        found["75 % 32x32 RigL, between updates"] = make({**section, "update": {"freq": 10**6}})
        found["75 % 32x32 RigL, update steps"] = make({**section, "update": {"freq": 1}})
    return found


def peers(args) -> tuple[dict, list[str]]:
    """The peers that are to be had here, and a line for each that is not."""
    found, absent = {}, []
    try:
        found["HF raw loop"] = hf_raw(args)
        found["HF raw loop, fused AdamW"] = hf_raw(args, fused=True)
        found["HF Trainer"] = hf_trainer(args)
    except ImportError as e:
        absent.append(f"no Hugging Face: {e}")
    if args.nanogpt:
        with contextlib.redirect_stdout(sys.stderr):  # it talks
            found["nanoGPT"] = nanogpt(args, args.nanogpt)
    worker = str(REPO / "benchmarks" / "peers.py")
    threads = str(torch.get_num_threads())
    for name, peer, python in (
        ("litgpt", "litgpt", args.litgpt_python),
        ("cerebras.pytorch CPU, 75 %, fp32", "cerebras", args.csx_python),
    ):
        if python:
            command = [python, worker, peer, *shapes(args)]
            path = os.path.dirname(os.path.abspath(python)) + os.pathsep + os.environ["PATH"]
            modules = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])  # ours is not there
            found[name] = Worker(command, OMP_NUM_THREADS=threads, PATH=path, PYTHONPATH=modules)
    return found, absent


def product(args):
    """The yardstick of MFU, and its FLOPs."""
    tokens, d = args.batch * args.length, args.hidden
    dtype = getattr(torch, args.dtype)
    x, w = (torch.randn(*side, device=args.device).to(dtype) for side in ((tokens, d), (4 * d, d)))
    times = max(1, round((2e13 if args.device == "cuda" else 4e10) / (8 * tokens * d * d)))  # long enough to time

    def multiply():
        for _ in range(times):
            torch.nn.functional.linear(x, w)

    return multiply, times * 8 * tokens * d * d


def mask_cost(ours: Ours, count: int) -> tuple[float, float]:
    """Median seconds that keeping masks adds to a step, and of one mask update, on their own.

    Gradients are masked in the pass that finds their norm, so what counts is that pass against the norm's alone.
    """
    run, kept, update = ours.run, [], []
    group = run.sparsity.groups[0]

    def seconds(work) -> float:
        for p in run.sparsity.parameters:
            p.weight.grad = torch.randn_like(p.weight)
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    for _ in range(count):
        ours()
        alone = seconds(lambda: clip_gradients(run, {}))
        kept.append(seconds(lambda: clip_gradients(run, run.sparsity.mask_gradients(1))) - alone)  # 1: no update step
        if group.algorithm.changes:
            update.append(
                seconds(lambda: (run.sparsity.mask_gradients(100), run.sparsity.update(100, run.optimizer.state)))
            )
        run.optimizer.zero_grad(set_to_none=True)
    return statistics.median(kept), statistics.median(update) if update else 0.0


def mask_line(name: str, keep: float, update: float, dense: float) -> str:
    """What keeping masks adds, also as a share of a dense step of `dense` seconds; docs/performance.md reads it."""
    line = f"{name}: keeping masks adds {keep * 1e3:.2f} ms to a step, {keep / dense:.2%} of a dense step"
    if update:
        line += f"; an update {update * 1e3:.0f} ms, {update / (100 * dense):.2%} of the steps at freq 100"
    return line


def peer_line(ratio: float, peer: str) -> str:
    """How many times a peer's speed our dense step has; docs/performance.md reads it."""
    return f"ours, dense: {ratio:.2f}x {peer}'s speed"


def compete(args, contestants: dict, tokens: int, base: str | None) -> dict[str, list[float]]:
    """Let them take turns and print the table."""
    flops = {n: c.flops()[0] if isinstance(c, Ours) else None for n, c in contestants.items()}
    dense = next(c.flops()[1] for c in contestants.values() if isinstance(c, Ours))
    multiply, count = product(args)
    times = rounds({**contestants, PRODUCT: multiply}, args.rounds)
    peak = count / statistics.median(times.pop(PRODUCT))
    if base is None:
        base = min((n for n in times if n.startswith("dense")), key=lambda n: statistics.median(times[n]))
    print(f"{PRODUCT}: {peak / 1e9:.0f} GFLOP/s; a dense step needs {dense / 1e9:.0f} GFLOP")
    needed = {n: dense if f is None else f for n, f in flops.items()}
    print(table(times, base, tokens, "tokens", needed, peak), flush=True)
    return times


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shapes(p)
    p.add_argument("--rounds", type=positive_int, default=15)
    p.add_argument("--compile", action="store_true", help="ours with torch.compile too (25-90 s to build)")
    p.add_argument("--patterns", metavar="LEVELS", help="sparsity patterns at these levels (0.5,0.75) instead of peers")
    p.add_argument("--rigl", action="store_true", help="with --patterns: RigL on blocks, steps with and without update")
    p.add_argument("--nanogpt", metavar="CLONE", help="a clone of nanoGPT's repository")
    p.add_argument("--litgpt-python", metavar="PYTHON", help="of an environment with litgpt")
    p.add_argument("--csx-python", metavar="PYTHON", help="of the environment that make env-csx builds")
    args = p.parse_args()
    resolve_dtype(args)
    torch.manual_seed(0)
    batch = random_batch(args)
    size = f"{args.layers} layers x {args.hidden}, T={args.length}, V={args.vocab}, batch {args.batch}"
    print(f"{machine()}\n{size}, {args.dtype}", flush=True)
    tokens = args.batch * args.length
    if args.patterns:
        compete(args, patterns(args, batch), tokens, None)
        return
    rigl = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 100}}
    make = partial(Ours, args, batch)
    contestants = {"ours, dense": make(), "ours, 75 % static": make(0.75), "ours, 75 % RigL": make(rigl)}
    contestants["ours, 75 % 32x32 blocks"] = make({"sparsity": 0.75, "block": [32, 32], "storage": "packed"})
    if args.compile:
        contestants["ours, dense, torch.compile"] = make(compiled=True)
    others, absent = peers(args)
    print("\n".join(absent), end="\n" if absent else "", flush=True)
    base = "HF raw loop" if "HF raw loop" in others else "ours, dense"
    times = compete(args, contestants | others, tokens, base)
    dense = statistics.median(times["ours, dense"])
    for name, sparsity in (("static", 0.75), ("RigL", rigl)):
        keep, update = mask_cost(Ours(args, batch, sparsity), 10)
        print(mask_line(name, keep, update, dense))
    if "HF Trainer" in times:
        for peer in ("HF raw loop", "HF Trainer"):
            ratio = statistics.median(h / o for h, o in zip(times[peer], times["ours, dense"], strict=True))
            print(peer_line(ratio, peer))


if __name__ == "__main__":
    run(main)
