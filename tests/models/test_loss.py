"""The loss and its gradient, whole or in parts; dropout; what a token can see."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modelzoo.models.gpt import GPTModel, loss_denominator
from tests.support import batch, tiny


def plain_loss(model, b, denominator):
    """Cross-entropy of all logits at once, in float64."""
    logits = model.model.logits(model.model.hidden(b["input_ids"])).double()
    losses = F.cross_entropy(logits.flatten(0, 1), b["labels"].flatten().long(), reduction="none")
    return (losses * b["attention_mask"].flatten()).sum() / denominator


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_close(ours, theirs, rtol=1e-4):
    largest = max(g.abs().max().item() for g in theirs.values())
    for name, g in theirs.items():  # a key's bias has no gradient but rounding, so the scale is the whole model's
        np.testing.assert_allclose(ours[name], g, rtol=rtol, atol=rtol * largest, err_msg=name)


MUP = {"mup_base_hidden_size": 4, "mup_base_filter_size": 8, "output_logits_alpha": 3.0}


@pytest.mark.parametrize("fields", [{}, {"share_embedding_weights": False, "use_bias_in_output": True}, MUP])
def test_loss_and_gradient_equal_plain_cross_entropy(fields):
    model, b = GPTModel(tiny(initializer_range=0.2, **fields), seed=0), batch(uneven=True)
    denominator = loss_denominator(model.model.config, b["attention_mask"])
    ours, theirs = model(b, denominator), plain_loss(model, b, denominator)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert_close(gradients(model, ours), gradients(model, theirs))


@pytest.mark.parametrize("scaling", [{}, {"loss_scaling": "batch_size", "loss_weight": 0.25}])
def test_denominator(scaling):
    c, mask = tiny(**scaling), batch(uneven=True)["attention_mask"]
    expected = mask.sum().item() if not scaling else 4 / 0.25
    assert loss_denominator(c, mask).item() == expected
    if not scaling:  # a batch without a counting token has loss 0, not NaN
        assert loss_denominator(c, torch.zeros_like(mask)).item() == 1.0


@pytest.mark.parametrize("scaling", ["num_tokens", "batch_size"])
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up_to_the_whole(scaling, parts):
    """Also where the parts hold different numbers of counting tokens: a mean of means would be wrong."""
    model, b = GPTModel(tiny(loss_scaling=scaling, initializer_range=0.2), seed=0), batch(uneven=True)
    counts = b["attention_mask"].sum(1)
    assert len(set(counts.tolist())) > 1
    denominator = loss_denominator(model.model.config, b["attention_mask"])
    whole = model(b, denominator)
    expected = gradients(model, whole)
    model.zero_grad()
    total = 0.0
    for i in range(parts):
        part = model({n: x.chunk(parts)[i] for n, x in b.items()}, denominator)
        part.backward()
        total += part.item()
    assert total == pytest.approx(whole.item(), rel=1e-5)
    assert_close({n: p.grad for n, p in model.named_parameters()}, expected)


@pytest.mark.parametrize("kind", ["learned", "fixed", "rotary", "alibi", None])
def test_no_token_sees_a_later_one(kind):
    model, ids = (
        GPTModel(tiny(position_embedding_type=kind, initializer_range=0.3), seed=0).eval(),
        batch()["input_ids"],
    )
    with torch.no_grad():
        before = model.model.hidden(ids)
        for t in range(12):
            changed = ids.clone()
            changed[:, t] = (changed[:, t] + 1) % 37
            after = model.model.hidden(changed)
            assert torch.equal(before[:, :t], after[:, :t])
            assert (before[:, t] != after[:, t]).any(-1).all()


@pytest.mark.parametrize("kind", ["learned", "fixed", "rotary", "alibi", None])
def test_documents_in_one_row_do_not_see_each_other(kind):
    model, ids = (
        GPTModel(tiny(position_embedding_type=kind, initializer_range=0.3), seed=0).eval(),
        batch()["input_ids"],
    )
    more = {
        "position_ids": torch.tensor([[*range(5), *range(7)]] * 4),
        "span": torch.tensor([[*range(4, -1, -1), *range(6, -1, -1)]] * 4),
    }
    changed = ids.clone()
    changed[:, :5] = (changed[:, :5] + 3) % 37
    with torch.no_grad():
        a, b = model.model.hidden(ids, **more), model.model.hidden(changed, **more)
        assert torch.equal(a[:, 5:], b[:, 5:]) and not torch.equal(a[:, :5], b[:, :5])
        # and the second document reads as it would alone
        alone = model.model.hidden(ids[:, 5:])
        torch.testing.assert_close(a[:, 5:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", [
    {"dropout_rate": 0.5}, {"attention_dropout_rate": 0.5}, {"embedding_dropout_rate": 0.5},
    {"dropout_rate": 0.5, "embedding_dropout_rate": 0.0, "attention_dropout_rate": 0.0},
    {"position_embedding_type": "alibi", "attention_dropout_rate": 0.5},
])  # fmt: skip
def test_dropout_acts_in_training_alone(fields):
    model, ids = GPTModel(tiny(**fields), seed=0), batch()["input_ids"]
    plain = GPTModel(tiny(position_embedding_type=fields.get("position_embedding_type", "learned")), seed=0)
    with torch.no_grad():
        torch.manual_seed(1)
        assert not torch.equal(model.train().model.hidden(ids), model.model.hidden(ids))
        assert torch.equal(model.eval().model.hidden(ids), plain.eval().model.hidden(ids))


def test_each_dropout_keeps_the_mean():
    """Inverted dropout: over many draws the embeddings' mean is that without it."""
    model, ids = GPTModel(tiny(embedding_dropout_rate=0.25), seed=0).train(), batch()["input_ids"]
    seen = []
    model.model.drop_embd.register_forward_hook(lambda module, x, y: seen.append((x[0], y)))
    with torch.no_grad():
        torch.manual_seed(0)
        for _ in range(400):
            model.model.hidden(ids)
    mean = torch.stack([y for _, y in seen]).mean(0)
    spread = seen[0][0].abs() * (0.25 / 0.75 / 400) ** 0.5
    assert ((mean - seen[0][0]).abs() < 6 * spread + 1e-9).all()


@pytest.mark.parametrize("rows", [5, 48, 1024])
def test_score_equals_the_reference(rows):
    model, b = GPTModel(tiny(use_bias_in_output=True), seed=0).eval(), batch(uneven=True)
    with torch.no_grad():
        loss, right, tokens = model.score(b, rows)
        logits = model.model.logits(model.model.hidden(b["input_ids"]))
        expected = plain_loss(model, b, 1.0)
    hits = (logits.argmax(-1) == b["labels"]) & (b["attention_mask"] > 0)
    assert tokens.item() == b["attention_mask"].sum().item()
    assert right.item() == hits.sum().item()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_autocast_is_bfloat16_inside_and_float32_at_the_ends():
    model, b = GPTModel(tiny(), seed=0), batch()
    kinds = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            module.register_forward_hook(lambda m, x, y, name=name: kinds.__setitem__(name, y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(b, 48.0)
    assert set(kinds.values()) == {torch.bfloat16} and len(kinds) == 12
    grads = gradients(model, loss)
    assert loss.dtype == torch.float32 and all(g.dtype == torch.float32 for g in grads.values())
    assert loss.item() == pytest.approx(model(b, 48.0).item(), rel=1e-2)
    assert_close(grads, gradients(model, model(b, 48.0)), rtol=0.05)
