"""float16 on a GPU: the scale falls at an overflow, which changes nothing else, and rises after good steps."""

import pytest
import torch

from tests.gpu.device import DEVICE, GPU, make_run, train_step
from tests.gpu.test_steps import copy_tensors, rows

pytestmark = pytest.mark.gpu


def scaled(**precision):
    fp16 = {"enabled": True, "emulate": True, "fp16_type": "float16", "loss_scaling_factor": "dynamic"}
    return make_run(precision={**fp16, "steps_per_increase": 3, **precision}, sparsity={"sparsity": 0.5})


def test_the_scale_falls_and_rises():
    """From beyond float16's range down to where gradients are finite, and up after three good steps in a row."""
    run = scaled(initial_loss_scale=2.0**24)
    assert run.dtype == "float16"
    before, seen, good = copy_tensors(run), [], 0
    for step in range(30):
        scale, done = run.loss_scale.scale, train_step(run, rows(step % 4))
        good = 0 if done.skipped else good + 1
        assert run.loss_scale.scale == scale * (0.5 if done.skipped else 2 if good == 3 else 1)
        good %= 3
        seen.append((done.skipped, run.loss_scale.scale / scale))
        if run.optimizer_step == 0:  # nothing but counters has moved so far
            for (name, x), y in zip(before.items(), copy_tensors(run).values(), strict=True):
                assert torch.equal(x, y), name
    skipped = sum(s for s, _ in seen)
    assert seen[0][0] and 0 < skipped < 30 and run.skipped == skipped == run.step - run.optimizer_step
    assert {times for _, times in seen} == {0.5, 1.0, 2.0} and run.is_finite()


def test_the_scale_changes_no_gradient():
    """A power of two multiplies exactly, so a first step at two scales leaves equal norms and close weights."""
    a, b = scaled(initial_loss_scale=2.0**8), scaled(initial_loss_scale=2.0**12)
    steps = [train_step(run, rows(0)) for run in (a, b)]
    assert not any(s.skipped for s in steps) and steps[0].loss == steps[1].loss
    # what is below float16's range at the smaller scale is lost there
    assert steps[1].grad_norm == pytest.approx(steps[0].grad_norm, rel=1e-3)


@pytest.mark.skipif(not GPU, reason="bfloat16 is emulated on some processors")
def test_bfloat16_needs_no_scale():
    run = make_run(precision={"enabled": True})
    assert (run.dtype, run.loss_scale.scale, run.loss_scale.dynamic) == ("bfloat16", 1.0, False)
    assert torch.cuda.is_bf16_supported() and not train_step(run, rows(0)).skipped
    assert next(run.model.parameters()).device.type == DEVICE.type
