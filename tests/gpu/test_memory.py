"""Memory of a GPU: what the plan says of it, what activation checkpointing saves, and what a compiled step computes."""

import gc
import math

import pytest
import torch

from modelzoo.backends.select import Choice
from modelzoo.planning.memory import Layout, count_memory, count_validation
from modelzoo.training.build import build_run
from modelzoo.training.checkpoints.background import HostCopy
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.gpu.device import DEVICE, GPU, SMALL, backend_of, make_run, train_step
from tests.gpu.test_steps import ADAM, rows
from tests.support import batch, config

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def emptied():
    """Nothing of an earlier test is on the device."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


LENGTH, ROWS = (1024, 8) if GPU else (32, 2)
MIDDLE = {
    "hidden_size": 768 if GPU else 128, "num_hidden_layers": 12 if GPU else 2, "num_heads": 12 if GPU else 2,
    "filter_size": 3072 if GPU else 512, "vocab_size": 50257 if GPU else 512, "max_position_embeddings": LENGTH,
    "dropout_rate": 0.0, "attention_dropout_rate": 0.0,
}  # fmt: skip
BFLOAT16 = {"enabled": True, "emulate": True}
PACKED = {"sparsity": 0.75, "block": [64, 64], "storage": "packed"}


def whole_config(**init):
    backend = {"torch_compile": False, **init.pop("backend", {})}
    made = config(model=MIDDLE, precision=BFLOAT16, optimizer=ADAM, backend=backend, **init)
    fit = made.trainer.fit
    loader = fit.train_dataloader.model_copy(update={"batch_size": ROWS})
    trainer = made.trainer.model_copy(update={"fit": fit.model_copy(update={"train_dataloader": loader})})
    return made.model_copy(update={"trainer": trainer})


def middle_rows(step: int) -> dict[str, torch.Tensor]:
    return batch(step, ROWS, LENGTH, MIDDLE["vocab_size"])


def run_steps(made, steps: int = 4) -> tuple[list[float], int]:
    """Losses of some steps, and the bytes that they took at the most, the run's own included."""
    base = 0
    gc.collect()  # a run before, which its graphs know and which knows them
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
    there = backend_of(made)
    run = build_run(made, Choice(there, "", None))
    losses = [there.train_step(run, middle_rows(s), 1).loss for s in range(steps)]  # captured in the third, if at all
    return losses, (torch.cuda.max_memory_allocated() - base) if GPU else 0


@pytest.mark.parametrize("sparsity,mode,compiled", [
    ((), "none", False), ((), "layer", False), ((), "none", GPU), (PACKED, "none", False), (PACKED, "layer", False),
])  # fmt: skip
def test_the_plan_is_near_what_is_used(mode, sparsity, compiled, record_property):
    """Within a tenth, at 12 layers of 768 and 8,192 tokens, whose logits alone would take 0.8 GB."""
    made = whole_config(sparsity=sparsity, backend={"activation_checkpointing": mode, "torch_compile": compiled})
    parts = count_memory(made, LENGTH, Layout("GPU"))
    assert not parts["validation (estimate)"]  # there is none
    losses, used = run_steps(made)
    assert all(map(math.isfinite, losses))
    planned = sum(parts.values())
    table = ", ".join(f"{key} {size / 1e9:.3f}" for key, size in parts.items())
    line = f"planned {planned / 1e9:.3f} GB ({table}), used {used / 1e9:.3f} GB"
    record_property("memory", line)
    print(line)
    if GPU:
        assert used == pytest.approx(planned, rel=0.1), line


