"""Whole training steps on one GPU: ours against nanoGPT's loop and Hugging Face's, and what sparsity saves there.

    python benchmarks/gpu.py --part dense --model XL --nanogpt ../nanoGPT     # tokens/s, MFU, memory beside peers'
    python benchmarks/gpu.py --part sparse --model XL                        # patterns against our dense step
    python benchmarks/gpu.py --part products                                 # packed linears alone, by blocks' side
    python benchmarks/gpu.py --part dense --tiny                             # the same code on any machine, in seconds

Each contestant takes turns with our dense step; ratios are medians of each round's, with quartiles. MFU counts the
FLOPs that the step needs (live weights alone; attention in full) against a plain product [tokens, d] x [d, 4d] of torch
in the same rounds. Memory is what a contestant allocates at most, less what was there before.
"""

import argparse
import contextlib
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from gpu_turns import Make, Record, compete, wait
from harness import rounds, table
from ours import our_backend, our_run
from peers import hf_model, nanogpt_model, pairs_of
from program import run
from shapes import random_batch
from train_step import Ours

from modelzoo.config.arguments import positive_int
from modelzoo.config.errors import UserError
from modelzoo.kernels.blocks.layout import layout_of, pack
from modelzoo.kernels.products import choose

# width, layers, heads; Base is no model of the paper: what is fine-tuned on a small card
MODELS = {"XL": (2048, 24, 16), "Large": (1536, 18, 12), "Med": (1024, 24, 16), "Base": (768, 12, 12)}
PATTERNS: dict[str, Any] = {
    "75 % masked, unstructured": 0.75,
    "75 % 128x128": {"sparsity": 0.75, "block": [128, 128], "storage": "packed"},
    "50 % 128x128": {"sparsity": 0.5, "block": [128, 128], "storage": "packed"},
    "75 % 64x64": {"sparsity": 0.75, "block": [64, 64], "storage": "packed"},
    "75 % 32x32": {"sparsity": 0.75, "block": [32, 32], "storage": "packed"},
    "75 % shared inputs (4)": {"sparsity": 0.75, "shared_inputs": 4, "storage": "packed"},
    "50 % shared inputs (4)": {"sparsity": 0.5, "shared_inputs": 4, "storage": "packed"},
    "2:4": {"sparsity": 0.5, "nm": [2, 4], "storage": "compressed"},
}


class Quick(Ours):
    """Our step, soon built, and queued as a run queues it; `graphs`: replayed as a CUDA graph, as it is by default."""

    def __init__(self, args, sparsity=None, graphs: bool = True):
        with undrawn():
            self.run, self.batch = our_run(args, sparsity, args.compile, model=QUICK), random_batch(args)
        self.backend = our_backend(args, self.run.init)
        self.backend.config = self.backend.config.model_copy(update={"cuda_graphs": graphs})
        redraw(self.run)

    def __call__(self) -> None:
        self.backend.queue_step(self.run, self.batch, 1)


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


