"""Tokens a second: ours beside transformers' generate on the same export, and packed weights beside dense ones.

    python benchmarks/generate.py                                  # width 512, 8 layers; 1 and 8 texts at once
    python benchmarks/generate.py --hidden 768 --layers 12 --heads 12 --vocab 50257
    python benchmarks/generate.py --threads 1 --busy    # a machine with other work: processor time

One dense run and two that have 75 % of their weights off (blocks of 32 x 32, and single weights) are made with drawn
weights; the dense one is exported, and transformers loads the export. Contestants take turns on the same prompts; each
writes as many tokens greedily with its cache, weights in float32 and in bfloat16; ratios are taken within rounds.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import machine, rounds, table
from ours import our_run
from program import run
from shapes import add_shapes

from modelzoo.config.arguments import positive_int
from modelzoo.config.loading.load import dump
from modelzoo.generation.load import load_model
from modelzoo.generation.prompts import Prompt
from modelzoo.generation.settings import Settings
from modelzoo.generation.write import Text, write_texts
from modelzoo.interop.exporting.export import export
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints.snapshot import snapshot

PATTERNS = {
    "ours, dense": None,
    "ours, 75 % off, [32, 32] blocks": {"algorithm": "static", "sparsity": 0.75, "block": [32, 32]},
    "ours, 75 % off, single weights": {"algorithm": "static", "sparsity": 0.75},
}


def write_run(folder: str, args, sparsity) -> None:
    """A run folder with a tokenizer whose ids are words."""
    made = our_run(args, sparsity)
    files, saved = snapshot(made, "none")
    saving.save(os.path.join(folder, "checkpoints"), 0, {"model": files["model"]}, saved, None)
    assert made.config is not None
    Path(folder, "config.yaml").write_text(dump(made.config), encoding="utf-8")
    vocab = {"<eos>": 0, **{f"w{i}": i for i in range(1, args.vocab)}}
    words = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<eos>"},
             "pre_tokenizer": {"type": "Whitespace"}}  # fmt: skip
    Path(folder, "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")


def our_contestant(folder: str, prompts: list[str], tokens: int, dtype: str):
    """Write the texts of all prompts as one batch."""
    model = load_model(folder, target="CPU", dtype=dtype)
    model = model._replace(tokenizer=model.tokenizer._replace(eos=-1))  # no text ends before the others

    def write() -> None:
        write_texts(model, [Text(model, Prompt(p, "--prompt"), 0, Settings(tokens)) for p in prompts])

    return write


def their_contestant(folder: str, ids: torch.Tensor, tokens: int, dtype: str):
    """The same by transformers' generate."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    return lambda: model.generate(ids, attention_mask=mask, **settings)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shapes(p)
    p.set_defaults(hidden=512, layers=8, heads=8, length=256, vocab=8192, dtype="float32", device="cpu")
    p.add_argument("--batches", type=positive_int, nargs="+", default=[1, 8], help="texts at once")
    p.add_argument("--prompt_tokens", type=positive_int, default=32)
    p.add_argument("--new_tokens", type=positive_int, default=64)
    p.add_argument("--rounds", type=positive_int, default=7)
    p.add_argument("--threads", type=positive_int, default=torch.get_num_threads())
    p.add_argument("--busy", action="store_true", help="count one thread's processor time, not time on the wall")
    args = p.parse_args()
    if args.busy and args.threads != 1:
        p.error("--busy counts one thread: add --threads 1")
    return args


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    clock = time.thread_time if args.busy else time.perf_counter
    print(machine())
    print(f"width {args.hidden}, {args.layers} layers, vocabulary {args.vocab}; {args.new_tokens} new tokens")
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: os.path.join(folder, str(i)) for i, name in enumerate(PATTERNS)}
        for name, path in runs.items():
            os.makedirs(path)
            write_run(path, args, PATTERNS[name])
        exported = os.path.join(folder, "exported")
        export(runs["ours, dense"], exported, tokenizer=runs["ours, dense"])
        for batch in args.batches:
            ids = torch.randint(1, args.vocab, (batch, args.prompt_tokens))
            prompts = [" ".join(f"w{i}" for i in row) for row in ids.tolist()]
            calls = {}
            for dtype, mark in (("float32", ""), ("bfloat16", ", bfloat16")):
                calls["transformers' generate" + mark] = their_contestant(exported, ids, args.new_tokens, dtype)
                calls |= {n + mark: our_contestant(path, prompts, args.new_tokens, dtype) for n, path in runs.items()}
            times = rounds(calls, args.rounds, warmup=1, clock=clock)
            print(f"\n{batch} at once")
            print(table(times, "transformers' generate", batch * args.new_tokens, "tokens"))


if __name__ == "__main__":
    run(main)
