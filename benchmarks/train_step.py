"""Whole training steps on this machine: ours against Hugging Face's raw loop and Trainer, and what sparsity costs.

    python benchmarks/train_step.py                     # d=384, 6 layers, T=256, V=16384, batch 8, bf16
    python benchmarks/train_step.py --rounds 30 --layers 12 --hidden 768
    python benchmarks/train_step.py --patterns 0.5,0.75,0.9 --compile --hidden 768 --heads 12 --batch 4

With --patterns, sparsity patterns stored as live blocks run beside dense and masked-dense, without the peers, and
ratios are to the best dense step, torch.compile's included.

Contestants take turns step by step in one process; the table gives medians of each round's ratio with quartiles.
Needs transformers and accelerate for the peers (`pip install -e .[bench]`); without them it runs ours alone.
"""

import argparse
import statistics
import tempfile
import threading
import time

import torch
from harness import machine, rounds, table

from modelzoo.backends.local import Local
from modelzoo.backends.select import Choice
from modelzoo.config.load import validate
from modelzoo.config.trainer import Config
from modelzoo.config.yaml12 import Document
from modelzoo.loop import Run, train_step
from modelzoo.tasks.build import build


def our_run(args, sparsity=None, compiled: bool = False) -> Run:
    """A Run of ours on the benchmark's shapes."""
    data = {
        "trainer": {
            "init": {
                "model": {
                    "vocab_size": args.vocab, "hidden_size": args.hidden, "num_hidden_layers": args.layers,
                    "num_heads": args.heads, "filter_size": 4 * args.hidden, "max_position_embeddings": args.length,
                    "dropout_rate": 0.0, "attention_dropout_rate": 0.0,
                },
                "optimizer": {"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.1, "lr": 1e-4}},
                "precision": {"enabled": args.dtype != "float32", "max_gradient_norm": 1.0},
                "sparsity": sparsity,
                "loop": {"max_steps": 10**6},
                "backend": {"torch_compile": compiled},
            }
        }
    }  # fmt: skip
    config = validate(Document(data), Config)
    init = config.trainer.init
    device = torch.device("cuda" if args.device == "cuda" else "cpu")
    return build(config, Choice(Local(device, init.backend, init.precision), args.device, None))


def ours(run: Run, batch):
    return lambda: train_step(run, batch, 1)


PATTERNS = {
    "32x32": {"block": [32, 32]},
    "64x64": {"block": [64, 64]},
    "32x1": {"block": [32, 1]},
    "shared inputs (4)": {"shared_inputs": 4},
}


def patterns(args, batch) -> dict:
    """Dense, masked and packed contestants."""
    found = {"ours, dense": ours(our_run(args), batch)}
    if args.compile:
        found["ours, dense, torch.compile"] = ours(our_run(args, compiled=True), batch)
    found["75 % masked"] = ours(our_run(args, 0.75), batch)
    for level in map(float, args.patterns.split(",")):
        for name, pattern in PATTERNS.items():
            section = {"sparsity": level, "storage": "packed", **pattern}
            found[f"{level:.0%} {name}"] = ours(our_run(args, section), batch)
            if args.compile and name == "32x32":
                found[f"{level:.0%} {name}, torch.compile"] = ours(our_run(args, section, compiled=True), batch)
    rigl = {"algorithm": "rigl", "sparsity": 0.75, "storage": "packed", "block": [32, 32]}
    found["75 % 32x32 RigL, between updates"] = ours(our_run(args, {**rigl, "update": {"freq": 10**6}}), batch)
    found["75 % 32x32 RigL, update steps"] = ours(our_run(args, {**rigl, "update": {"freq": 1}}), batch)
    return found


def hf_model(args):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=args.vocab, n_embd=args.hidden, n_layer=args.layers, n_head=args.heads, n_positions=args.length,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config).to(args.device)