def nanogpt(args, compiled: str) -> Callable[[], object]:
    """nanoGPT's train.py on its model.py; `compiled`: "whole", as it compiles it, its "layers" alone, or nothing."""
    padded = SimpleNamespace(**{**vars(args), "vocab": -(-args.vocab // 64) * 64})  # as its train.py does
    model = nanogpt_model(padded, args.nanogpt)
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), args.device)
    if compiled == "layers" and args.compile:
        for layer in model.transformer.h:  # pyright: ignore[reportGeneralTypeIssues]  its own class
            layer.compile()
    whole = compiled == "whole" and args.compile
    called, (x, y) = torch.compile(model) if whole else model, pairs_of(args)
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


BASE = "ours, dense"
WHOLE = "nanoGPT, compiled whole"  # as its train.py does; more layers at once than a compiler is quick with
PEERS: dict[str, Callable[..., Callable[[], object]]] = {
    "ours, without CUDA graphs": partial(Quick, graphs=False),
    "Hugging Face": hf,
    "nanoGPT, its layers compiled": lambda args: nanogpt(args, "layers"),
    "nanoGPT, not compiled": lambda args: nanogpt(args, ""),
    WHOLE: lambda args: nanogpt(args, "whole"),
}


def choose_names(args) -> list[str]:
    """The contestants of `--part dense` or `sparse`; a peer that is not to be had is not among them.

    Raises:
        UserError: `--only` names one of the other part.
    """
    table = PATTERNS if args.part == "sparse" else PEERS
    if unknown := [n for n in args.only or () if n not in table]:
        raise UserError(f"--only {unknown[0]}: --part {args.part} has {', '.join(table)}")
    return [n for n in args.only or table if (n != WHOLE or args.only) and (args.nanogpt or "nanoGPT" not in n)]


def measure_steps(args, record: Record) -> None:
    """`--part dense` or `sparse`."""
    makers: dict[str, Make] = {BASE: lambda: Quick(args)}
    for name in choose_names(args):
        makers[name] = partial(Quick, args, PATTERNS[name]) if args.part == "sparse" else partial(PEERS[name], args)
    compete(args, makers, BASE, record)


def measure_products(args, record: Record) -> None:
    """`--part products`: forward, dX and dW of packed linears against torch's dense products, on an idle GPU."""
    n, dtype = args.batch * args.length, getattr(torch, args.dtype)
    for out, inputs in ((args.hidden, args.hidden), (4 * args.hidden, args.hidden), (args.hidden, 4 * args.hidden)):
        x, dy = (torch.randn(n, side, device=args.device).to(dtype) for side in (inputs, out))
        w = torch.randn(out, inputs, device=args.device).to(dtype)
        calls = {"dense": [lambda: F.linear(x, w), lambda: dy @ w, lambda: dy.t() @ x]}  # noqa: B023  called below
        for side in (32, 64, 128):
            if out % side or inputs % side:
                continue
            score = torch.rand(out // side, inputs // side, device=args.device)
            layout = layout_of(score <= score.flatten().kthvalue(max(1, score.numel() // 4)).values, (side, side))
            values = pack(w, layout)
            kernel = choose.choose_kernel(layout, torch.device(args.device), dtype)
            calls[f"75 % {side}x{side}, {kernel.NAME}"] = [
                lambda k=kernel, v=values, at=layout: k.forward(x, v, at, None),  # noqa: B023
                lambda k=kernel, v=values, at=layout: k.backward_x(dy, v, at),  # noqa: B023
                lambda k=kernel, at=layout: k.backward_w(dy, x, at),  # noqa: B023
            ]
        for i, part in enumerate(("forward", "dX", "dW")):
            record.begin(f"{inputs} -> {out} {part}")
            times = rounds({name: lambda f=f[i]: repeat(args, f) for name, f in calls.items()}, args.rounds)
            print(f"{inputs} -> {out}, {n} tokens, {part}")
            print(table(times, "dense", n * args.steps, "tokens"), flush=True)
            middles = {k: statistics.median(v) / args.steps for k, v in times.items()}
            row = {k: {"microseconds": v * 1e6} for k, v in middles.items()}
            record.put("products", f"{inputs} -> {out} {part}", row)
    record.begin(None)


def repeat(args, f: Callable[[], object]) -> None:
    """`--steps` calls and one wait."""
    for _ in range(args.steps):
        f()
    wait(args)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--part", choices=["dense", "sparse", "products"], default="dense")
    p.add_argument("--model", choices=MODELS, default="XL")
    p.add_argument("--batch", type=positive_int, default=4, help="sequences (4)")
    p.add_argument("--length", type=positive_int, default=2048, help="tokens of a sequence (2048)")
    p.add_argument("--rounds", type=positive_int, default=5)
    p.add_argument("--steps", type=positive_int, default=4, help="of a turn (4)")
    p.add_argument("--dtype", default="bfloat16")
    p.add_argument(
        "--only", nargs="+", choices=[*PATTERNS, *PEERS], help="patterns or peers; default: all that soon run"
    )
    p.add_argument("--eager", action="store_true", help="nothing compiled, ours neither")
    p.add_argument("--nanogpt", metavar="CLONE", help="a clone of nanoGPT's repository")
    p.add_argument("--tiny", action="store_true", help="two narrow layers, a rehearsal; on a CPU where no GPU is")
    p.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = p.parse_args()
    args.hidden, args.layers, args.heads = MODELS[args.model]
    args.vocab, args.compile = 50257, not args.eager
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.tiny:
        args.hidden, args.layers, args.heads, args.length, args.vocab = 256, 2, 4, 128, 1003
        args.compile = args.compile and args.device == "cuda"
        args.dtype = args.dtype if args.device == "cuda" else "float32"
    elif args.device == "cpu":
        p.error("no GPU is here; --tiny rehearses on a CPU")
    # Contestants share the code of a layer: each gets a compilation of its own, as where it is alone in a process.
    torch._dynamo.config.automatic_dynamic_shapes, torch._dynamo.config.recompile_limit = False, 64
    torch.manual_seed(0)
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, a rehearsal"
    size = f"{args.layers} layers x {args.hidden}, T={args.length}, V={args.vocab}, batch {args.batch}, {args.dtype}"
    print(f"{card}, torch {torch.__version__}\n{args.model}: {size}{', compiled' if args.compile else ''}", flush=True)
    about = {"card": card, "torch": torch.__version__, "part": args.part, "model": args.model, "size": size}
    record = Record(args.json, **about, base=BASE)
    (measure_products if args.part == "products" else measure_steps)(args, record)


if __name__ == "__main__":
    run(main)