@pytest.mark.parametrize("sparsity", [(), PACKED], ids=["dense", "packed"])
def test_validation_takes_what_is_planned(sparsity):
    """Forward alone, next to what graphs keep: no less than it takes, and not twice as much."""
    made = whole_config(sparsity=sparsity)
    val = made.trainer.fit.train_dataloader
    fit = made.trainer.fit.model_copy(update={"val_dataloader": (val,)})
    made = made.model_copy(update={"trainer": made.trainer.model_copy(update={"fit": fit})})
    there = backend_of(made)
    run = build_run(made, Choice(there, "", None))
    batch = there.put(middle_rows(0))
    run.model.eval()
    with torch.no_grad(), there.autocast():
        run.model.score({name: x[:, :32] for name, x in batch.items()})  # libraries have their workspaces now
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with torch.no_grad(), there.autocast():
        loss, _, tokens = run.model.score(batch)
    assert math.isfinite(float(loss)) and int(tokens) == ROWS * LENGTH
    if GPU:
        linear = sum(p.numel() for n, p in run.model.named_parameters() if ".layers." in n and p.dim() > 1)
        used, planned = torch.cuda.max_memory_allocated() - before, count_validation(made, "GPU", LENGTH, linear)
        print(f"planned {planned / 1e9:.3f} GB, used {used / 1e9:.3f} GB")
        assert used <= 1.05 * planned and planned <= 2 * used, (planned, used)


def test_a_checkpoint_takes_one_weight():
    """On the device, beyond what the run holds there: not all packed weights and their moments whole."""
    run = build_run(made := whole_config(sparsity=PACKED), Choice(backend_of(made), "", None))
    train_step(run, middle_rows(0))
    largest = max(4 * p.shape.numel() for p in run.sparsity.parameters)
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    taken = HostCopy().take(snapshot(run, "data")[0])
    assert all(x.is_cpu for part in taken.values() for x in part.values())
    if GPU:
        assert torch.cuda.max_memory_allocated() - before < 1.5 * largest


def test_checkpointing_takes_less_memory_and_the_same_losses():
    found = {
        m: run_steps(whole_config(backend={"activation_checkpointing": m})) for m in ("none", "attention", "layer")
    }
    losses, used = zip(*found.values(), strict=True)
    for other in losses[1:]:  # fused kernels may sum in another order when they run again
        assert other == pytest.approx(losses[0], rel=1e-3)
    if GPU:
        assert used[2] < used[1] < used[0]
        assert used[2] < 0.7 * used[0]


@pytest.mark.parametrize("mode", ["layer", "attention"])
def test_checkpointing_keeps_the_bits(mode):
    """In deterministic float32, with dropout, whose draws backward repeats."""
    model = {**SMALL, "dropout_rate": 0.1, "attention_dropout_rate": 0.1}
    found = []
    for activation_checkpointing in ("none", mode):
        backend = {"deterministic": True, "activation_checkpointing": activation_checkpointing}
        run = make_run(model=model, backend=backend, sparsity={"sparsity": 0.5, "block": [32, 32], "storage": "packed"})
        found.append(
            ([train_step(run, rows(s)).loss for s in range(4)], [p.detach().cpu() for p in run.model.parameters()])
        )
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))


@pytest.mark.parametrize("mode,stored", [("none", "dense"), ("none", "packed"), ("layer", "packed")])
def test_a_compiled_step_is_the_eager_one(mode, stored):
    """To rounding, RigL's update on the way included."""
    sparsity = () if stored == "dense" else {
        "algorithm": "rigl", "sparsity": 0.5, "block": [32, 32], "storage": "packed", "update": {"freq": 2}
    }  # fmt: skip
    model, losses = {**SMALL, "position_embedding_type": "rotary", "rotary_dim": 16}, []
    for compiled in (False, True) if GPU else (False, False):
        backend = {"torch_compile": compiled, "activation_checkpointing": mode}
        run = make_run(model=model, sparsity=sparsity, optimizer=ADAM, backend=backend)
        losses.append([train_step(run, rows(s)).loss for s in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_nothing_of_a_run_stays():
    """The device is as empty after a run, its graphs included, as after the one before."""
    if not GPU:
        pytest.skip("the CPU's memory is the process's")
    left = []
    for _ in range(2):  # the first leaves the workspaces of libraries
        run = make_run(DEVICE)
        there = backend_of(run.config)
        for step in range(4):
            there.train_step(run, rows(step), 1)
        assert there.graphs is not None and there.graphs.captured
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        del run, there
        gc.collect()
        left.append(torch.cuda.memory_allocated())
        assert left[-1] < held
    assert left[1] <= left[0]