def hf_raw(args, batch, fused: bool):
    """The loop one writes by hand: autocast, loss, backward, clip, AdamW."""
    model = hf_model(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    ids = batch["input_ids"].long().to(args.device)

    def step():
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype != "float32"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def hf_trainer(args, batch):
    """Hugging Face's Trainer in a thread of its own, stopped at each step's start until its turn comes."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    go, done = threading.Semaphore(0), threading.Semaphore(0)

    class Turns(TrainerCallback):
        def on_step_begin(self, *_, **__):
            done.release()
            go.acquire()

    row = batch["input_ids"].long()
    data = [{"input_ids": row[i % len(row)], "labels": row[i % len(row)]} for i in range(len(row) * 4)]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=args.batch, max_steps=10**6, learning_rate=1e-4,
        bf16=args.dtype != "float32", use_cpu=args.device == "cpu", report_to=[], save_strategy="no", logging_steps=10,
        adam_beta2=0.95, weight_decay=0.1, max_grad_norm=1.0, disable_tqdm=True, dataloader_num_workers=0,
    )  # fmt: skip
    trainer = Trainer(model=hf_model(args), args=arguments, train_dataset=data, callbacks=[Turns()])
    threading.Thread(target=trainer.train, daemon=True).start()
    done.acquire()

    def step():
        go.release()
        done.acquire()

    return step


def mask_cost(run: Run, batch, count: int) -> tuple[float, float]:
    """Median seconds of a step's mask keeping, and of one mask update, on their own."""
    keep, update = [], []
    group = run.sparsity.groups[0]
    for _ in range(count):
        train_step(run, batch, 1)
        for p in run.sparsity.parameters:
            p.weight.grad = torch.randn_like(p.weight)
        begin = time.perf_counter()
        run.sparsity.mask_gradients(1)  # 1 is no update step: freq is 100
        keep.append(time.perf_counter() - begin)
        if group.algorithm.changes:
            for p in run.sparsity.parameters:
                p.weight.grad = torch.randn_like(p.weight)
            begin = time.perf_counter()
            run.sparsity.mask_gradients(100)
            run.sparsity.update(100, run.optimizer.state)
            update.append(time.perf_counter() - begin)
        run.optimizer.zero_grad(set_to_none=True)
    return statistics.median(keep), statistics.median(update) if update else 0.0


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--hidden", type=int, default=384)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--heads", type=int, default=6)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--vocab", type=int, default=16384)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--compile", action="store_true", help="ours with torch.compile too (25-90 s to build)")
    p.add_argument("--patterns", metavar="LEVELS", help="sparsity patterns at these levels (0.5,0.75) instead of peers")
    args = p.parse_args()
    torch.manual_seed(0)
    ids = torch.randint(0, args.vocab, (args.batch, args.length + 1), dtype=torch.int32)
    ones = torch.ones(args.batch, args.length, dtype=torch.int32)
    batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous(), "attention_mask": ones}
    shapes = f"{args.layers} layers x {args.hidden}, T={args.length}, V={args.vocab}, batch {args.batch}"
    print(f"{machine()}\n{shapes}, {args.dtype}", flush=True)
    tokens = args.batch * args.length
    if args.patterns:
        times = rounds(patterns(args, batch), args.rounds)
        dense = [n for n in times if n.startswith("ours, dense")]
        print(table(times, min(dense, key=lambda n: statistics.median(times[n])), tokens, "tokens"))
        return
    rigl = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 100}}
    contestants = {
        "ours, dense": ours(our_run(args), batch),
        "ours, 75 % static": ours(our_run(args, 0.75), batch),
        "ours, 75 % RigL": ours(our_run(args, rigl), batch),
    }
    if args.compile:
        contestants["ours, dense, torch.compile"] = ours(our_run(args, compiled=True), batch)
    try:
        contestants["HF raw loop"] = hf_raw(args, batch, fused=False)
        contestants["HF raw loop, fused AdamW"] = hf_raw(args, batch, fused=True)
        contestants["HF Trainer"] = hf_trainer(args, batch)
    except ImportError as e:
        print(f"no peers: {e}")
    times = rounds(contestants, args.rounds)
    base = "HF raw loop" if "HF raw loop" in times else "ours, dense"
    print(table(times, base, tokens, "tokens"))
    dense = statistics.median(times["ours, dense"])
    for name, sparsity in (("static", 0.75), ("RigL", rigl)):
        keep, update = mask_cost(our_run(args, sparsity), batch, 10)
        line = f"{name}: keeping masks {keep * 1e3:.2f} ms a step, {keep / dense:.2%} of a dense step"
        if update:
            line += f"; an update {update * 1e3:.0f} ms, {update / (100 * dense):.2%} of the steps at freq 100"
        print(line)


if __name__ == "__main__":
    main()
