"""Training steps on a GPU are the CPU's, for each algorithm, whole under masks and packed."""

import pytest
import torch

from modelzoo.backends.local import Local
from modelzoo.backends.step import settle
from modelzoo.kernels.blocks.layout import pack
from modelzoo.sparsity.parameter import PackedParameter, SemiStructuredLinear
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.backends import test_stand_in
from tests.gpu.device import CPU, DEVICE, GPU, SMALL, backend_of, make_run, train_step
from tests.sparsity import pairs
from tests.support import batch

pytestmark = pytest.mark.gpu

UPDATE = {"freq": 3, "stop": 10}  # masks change after steps 3, 6 and 9
PRUNED, MOVED = (
    {"sparsity": {"type": "cubic", "final": 0.75, "end": 9}, "update": UPDATE},
    {"sparsity": 0.5, "update": UPDATE},
)
RULES = {
    "static": {"sparsity": 0.5},
    "gmp": {"algorithm": "gmp", **PRUNED},
    "set": {"algorithm": "set", **MOVED},
    "rigl": {"algorithm": "rigl", **MOVED},
}
VARIANTS = {
    "smet": {"algorithm": "smet", **MOVED},
    "granet": {"algorithm": "granet", **PRUNED},
    "mest": {"algorithm": "mest", **MOVED},
    "chts": {"algorithm": "chts", **MOVED},
    "chtss": {"algorithm": "chtss", **PRUNED},
}
SR_STE = {"algorithm": "sr_ste", "nm": [2, 4]}
STORED = {
    "masked": {"storage": "masked"},
    "masked blocks": {"storage": "masked", "block": [32, 32]},
    "packed blocks": {"storage": "packed", "block": [32, 32]},
    "packed columns": {"storage": "packed", "block": [32, 1]},
}
COMPRESSED = {"storage": "compressed", "nm": [2, 4]}
PATTERNS = {
    **STORED,
    "2:4": COMPRESSED,
    "shared inputs": {"storage": "packed", "shared_inputs": 2},
    "permuted blocks": {"storage": "packed", "block": [32, 32], "permute_inputs": "updates"},
    "whole": {},
}
CASES = [
    *((rule, stored) for rule in RULES for stored in STORED),
    *((rule, stored) for rule in VARIANTS for stored in ("masked", "packed blocks")),
    *(("static", "shared inputs"), ("rigl", "shared inputs"), ("gmp", "permuted blocks"), ("sr_ste", "whole")),
]
LR, EPS = 0.003, 1e-3  # eps well above what gradients of norm 0.5 round by: Adam would blow that up to whole updates
ADAM = {"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.1, "lr": LR, "eps": EPS}}
FLOAT32 = {"enabled": False, "max_gradient_norm": 0.5}
APART = {"float32": 1e-5, "bfloat16": pairs.BFLOAT16, "float16": pairs.BFLOAT16}


def precision(dtype: str) -> dict:
    if dtype == "float32":
        return FLOAT32
    return {**FLOAT32, "enabled": True, "emulate": True, "fp16_type": dtype}


def rows(step: int) -> dict[str, torch.Tensor]:
    return batch(step, length=29, uneven=True)


def made(rule: str, stored: str, device: torch.device = DEVICE, dtype: str = "float32", **init):
    sparsity = {**{**RULES, **VARIANTS, "sr_ste": SR_STE}[rule], **PATTERNS[stored]}
    run = make_run(device, sparsity=sparsity, optimizer=ADAM, **{"precision": precision(dtype), **init})
    assert {isinstance(p, PackedParameter) for p in run.sparsity.parameters} == {sparsity.get("storage") == "packed"}
    return run


def queueing(run) -> Local:
    """The run's backend; one that rehearses on a CPU queues its steps, too."""
    there = backend_of(run.config)
    there.asynchronous = True
    return there


@pytest.mark.parametrize("rule,stored", CASES)
def test_float32_steps_are_the_cpus(rule, stored):
    """Each of ten from the same values: masks from the same scores are the same bits."""
    first, second = made(rule, stored, CPU), made(rule, stored)
    for (name, x), y in zip(pairs.values(first).items(), pairs.values(second).values(), strict=True):
        assert torch.equal(x, y), name  # weights are drawn on the host
    step_both, churn = pairs.pair(first, second, APART["float32"], 2 * LR * 1e-5 * 0.5 / EPS, train_step), 0
    for step in range(10):
        churn += step_both(rows(step % 4), 2)[1].churn
    assert (churn > 0) == (rule != "static")
    for p in second.sparsity.parameters:
        assert p.weight.device.type == p.mask.device.type == DEVICE.type
        assert all(x.device.type == DEVICE.type for x in second.optimizer.state[p.weight].values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["masked", "packed blocks", "packed columns", "2:4"])
def test_16_bit_steps_are_near_float32(stored, dtype):
    """Their products are of rounded factors; the reference is the CPU's float32, whose own rounding is 10,000 times
    finer."""
    first, second = made("rigl", stored, CPU), made("rigl", stored, dtype=dtype)
    assert second.dtype == dtype
    if stored == "2:4":
        assert any(isinstance(m, SemiStructuredLinear) for m in second.model.modules()) == GPU
    update = 2 * LR * min(APART[dtype] * 0.5 / EPS, 1)
    step_both = pairs.pair(first, second, APART[dtype], update, train_step)
    for step in range(7):
        step_both(rows(step % 4))


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("rule", RULES)
def test_counts_and_zeros_are_exact(rule, stored, monkeypatch):
    """The schedule's integer of live weights; weights, gradients and moments of dead ones are +0.0 on the device."""
    run, seen = made(rule, stored), []
    plain = run.sparsity.update

    def look(step, moments):
        for p in run.sparsity.parameters:
            grad = p.whole(p.weight.grad)
            assert not grad.view(torch.int32)[~p.mask].any(), p.name
            seen.append(step)
        return plain(step, moments)

    monkeypatch.setattr(run.sparsity, "update", look)
    for step in range(10):
        train_step(run, rows(step % 4))
        for group in run.sparsity.groups:
            counts = group.counts(step + 1)
            for p in group.parameters:
                assert int(p.mask.sum()) == p.live == counts[p.name]
                whole = [p.weight.detach(), *(run.optimizer.state[p.weight][k] for k in ("exp_avg", "exp_avg_sq"))]
                for x in map(p.whole, whole):
                    assert not x.view(torch.int32)[~p.mask].any(), p.name
    assert set(seen) == set(range(1, 11))


def copy_tensors(run) -> dict[str, torch.Tensor]:
    return {f"{s}/{n}": x.cpu() for s, part in snapshot(run, "data")[0].items() for n, x in part.items()}


@pytest.mark.parametrize("stored", ["masked", "packed blocks"])
def test_steps_left_on_the_device_are_those_that_are_read(stored):
    """Bit for bit, whatever is read when."""
    a, b = made("set", stored, backend={"deterministic": True}), made("set", stored, backend={"deterministic": True})
    there = queueing(b)
    losses = [there.train_step(a, rows(step), 1).loss for step in range(8)]
    found = [there.queue_step(b, rows(step), 1) for step in range(7)] + [there.train_step(b, rows(7), 1)]
    assert all(step is None or step.loss == loss for step, loss in zip(found, losses, strict=True))
    assert found[-1].loss == losses[-1] and (a.tokens, a.step, a.ledger) == (b.tokens, b.step, b.ledger)
    for (name, x), y in zip(copy_tensors(a).items(), copy_tensors(b).values(), strict=True):
        assert torch.equal(x, y), name


def test_a_step_that_is_not_finite_is_passed_over_on_the_device():
    """Nothing after it is taken either, and the run is at the step that failed when its values are read."""
    run = made("static", "masked")
    there = queueing(run)
    there.train_step(run, rows(0), 1)
    before, head = copy_tensors(run), run.parameters["model.ln_f.weight"]
    handle = head.register_hook(lambda g: torch.full_like(g, float("nan")))
    for step in range(1, 4):
        assert there.queue_step(run, rows(step), 1) is None
    handle.remove()
    settle(run)
    assert (run.step, run.tokens) == (1, rows(0)["input_ids"].numel())
    for (name, x), y in zip(before.items(), copy_tensors(run).values(), strict=True):
        assert torch.equal(x, y), name


def test_packed_weights_are_those_of_the_whole_ones():
    whole, run = made("rigl", "masked blocks"), made("rigl", "packed blocks")
    step_both = pairs.pair(whole, run, APART["float32"], 2 * LR * 1e-5 * 0.5 / EPS, train_step)
    for step in range(10):
        step_both(rows(step % 4))
    for p, q in zip(whole.sparsity.parameters, run.sparsity.parameters, strict=True):
        assert torch.equal(pack(p.weight.detach(), q.layout), q.weight.detach())


def test_dropout_is_repeatable():
    """Its draws are keyed by seed and step: two runs make the same."""
    model = {**SMALL, "dropout_rate": 0.1, "attention_dropout_rate": 0.1}
    init = {"model": model, "backend": {"deterministic": True}, "precision": {"enabled": True, "emulate": True}}
    losses = [[train_step(run, rows(s)).loss for s in range(3)] for run in (make_run(**init), make_run(**init))]
    assert losses[0] == losses[1] and len(set(losses[0])) == 3


# Not those whose masks turn on last bits of the weights: `CASES` has them, from the same values at each update.
KINDS = [name for name in test_stand_in.KINDS if name not in (*VARIANTS, "permuted")]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_run_is_the_cpus(name):
    """Positions, adapters, optimizers and ways to sum, by the losses of four steps."""
    kind = test_stand_in.KINDS[name]
    (expected, _), (found, _) = (test_stand_in.take_steps(device, kind) for device in (CPU, DEVICE))
    assert [s.loss for s in found] == pytest.approx([s.loss for s in expected], rel=1e-4)
    assert [s.grad_norm for s in found] == pytest.approx([s.grad_norm for s in expected], rel=1e-3)
    assert [(s.churn, s.tokens) for s in found] == [(s.churn, s.tokens) for s in expected]
