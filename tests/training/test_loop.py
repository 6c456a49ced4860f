"""The loop over steps: what it counts, how it clips, when it stops, and validation."""

import math

import pytest
import torch
import torch.nn.functional as F

from modelzoo.config.errors import UserError
from modelzoo.data.hdf5 import Shards
from modelzoo.optim.loss_scale import LossScale
from modelzoo.training.console import describe_score
from modelzoo.training.loop import iterate_steps
from modelzoo.training.validation import validate
from tests.support import LOCAL, TINY, batch, examples, loader, make_run, train_step, write_shard

WARMUP = {"LinearLR": {"initial_learning_rate": 0.0, "end_learning_rate": 0.01, "total_iters": 10}}
PLAIN_ADAMW = {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}}


@pytest.fixture
def shards(tmp_path):
    write_shard(tmp_path / "x.h5", examples(30, msl=12))
    return Shards.open(loader(tmp_path, shuffle=True), 37)


def test_training_equals_a_plain_loop_of_torch(shards):
    """Loss by loss: schedule, AdamW's groups, clipping, micro-batches; written out in ten lines of torch."""
    run = make_run(optimizer=PLAIN_ADAMW, schedulers=[WARMUP], precision={"enabled": False, "max_gradient_norm": 0.5})
    twin = make_run()
    model = twin.model
    decay = [p for n, p in model.named_parameters() if p.dim() > 1]
    rest = [p for n, p in model.named_parameters() if p.dim() == 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for timed in iterate_steps(LOCAL, run, shards, 15, 2):
        b = shards.batch(run.step - 1)
        logits = model.model.logits(model.model.hidden(b["input_ids"]))
        loss = F.cross_entropy(logits.flatten(0, 1), b["labels"].flatten().long())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * min(run.step - 1, 10) / 10
        assert timed.step.lr == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        assert timed.step.loss == pytest.approx(loss.item(), rel=1e-4)
        assert timed.step.grad_norm == pytest.approx(norm.item(), rel=1e-3)
        assert (timed.step.tokens, timed.step.churn, timed.step.skipped) == (48, 0, False)
        assert timed.seconds >= timed.waiting >= 0
    assert (run.step, run.tokens) == (15, 15 * 48)
    assert norm > 0.5  # the clip acted


def test_gradient_values_are_clamped():
    run = make_run(optimizer={"SGD": {"lr": 1.0}}, precision={"enabled": False, "max_gradient_value": 1e-3})
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    train_step(run, batch(), 1)
    moves = torch.cat([(p.detach() - before[n]).flatten() for n, p in run.model.named_parameters()])
    assert moves.abs().max().item() == pytest.approx(1e-3, rel=1e-3) and (moves.abs() < 9e-4).any()


def test_steps_resume_where_the_run_stands(shards):
    whole, parts = make_run(sparsity=0.5), make_run(sparsity=0.5)
    losses = [t.step.loss for t in iterate_steps(LOCAL, whole, shards, 12, 1)]
    found = [t.step.loss for stop in (5, 6, 12) for t in iterate_steps(LOCAL, parts, shards, stop, 1)]
    assert found == losses


def test_dropout_is_keyed_by_seed_and_step():
    def loss(seed=7, step=0, noise=0):
        run = make_run(model={**TINY, "dropout_rate": 0.3})
        run.init = run.init.model_copy(update={"seed": seed})
        run.step = step
        torch.manual_seed(noise)
        return train_step(run, batch(), 1).loss

    assert loss() == loss(noise=1)
    assert len({loss(), loss(seed=8), loss(step=1)}) == 3


def poison(run, steps, value=float("nan")):
    """Losses of the given batches (by their number) come out as `value`."""
    forward = run.model.forward
    run.model.forward = lambda *a: forward(*a) * (value if run.step in steps else 1.0)


def test_a_step_that_is_not_finite_stops_the_run(shards):
    run = make_run()
    poison(run, {3})
    with pytest.raises(UserError, match=r"step 4: loss nan.*on_nonfinite: skip") as e:
        list(iterate_steps(LOCAL, run, shards, 10, 1))
    assert "\n" not in str(e.value)
    assert all(p.isfinite().all() for p in run.model.parameters())


def test_skipping_has_a_budget(shards):
    settings = {"max_steps": 20, "on_nonfinite": "skip", "max_skipped_steps": 3}
    run = make_run(loop=settings, schedulers=[WARMUP], optimizer=PLAIN_ADAMW)
    poison(run, {1, 4, 5}, float("inf"))
    found = [t.step for t in iterate_steps(LOCAL, run, shards, 12, 1)]
    assert [i for i, s in enumerate(found) if s.skipped] == [1, 4, 5]
    assert (run.step, run.skipped, run.optimizer_step, run.tokens) == (12, 3, 9, 9 * 48)
    assert [round(s.lr * 1000) for s in found] == [0, 1, 1, 2, 3, 3, 3, 4, 5, 6, 7, 8]  # a skipped step's rate waits
    run = make_run(loop=settings)
    poison(run, {1, 4, 5, 9})
    with pytest.raises(UserError, match=r"step 10: .* loop\.max_skipped_steps 3 are used up"):
        list(iterate_steps(LOCAL, run, shards, 12, 1))
    run = make_run(loop=settings)
    poison(run, {1, 4, 5, 9})
    list(iterate_steps(LOCAL, run, shards, 6, 1))
    with pytest.raises(UserError, match=r"step 10: .* are used up"):  # the run's budget, however it is cut
        list(iterate_steps(LOCAL, run, shards, 12, 1))


# --- float16's loss scale, with overflows made by hand ----------------------------------------------------------------


def test_gradients_do_not_depend_on_the_scale():
    found = []
    for scale in (1.0, 1024.0):
        run = make_run(optimizer={"SGD": {"lr": 0.1}}, precision={"enabled": False, "max_gradient_norm": 0.3})
        run.loss_scale = LossScale(scale=scale)
        step = train_step(run, batch(), 2)
        found.append((step.loss, step.grad_norm, [p.detach().clone() for p in run.model.parameters()]))
    assert found[0][0] == found[1][0] and found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    for a, b in zip(found[0][2], found[1][2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_overflows_lower_a_dynamic_scale_and_do_not_stop_the_run(shards):
    run = make_run()
    run.loss_scale = LossScale(scale=16.0, dynamic=True, patience=3, low=1.0, high=32.0)
    poison(run, {0, 1}, float("inf"))
    scales = [run.loss_scale.scale for _ in iterate_steps(LOCAL, run, shards, 9, 1)]
    assert scales == [8.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 16.0, 16.0]
    assert (run.skipped, run.optimizer_step) == (2, 7)


def test_an_overflow_at_the_lowest_scale_stops_the_run(shards):
    """But not the one that brings the scale down to it: the smaller scale has not been tried yet."""
    run = make_run()
    run.loss_scale = LossScale(scale=4.0, dynamic=True, low=1.0)
    poison(run, {0, 1}, float("inf"))
    list(iterate_steps(LOCAL, run, shards, 3, 1))
    assert (run.loss_scale.scale, run.skipped) == (1.0, 2)
    poison(run, {3}, float("inf"))
    with pytest.raises(UserError, match="not finite"):
        list(iterate_steps(LOCAL, run, shards, 5, 1))


# --- validation -------------------------------------------------------------------------------------------------------


def test_validation_is_the_mean_over_counting_tokens(tmp_path):
    data = examples(10, msl=12)
    data[::2, 1, 3:] = 0
    write_shard(tmp_path / "v.h5", data)
    shards = Shards.open(loader(tmp_path, batch_size=4), 37)
    run = make_run(model={**TINY, "dropout_rate": 0.5})
    score = validate(LOCAL, run, shards, None)
    with torch.no_grad():
        whole = torch.from_numpy(data).long()
        logits = run.model.eval().model.logits(run.model.model.hidden(whole[:, 0])).double()
    losses = F.cross_entropy(logits.flatten(0, 1), whole[:, 2].flatten(), reduction="none").view(10, 12)
    counts = whole[:, 1].bool()
    assert score.tokens == int(counts.sum()) == 5 * 12 + 5 * 3
    assert score.loss == pytest.approx(losses[counts].mean().item(), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert score.accuracy == pytest.approx((logits.argmax(-1) == whole[:, 2])[counts].float().mean().item())
    spread = [1, 3, 6, 8]  # a batch's worth of the ten: the middle of each quarter
    part = validate(LOCAL, run, shards, 1)
    assert part.loss == pytest.approx(losses[spread][counts[spread]].mean().item(), rel=1e-5)
    assert (part.examples, part.all_examples) == (4, 10) and "(4 of 10 examples)" in describe_score(part)
    assert validate(LOCAL, run, shards, 9)._replace(loss=score.loss, perplexity=score.perplexity) == score


def test_validation_changes_nothing(shards):
    run, twin = make_run(sparsity=0.5), make_run(sparsity=0.5)
    for step in range(4):
        validate(LOCAL, run, shards, 2)
        assert train_step(run, batch(step), 1) == train_step(twin, batch(step), 1)


def test_validation_without_a_counting_token_is_refused(tmp_path):
    data = examples(4, msl=12)
    data[:, 1] = 0
    write_shard(tmp_path / "v.h5", data)
    with pytest.raises(UserError, match=r"v\.h5: no place of its 4 examples counts for the loss"):
        validate(LOCAL, make_run(), Shards.open(loader(tmp_path), 37), None)
