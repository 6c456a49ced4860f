"""Whole training steps on one GPU: ours against nanoGPT's loop and Hugging Face's, and what sparsity saves there.

    python benchmarks/gpu.py --part dense --model XL --nanogpt ../nanoGPT     # tokens/s, MFU, memory beside peers'
    python benchmarks/gpu.py --part sparse --model XL                        # patterns against our dense step
    python benchmarks/gpu.py --part products                                 # packed linears alone, by blocks' side
    python benchmarks/gpu.py --part dense --tiny                             # the same code on any machine, in seconds

Contestants take turns of `--steps` steps and one wait for the GPU; the table gives medians of each round's ratio with
quartiles. MFU counts the FLOPs that the step needs (live weights alone; attention in full) against a plain product
[tokens, d] x [d, 4d] of torch in the same rounds. Memory is what a contestant allocates at most, alone.
"""

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from harness import rounds, spread, table
from ours import our_backend, our_run
from peers import hf_model, nanogpt_model, pairs_of
from program import run
from shapes import random_batch
from train_step import Ours, product

from modelzoo.config.arguments import positive_int
from modelzoo.kernels import choose, packed

MODELS = {"XL": (2048, 24, 16), "Large": (1536, 18, 12), "Med": (1024, 24, 16)}  # width, layers, heads
PATTERNS: dict[str, Any] = {
    "75 % masked, unstructured": 0.75,
    "75 % 128x128": {"sparsity": 0.75, "block": [128, 128], "storage": "packed"},
    "50 % 128x128": {"sparsity": 0.5, "block": [128, 128], "storage": "packed"},
    "75 % 64x64": {"sparsity": 0.75, "block": [64, 64], "storage": "packed"},
    "75 % 32x32": {"sparsity": 0.75, "block": [32, 32], "storage": "packed"},
    "75 % shared inputs (4)": {"sparsity": 0.75, "shared_inputs": 4, "storage": "packed"},
    "2:4": {"sparsity": 0.5, "nm": [2, 4], "storage": "compressed"},
}
PRODUCT = "plain product"


def wait(args) -> None:
    """Let the device finish."""
    if args.device == "cuda":
        torch.cuda.synchronize()


def allocated(args, peak: bool = False) -> int:
    """Bytes on the device, now or at most."""
    if args.device != "cuda":
        return 0
    return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()


def free(args) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()


class Contestant:
    """`--steps` steps a turn, the device waited for once at its end."""

    def __init__(self, args, make: Callable[[], Callable[[], object]]):
        free(args)
        before, begin = allocated(args), time.perf_counter()
        self.args, self.step = args, make()
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        built = time.perf_counter()
        for _ in range(3):
            self.step()
        wait(args)
        self.memory = allocated(args, peak=True) - before
        self.seconds = built - begin, time.perf_counter() - built  # to build, and for the first steps

    def __call__(self) -> None:
        for _ in range(self.args.steps):
            self.step()
        wait(self.args)


def ours(args, sparsity=None) -> tuple[Callable[[], Callable[[], object]], Ours]:
    """How our step is made, and the contestant that knows its FLOPs."""
    made = Ours.__new__(Ours)

    def make() -> Callable[[], object]:
        with undrawn():
            made.run, made.batch = our_run(args, sparsity, args.compile, model=QUICK), random_batch(args)
        made.backend = our_backend(args, made.run.init)
        redraw(made.run)
        return lambda: made.backend.queue_step(made.run, made.batch, 1)

    return make, made


