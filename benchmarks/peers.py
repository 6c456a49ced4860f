"""Training steps of the peers, each as its own users write or run it, on the same shapes and at the same precision.

    python benchmarks/peers.py litgpt --hidden 768 --heads 12 --batch 4      # takes a turn for each line on stdin

transformers and accelerate come with `pip install -e .[bench]`. litgpt and cerebras.pytorch pin packages that clash
with ours, so each runs in its own environment (benchmarks/train_step.py --litgpt-python, --csx-python); nanoGPT is no
package, so it takes a clone of its repository (--nanogpt).
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from harness import serve
from shapes import add_shapes, random_batch, resolve_dtype


def ids_of(args):
    """[batch, length + 1] random tokens, int64."""
    return torch.randint(0, args.vocab, (args.batch, args.length + 1), device=args.device)


def pairs_of(args):
    """Inputs and labels [batch, length], int64."""
    ids = ids_of(args)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def plain_step(args, model, optimizer, loss_of):
    """The step one writes by hand: autocast, loss, backward, clip, optimizer."""

    def step():
        dtype = torch.bfloat16 if args.dtype == "float32" else getattr(torch, args.dtype)
        with torch.autocast(args.device, dtype, enabled=args.dtype != "float32"):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def hf_model(args):
    from transformers import GPT2Config, GPT2LMHeadModel

    made = GPT2Config(
        vocab_size=args.vocab, n_embd=args.hidden, n_layer=args.layers, n_head=args.heads, n_positions=args.length,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    with torch.device(args.device):  # drawn there: on the host a billion weights take half a minute
        return GPT2LMHeadModel(made).to(args.device)


def hf_raw(args, fused: bool = False):
    """The loop one writes by hand, with AdamW."""
    model = hf_model(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    ids = ids_of(args)[:, :-1]

    return plain_step(args, model, optimizer, lambda: model(input_ids=ids, labels=ids).loss)


def hf_trainer(args):
    """Hugging Face's Trainer in a thread of its own, stopped at each step's start until its turn comes."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    go, done = threading.Semaphore(0), threading.Semaphore(0)

    class Turns(TrainerCallback):
        def on_step_begin(self, *_, **__):
            done.release()
            go.acquire()

    rows = ids_of(args)[:, :-1].cpu()
    data = [{"input_ids": rows[i % len(rows)], "labels": rows[i % len(rows)]} for i in range(len(rows) * 4)]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=args.batch, max_steps=10**6, learning_rate=1e-4,
        bf16=args.dtype == "bfloat16", fp16=args.dtype == "float16", use_cpu=args.device == "cpu", report_to=[],
        save_strategy="no", logging_steps=10, adam_beta2=0.95, weight_decay=0.1, max_grad_norm=1.0,
        disable_tqdm=True, dataloader_num_workers=0,
    )  # fmt: skip
    trainer = Trainer(model=hf_model(args), args=arguments, train_dataset=data, callbacks=[Turns()])
    trainer.remove_callback(PrinterCallback)
    threading.Thread(target=trainer.train, daemon=True).start()
    done.acquire()

    def step():
        go.release()
        done.acquire()

    return step


def nanogpt_model(args, clone: str):
    """nanoGPT's model of these shapes, on the device."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", os.path.join(clone, "model.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    made = module.GPTConfig(
        block_size=args.length, vocab_size=args.vocab, n_layer=args.layers, n_head=args.heads, n_embd=args.hidden,
        dropout=0.0, bias=True,
    )  # fmt: skip
    with torch.device(args.device):  # as above
        return module.GPT(made).to(args.device)


def nanogpt(args, clone: str):
    """The body of nanoGPT's train.py on its model.py, uncompiled, as its README advises for CPUs."""
    model = nanogpt_model(args, clone)
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), args.device)
    x, y = pairs_of(args)

    return plain_step(args, model, optimizer, lambda: model(x, y)[1])


def litgpt(args):
    """The body of `litgpt pretrain`, with its torch.compile, tied embeddings and a GPT of our shape (rotary, GELU)."""
    import lightning
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    precision = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}[args.dtype]
    fabric = lightning.Fabric(accelerator=args.device, devices=1, precision=precision)
    made = Config(
        block_size=args.length, padded_vocab_size=args.vocab, vocab_size=args.vocab, n_layer=args.layers,
        n_head=args.heads, n_embd=args.hidden, intermediate_size=4 * args.hidden, rotary_percentage=0.25,
        parallel_residual=False, bias=True, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP",
    )  # fmt: skip
    model = GPT(made)
    model.transformer.wte.weight = model.lm_head.weight
    model = fabric.setup(torch.compile(model))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=args.device == "cuda"
    )
    optimizer = fabric.setup_optimizers(optimizer)
    x, y = pairs_of(args)

    def step():
        loss = chunked_cross_entropy(model(x), y)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def cerebras_cpu(args, sparsity: float | None = 0.75):
    """cerebras.pytorch's own optimizer, sparsity and traced step on its CPU backend, which computes in float32."""
    from ours import config

    from modelzoo.backends.csx import backend as csx_backend
    from modelzoo.backends.select import Choice
    from modelzoo.training.build import build_run

    batch = random_batch(args)
    csx_backend.input_batches = lambda *_: [batch] * 10**4  # its loader calls this for the batches of an epoch
    args.dtype = "float32"
    made = config(args, sparsity)
    backend = csx_backend.CSX(made.trainer.init, tempfile.mkdtemp(), kind="CPU")
    run = build_run(made, Choice(backend, "CSX", None))
    shards: Any = SimpleNamespace(config=SimpleNamespace(micro_batch_size=None), vocab_size=args.vocab, prompt_tokens=0)
    batches = backend.batches(run, shards, 10**4)
    return lambda: backend.train_step(run, next(batches), 1)


REMOTE = {"litgpt": litgpt, "cerebras": cerebras_cpu}

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("peer", choices=REMOTE)
    add_shapes(p)
    args = p.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    resolve_dtype(args)
    talk, sys.stdout = sys.stdout, sys.stderr  # what peers print is not an answer
    step = REMOTE[args.peer](args)
    sys.stdout = talk
    serve(step)
