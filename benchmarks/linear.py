"""One linear layer at each block pattern against torch's dense one: forward, dX and dW apart, taking turns.

    python benchmarks/linear.py                                    # 75 %, 1024 tokens, four shapes
    python benchmarks/linear.py --dtype float32 --sparsity 0.5 0.9 --block 64,64 1,1
    python benchmarks/linear.py --shape 768,768 --rounds 40
    python benchmarks/linear.py --threads 1 --busy                 # a machine with other work: processor time
    python benchmarks/linear.py --block 32,32 64,64 --permuted     # what gathering permuted inputs costs beside it

Each round calls every contestant once; ratios are taken within rounds, and the table gives their medians with
quartiles. `GFLOP/s` counts live weights only. The last lines sum the shapes: what linear layers gain as a whole.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import machine, rounds, spread
from program import run
from shapes import resolve_dtype

from modelzoo.config.arguments import positive_int, share
from modelzoo.kernels.blocks.layout import Layout, layout_of
from modelzoo.kernels.blocks.tiling import arrange
from modelzoo.kernels.products.choose import choose_kernel, describe_choice

SHAPES = ["768,768", "3072,768", "768,3072", "1536,1536"]
BLOCKS = ["32,32", "64,64", "32,2", "32,1", "1,1"]


def random_layout(out: int, inputs: int, block: tuple[int, int], sparsity: float) -> Layout:
    """Exactly round((1 - sparsity) * blocks) live blocks, drawn evenly over the weight."""
    rows, cols = out // block[0], inputs // block[1]
    live = torch.zeros(rows * cols, dtype=torch.bool)
    live[torch.randperm(rows * cols)[: round((1 - sparsity) * rows * cols)]] = True
    return layout_of(live.view(rows, cols), block)


def contestants(args, out: int, inputs: int, sparsity: float, dtype: torch.dtype):
    """{product: {contestant: call}}, and {contestant: live share}."""
    x, dy = torch.randn(args.tokens, inputs).to(dtype), torch.randn(args.tokens, out).to(dtype)
    weight = torch.randn(out, inputs).to(dtype)
    calls = {
        "forward": {"dense": lambda: F.linear(x, weight)},
        "dX": {"dense": lambda: dy @ weight},
        "dW": {"dense": lambda: dy.t() @ x},
    }
    live = {"dense": 1.0}
    for block in args.block:
        layout = random_layout(out, inputs, block, sparsity)
        values = torch.randn(layout.nnz, *block)
        kernel = choose_kernel(layout, torch.device("cpu"), dtype)
        name = f"[{block[0]}, {block[1]}]"
        live[name] = layout.density
        calls["forward"][name] = lambda k=kernel, v=values, p=layout: k.forward(x, v, p, None)
        calls["dX"][name] = lambda k=kernel, v=values, p=layout: k.backward_x(dy, v, p)
        calls["dW"][name] = lambda k=kernel, p=layout: k.backward_w(dy, x, p)
        if args.permuted and block[1] > 1:  # as packed.linear gathers for `permute_inputs`
            order = torch.randperm(inputs)
            back, name = order.argsort(), f"{name} p"
            live[name] = layout.density
            calls["forward"][name] = lambda k=kernel, v=values, p=layout, o=order: k.forward(arrange(x, o), v, p, None)
            calls["dX"][name] = lambda k=kernel, v=values, p=layout, o=back: arrange(k.backward_x(dy, v, p), o)
            calls["dW"][name] = lambda k=kernel, p=layout, o=order: k.backward_w(dy, arrange(x, o), p)
    return calls, live


def pair(text: str) -> tuple[int, int]:
    """`768,3072` as two numbers."""
    first, second = text.split(",")
    return int(first), int(second)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", nargs="+", type=pair, default=[pair(s) for s in SHAPES], help="out,in of the weights")
    p.add_argument("--block", nargs="+", type=pair, default=[pair(b) for b in BLOCKS], help="rows,cols of blocks")
    p.add_argument("--sparsity", nargs="+", type=share, default=[0.75], help="shares of weights off")
    p.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: as a run here has it"
    )
    p.add_argument("--tokens", type=positive_int, default=1024)
    p.add_argument("--rounds", type=positive_int, default=15)
    p.add_argument("--threads", type=positive_int, default=torch.get_num_threads())
    p.add_argument("--permuted", action="store_true", help="also blocks of permuted inputs, marked p")
    p.add_argument("--summary", action="store_true", help="print the shapes' sums alone")
    p.add_argument("--busy", action="store_true", help="count one thread's processor time, not time on the wall")
    args = p.parse_args()
    if args.busy and args.threads != 1:
        p.error("--busy counts one thread: add --threads 1")
    return args


def total_title(shapes: list[tuple[int, int]], tokens: int, dtype: str) -> str:
    """The heading of the shapes' sums; docs/performance.md reads it."""
    sizes = ", ".join(f"{i} -> {o}" for o, i in shapes)
    return f"{sizes} together, {tokens} tokens, {dtype}: speed against dense"


def total_line(sparsity: float, part: str, name: str, ratio: float, low: float, high: float) -> str:
    """One of the shapes' sums; docs/performance.md reads it."""
    return f"{sparsity:.0%} off  {part:10} {name:10} {ratio:.2f}x  [{low:.2f} to {high:.2f}]"


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    resolve_dtype(args)
    dtype = getattr(torch, args.dtype)
    print(machine())
    out, inputs = args.shape[0]
    for block in args.block:
        print(describe_choice(random_layout(out, inputs, block, 0.5), torch.device("cpu"), dtype))
    say: Callable[[str], None] = (lambda _: None) if args.summary else print
    totals: dict = defaultdict(lambda: [0.0] * args.rounds)  # (sparsity, product, contestant) -> seconds by round
    for sparsity in args.sparsity:
        for out, inputs in args.shape:
            say(f"\n{inputs} -> {out}, {args.tokens} tokens, {args.dtype}, {sparsity:.0%} off")
            say(f"{'':10} {'':10} {'ms':>8} {'GFLOP/s':>9}   speed against dense")
            calls, live = contestants(args, out, inputs, sparsity, dtype)
            for product, by_name in calls.items():
                with torch.no_grad():
                    times = rounds(by_name, args.rounds, clock=time.thread_time if args.busy else time.perf_counter)
                for name, seconds in times.items():
                    middle = statistics.median(seconds)
                    rate = 2 * args.tokens * out * inputs * live[name] / middle / 1e9
                    ratio, low, high = spread([d / s for d, s in zip(times["dense"], seconds, strict=True)])
                    line = f"{product:10} {name:10} {middle * 1e3:8.2f} {rate:9.0f}   {ratio:.2f}x"
                    say(line + (f"  [{low:.2f} to {high:.2f}]" if name != "dense" else ""))
                    for part in (product, "all") if product == "forward" else (product, "backward", "all"):
                        total = totals[sparsity, part, name]
                        totals[sparsity, part, name] = [a + b for a, b in zip(total, seconds, strict=True)]
    print(f"\n{total_title(args.shape, args.tokens, args.dtype)}")
    for (sparsity, part, name), seconds in totals.items():
        if name != "dense" and part in ("forward", "backward", "all"):
            base = totals[sparsity, part, "dense"]
            ratio, low, high = spread([d / s for d, s in zip(base, seconds, strict=True)])
            print(total_line(sparsity, part, name, ratio, low, high))
    say("\nNext: benchmarks/train_step.py times whole training steps; `run.py -m bench -p CONFIG` your own model's.")


if __name__ == "__main__":
    run(main)