# A billion weights are drawn on the device: on the host it takes half a minute.
SAME = {"name": "constant", "val": 0.01}
QUICK = {"initializer": SAME, "embedding_initializer": SAME}


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Leave new layers as they are allocated."""
    kinds: tuple[Any, ...] = torch.nn.Linear, torch.nn.Embedding
    kept = [k.reset_parameters for k in kinds]
    for k in kinds:
        k.reset_parameters = lambda self: None
    try:
        yield
    finally:
        for k, reset in zip(kinds, kept, strict=True):
            k.reset_parameters = reset


@torch.no_grad()
def redraw(made) -> None:
    """Draw weights at random: products of equal numbers are quicker than others."""
    for p in made.parameters.values():
        if p.dim() > 1:
            p.normal_(0.0, 0.02)
    made.sparsity.mask_weights()


def hf(args) -> Callable[[], object]:
    """The loop one writes by hand around Hugging Face's GPT-2, with fused AdamW."""
    model = hf_model(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    x, _ = pairs_of(args)
    return peer_step(args, model, optimizer, lambda: model(input_ids=x, labels=x).loss)


def nanogpt(args) -> Callable[[], object]:
    """nanoGPT's train.py on its model.py, compiled as it compiles it."""
    padded = SimpleNamespace(**{**vars(args), "vocab": -(-args.vocab // 64) * 64})  # as its train.py does
    model = nanogpt_model(padded, args.nanogpt)
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), args.device)
    called, (x, y) = torch.compile(model) if args.compile else model, pairs_of(args)
    return peer_step(args, model, optimizer, lambda: called(x, y)[1])


def peer_step(args, model, optimizer, loss_of) -> Callable[[], object]:
    """Autocast, loss, backward, clip, optimizer; the loss is not read back, as nanoGPT's loop reads it each tenth."""

    def step():
        with torch.autocast(args.device, getattr(torch, args.dtype), enabled=args.dtype != "float32"):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def compete(args, makers: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Build all that are to be had, let them take turns, print the table and return its figures."""
    contestants, counted, failed = {}, {}, {}
    for name, made in makers.items():
        make, knows = made if isinstance(made, tuple) else ((lambda made=made: made(args)), None)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # some peers talk
                contestants[name] = Contestant(args, make)
            counted[name] = knows.flops() if knows else None
            building, first = contestants[name].seconds
            print(f"{name}: built in {building:.0f} s, first three steps {first:.1f} s", flush=True)
        except Exception as e:
            failed[name] = " ".join(f"{type(e).__name__}: {e}".split())[:300]
            print(f"{name}: not measured, {failed[name]}", flush=True)
            free(args)
    multiply, count = product(args)

    def multiplied() -> None:
        multiply()
        wait(args)

    times = rounds({**contestants, PRODUCT: multiplied}, args.rounds)
    peak = count / statistics.median(times.pop(PRODUCT))
    tokens, dense = args.batch * args.length * args.steps, next(f[1] for f in counted.values() if f)
    needed = {n: args.steps * (f[0] if (f := counted[n]) else dense) for n in times}
    print(f"{PRODUCT}: {peak / 1e12:.0f} TFLOP/s; a dense step needs {dense / 1e12:.1f} TFLOP")
    print(table(times, base, tokens, "tokens", needed, peak))
    found = {}
    for name, seconds in times.items():
        middle, memory = statistics.median(seconds), contestants[name].memory
        ratio, low, high = spread([b / s for b, s in zip(times[base], seconds, strict=True)])
        found[name] = {
            "milliseconds": middle / args.steps * 1e3, "tokens_per_second": tokens / middle,
            "mfu": needed[name] / middle / peak, "memory_bytes": memory, "ratio": ratio, "low": low, "high": high,
        }  # fmt: skip
        print(f"memory     {name}: {memory / 1e9:.1f} GB", flush=True)
    return {"contestants": found, "product_tflops": peak / 1e12, "failed": failed, "base": base}


def measure_steps(args) -> dict[str, Any]:
    """`--part dense` or `sparse`."""
    if args.part == "sparse":
        wanted = [n for n in PATTERNS if not args.patterns or n in args.patterns]
        return compete(args, {"dense": ours(args), **{n: ours(args, PATTERNS[n]) for n in wanted}}, "dense")
    makers: dict[str, Any] = {"ours, dense": ours(args)}
    if args.nanogpt:
        makers["nanoGPT"] = nanogpt
    makers["Hugging Face"] = hf
    return compete(args, makers, "ours, dense")


def measure_products(args) -> dict[str, Any]:
    """`--part products`: forward, dX and dW of packed linears against torch's dense products, on an idle GPU."""
    n, found = args.batch * args.length, {}
    dtype = getattr(torch, args.dtype)
    for out, inputs in ((args.hidden, args.hidden), (4 * args.hidden, args.hidden), (args.hidden, 4 * args.hidden)):
        x, dy = (torch.randn(n, side, device=args.device).to(dtype) for side in (inputs, out))
        w = torch.randn(out, inputs, device=args.device).to(dtype)
        calls = {"dense": [lambda: F.linear(x, w), lambda: dy @ w, lambda: dy.t() @ x]}  # noqa: B023  called below
        for side in (32, 64, 128):
            if out % side or inputs % side:
                continue
            score = torch.rand(out // side, inputs // side, device=args.device)
            layout = packed.layout_of(
                score <= score.flatten().kthvalue(max(1, score.numel() // 4)).values, (side, side)
            )
            values = packed.pack(w, layout)
            kernel = choose.choose_kernel(layout, torch.device(args.device), dtype)
            calls[f"75 % {side}x{side}, {kernel.NAME}"] = [
                lambda k=kernel, v=values, at=layout: k.forward(x, v, at, None),  # noqa: B023
                lambda k=kernel, v=values, at=layout: k.backward_x(dy, v, at),  # noqa: B023
                lambda k=kernel, at=layout: k.backward_w(dy, x, at),  # noqa: B023
            ]
        for i, part in enumerate(("forward", "dX", "dW")):
            times = rounds({name: lambda f=f[i]: repeat(args, f) for name, f in calls.items()}, args.rounds)
            print(f"{inputs} -> {out}, {n} tokens, {part}")
            print(table(times, "dense", n * args.steps, "tokens"), flush=True)
            middles = {k: statistics.median(v) / args.steps for k, v in times.items()}
            found[f"{inputs} -> {out} {part}"] = {k: {"microseconds": v * 1e6} for k, v in middles.items()}
    return {"products": found}


def repeat(args, f: Callable[[], object]) -> None:
    """`--steps` calls and one wait."""
    for _ in range(args.steps):
        f()
    wait(args)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--part", choices=["dense", "sparse", "products"], default="dense")
    p.add_argument("--model", choices=MODELS, default="XL")
    p.add_argument("--batch", type=positive_int, default=4, help="sequences of 2048 tokens (4)")
    p.add_argument("--rounds", type=positive_int, default=5)
    p.add_argument("--steps", type=positive_int, default=5, help="of a turn (5)")
    p.add_argument("--dtype", default="bfloat16")
    p.add_argument("--patterns", nargs="+", choices=PATTERNS, help="of --part sparse; default: all")
    p.add_argument("--eager", action="store_true", help="nothing compiled, ours neither")
    p.add_argument("--nanogpt", metavar="CLONE", help="a clone of nanoGPT's repository")
    p.add_argument("--tiny", action="store_true", help="two narrow layers, a rehearsal; on a CPU where no GPU is")
    p.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = p.parse_args()
    args.hidden, args.layers, args.heads = MODELS[args.model]
    args.length, args.vocab, args.compile = 2048, 50257, not args.eager
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.tiny:
        args.hidden, args.layers, args.heads, args.length, args.vocab = 256, 2, 4, 128, 1003
        args.compile = args.compile and args.device == "cuda"
        args.dtype = args.dtype if args.device == "cuda" else "float32"
    elif args.device == "cpu":
        p.error("no GPU is here; --tiny rehearses on a CPU")
    torch.manual_seed(0)
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, a rehearsal"
    size = f"{args.layers} layers x {args.hidden}, T={args.length}, V={args.vocab}, batch {args.batch}, {args.dtype}"
    print(f"{card}, torch {torch.__version__}\n{args.model}: {size}{', compiled' if args.compile else ''}", flush=True)
    result = measure_products(args) if args.part == "products" else measure_steps(args)
    about = {"card": card, "torch": torch.__version__, "part": args.part, "model": args.model, "size": size}
    if args.json:
        Path(args.json).write_text(json.dumps({**about, **result}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
