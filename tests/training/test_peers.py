"""A run against GPT-2 of transformers, trained by torch alone from the same weights: losses and gradient norms."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from modelzoo import cli
from modelzoo.config.loading import yaml12
from modelzoo.data.hdf5 import Shards
from tests.support import TINY, examples, loader, write_shard

STEPS, PEAK, WARMUP = 12, 5e-3, 3


def rate(step: int) -> float:
    """Linear to the peak, then half a cosine down to a tenth of it."""
    if step < WARMUP:
        return PEAK * step / WARMUP
    done = (step - WARMUP) / (STEPS - WARMUP)
    return PEAK * (0.1 + 0.9 * (1 + np.cos(np.pi * done)) / 2)


def train_as_torch_does(model, masks: dict, shards: Shards) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step: AdamW, no decay of biases and norms, clipping by norm, masked gradients."""
    named = dict(model.named_parameters())
    decays = [p for p in named.values() if p.ndim == 2]
    rest = [p for p in named.values() if p.ndim != 2]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer, found = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8), []
    for step in range(STEPS):
        batch = {name: x.long() for name, x in shards.batch(step).items()}
        logits, counts = model(batch["input_ids"]).logits, batch["attention_mask"].bool()
        loss = F.cross_entropy(logits[counts], batch["labels"][counts])
        optimizer.zero_grad()
        loss.backward()
        for name, mask in masks.items():
            named[name].grad *= mask
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        found.append((loss.item(), norm.item()))
    return found


@pytest.mark.parametrize("sparsity,parts", [(None, 1), (0.75, 1), (0.75, 2)], ids=["dense", "static", "accumulated"])
def test_a_run_trains_as_transformers_and_torch_do(tmp_path, sparsity, parts):
    data = examples(40, msl=12)
    for row, n in enumerate(np.random.default_rng(3).integers(4, 13, len(data))):  # so that rows count unequally
        data[row, 1, n:] = 0
    write_shard(tmp_path / "data" / "output_chunk_0_0.h5", data)
    rise = {"initial_learning_rate": 0.0, "end_learning_rate": PEAK, "total_iters": WARMUP}
    fall = {"initial_learning_rate": PEAK, "end_learning_rate": PEAK / 10, "total_iters": STEPS - WARMUP}
    init = {
        "model": TINY, "seed": 3, "sparsity": sparsity, "precision": {"enabled": False, "max_gradient_norm": 1.0},
        "optimizer": {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
        "schedulers": [{"SequentialLR": {"schedulers": [{"LinearLR": rise}, {"CosineDecayLR": fall}]}}],
        "loop": {"max_steps": STEPS, "grad_accum_steps": parts},
        "checkpoint": {"steps": STEPS, "save_initial_checkpoint": True},
    }  # fmt: skip
    fit = {"train_dataloader": {"data_dir": str(tmp_path / "data"), "batch_size": 4, "shuffle": True}}
    (tmp_path / "c.yaml").write_text(yaml12.dump({"trainer": {"init": init, "fit": fit}}))
    run, out = tmp_path / "run", tmp_path / "out"
    assert cli.main(["CPU", "-p", str(tmp_path / "c.yaml"), "-m", "train", "-o", str(run)]) == 0
    assert cli.main(["export", str(run / "checkpoints" / "step_0"), str(out)]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(out).train()
    masks = load_file(out / "masks.safetensors") if sparsity else {}
    shards = Shards.open(loader(tmp_path / "data", shuffle=True), TINY["vocab_size"])
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ours = [(r["loss"], r["grad_norm"]) for r in log if r["kind"] == "train"]
    np.testing.assert_allclose(ours, train_as_torch_does(model, masks, shards), rtol=2e-4)
    assert max(norm for _, norm in ours) > 1  # something was clipped
    assert sum(int((~m.bool()).sum()) for m in masks.values()) == (
        0.75 * 2 * (4 * 16 * 16 + 2 * 16 * 32) if sparsity else 0
    )
