"""The contestants of benchmarks/train_step.py take real steps, and count the FLOPs that such a step needs."""

import argparse

import torch

SHAPE = {
    "hidden": 128, "layers": 2, "heads": 2, "length": 16, "vocab": 128, "batch": 2, "dtype": "float32", "device": "cpu",
    "patterns": "0.75", "compile": False, "rigl": False,
}  # fmt: skip


def test_every_contestant_takes_a_step(bench):
    args = argparse.Namespace(**SHAPE)
    ids = torch.arange(2 * 16, dtype=torch.int32).view(2, 16)
    batch = {"input_ids": ids, "labels": ids + 1, "attention_mask": torch.ones_like(ids)}
    found = bench.train_step.patterns(args, batch)
    assert {"dense", "75 % masked", "75% 32x32"} <= found.keys()
    weights, head = 12 * 2 * 128**2, 128 * 128
    for name, ours in found.items():
        before = {n: p.detach().clone() for n, p in ours.run.model.named_parameters()}
        ours()
        assert ours.run.step == 1 and any(not torch.equal(p, before[n]) for n, p in ours.run.model.named_parameters())
        sparse, dense = ours.flops()
        assert dense == 32 * (6 * weights + 12 * 2 * 16 * 128 + 6 * head)
        assert sparse == dense - (0 if name == "dense" else 32 * 6 * weights * 3 // 4)


def test_masks_have_a_cost_that_is_measured(bench):
    ids = torch.ones(2, 16, dtype=torch.int32)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": ids}
    rigl = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 100}}
    ours = bench.train_step.Ours(argparse.Namespace(**SHAPE), batch, rigl)
    _, update = bench.train_step.mask_cost(ours, 2)
    assert update > 0 and ours.run.step == 2
