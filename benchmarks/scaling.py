"""Tokens a second of one process with all cores against several processes with the same cores between them.

    python benchmarks/scaling.py                              # 1 process against 2, on all cores of this machine
    python benchmarks/scaling.py --processes 2,4,8 --cores 16 --sparsity 0.75
    python benchmarks/scaling.py --hidden 768 --heads 12 --batch 16 --rounds 25

All are there from the start and take turns, step by step: the table gives the median step, tokens a second and the
median of each round's ratio to one process, quartiles in brackets. `fast` sums as the library does, while backward goes
on; `exact` to the bits of any other number of processes. One process is measured with exact sums, too: what the slices
cost is apart from what several processes cost. Run it on a machine that does nothing else.
"""

import argparse
import socket
import sys
from pathlib import Path

import torch
from harness import Worker, machine, rounds, serve, table
from ours import config
from program import run
from shapes import add_shapes, random_batch, resolve_dtype, shapes

from modelzoo import host
from modelzoo.backends.local import Local
from modelzoo.backends.reduction import decide_reduction
from modelzoo.backends.select import Choice
from modelzoo.config.arguments import positive_int
from modelzoo.config.errors import UserError
from modelzoo.distributed import Ranks
from modelzoo.joining import joining
from modelzoo.processes import World
from modelzoo.training.build import build_run

BASE = "1 process"


class Group:
    """A contestant of some processes that train one run together; alone, of one.

    Args:
        args: the benchmark's.
        count: how many there are; they have `args.cores` threads between them.
        reduction: how they sum, exact or fast.
    """

    def __init__(self, args, count: int, reduction: str):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", reduction, *shapes(args)]
        if args.sparsity:
            command += ["--sparsity", str(args.sparsity)]
        threads = {"OMP_NUM_THREADS": str(args.cores // count), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        self.workers = []
        for rank in range(count):
            env = World(rank, count, rank, "127.0.0.1", port).environment() if count > 1 else {}
            self.workers.append(Worker(command, ready=False, **threads, **env))
        self.wait()

    def __call__(self) -> None:
        for worker in self.workers:
            worker.begin()
        self.wait()

    def wait(self) -> None:
        """Wait for all of them."""
        for worker in self.workers:
            worker.wait()


def take_turns(args, ranks: Ranks) -> None:
    """Be one of a group's processes: a training step a turn."""
    made = config(args, args.sparsity or None, reduction=args.serve)
    init = made.trainer.init
    device = torch.device("cuda", ranks.local) if args.device == "cuda" else torch.device("cpu")
    backend = Local(device, init.backend, init.precision, ranks)
    trained = build_run(made, Choice(backend, args.device, None))
    trained.reduction = decide_reduction(init.backend, backend.kind, args.batch, ranks.size, None)
    torch.manual_seed(0)
    batch = random_batch(args)
    serve(lambda: backend.train_step(trained, batch, 1))


def list_counts(text: str, cores: int) -> list[int]:
    """The numbers of processes that `--processes` names.

    Raises:
        UserError: one of them is no number from 2, or leaves processes without a core.
    """
    words = [word.strip() for word in text.split(",")]
    wrong = [w for w in words if not (w.isascii() and w.isdigit() and len(w) < 6 and int(w) > 1)]
    if wrong:
        raise UserError(f"--processes {text[:40]}: {wrong[0][:20]!r} is no number from 2; give one or several, as 2,4")
    counts = list(dict.fromkeys(map(int, words)))
    if max(counts) > cores:
        raise UserError(f"--processes {max(counts)}: there are {cores} cores; each process needs one")
    return counts


def compete(args, counts: list[int]) -> dict[str, list[float]]:
    """Seconds a step, by contestant and round."""
    contestants = {BASE: Group(args, 1, "fast"), f"{BASE}, exact": Group(args, 1, "exact")}
    for count in counts:
        for reduction in ("fast", "exact"):
            contestants[f"{count} processes, {reduction}"] = Group(args, count, reduction)
    return rounds(contestants, args.rounds)


def main() -> None:
    cores = host.available_cores()
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shapes(p)
    p.add_argument("--rounds", type=positive_int, default=15)
    p.add_argument("--processes", metavar="N,M", default="2", help="numbers of processes to compare with one (2)")
    p.add_argument("--cores", type=positive_int, default=cores, help=f"threads in all ({cores})")
    p.add_argument(
        "--sparsity", type=float, default=0.0, help="share of weights off, static (0): the live ones are sent"
    )
    p.add_argument("--serve", choices=["fast", "exact"], help=argparse.SUPPRESS)
    args = p.parse_args()
    resolve_dtype(args)
    if args.serve:
        with joining("GPU" if args.device == "cuda" else "CPU") as ranks:
            take_turns(args, ranks)
        return
    counts = list_counts(args.processes, args.cores)
    if args.rounds < 2:
        raise UserError("--rounds 1: quartiles need two rounds at least")
    for count in counts:
        for reduction in ("fast", "exact"):  # refuses a batch that cannot be shared out before anything starts
            decide_reduction(config(args, reduction=reduction).trainer.init.backend, "CPU", args.batch, count, None)
    size = f"{args.layers} layers x {args.hidden}, T={args.length}, V={args.vocab}, batch {args.batch}"
    print(f"{machine()}\n{size}, {args.dtype}, {args.cores} threads in all", flush=True)
    print(table(compete(args, counts), BASE, args.batch * args.length, "tokens"))


if __name__ == "__main__":
    run(main)
