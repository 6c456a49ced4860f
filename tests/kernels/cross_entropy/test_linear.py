"""The fused head equals F.cross_entropy of all logits, in value and gradient, wherever its chunks fall."""

import pytest
import torch
import torch.nn.functional as F

from modelzoo.kernels import limits
from modelzoo.kernels.cross_entropy import linear as kernel
from modelzoo.kernels.cross_entropy.linear import linear_cross_entropy
from tests.memory import PeakMemory


def problem(n, vocab, d=5, bias=False, seed=0):
    draw = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(n, d, generator=draw), torch.randn(vocab, d, generator=draw)
    labels = torch.randint(vocab, (n,), generator=draw)
    mask = torch.randint(2, (n,), generator=draw).float()
    return hidden, weight, labels, mask, torch.randn(vocab, generator=draw) if bias else None


def plain(hidden, weight, labels, mask, bias, scale):
    """In float64, all logits at once."""
    logits = scale * F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    return (F.cross_entropy(logits, labels, reduction="none") * mask).sum()


def both(case, scale, upstream=1.0, **more):
    hidden, weight, labels, mask, bias = case
    results = []
    for run in (linear_cross_entropy, plain):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
        h, w, b = (*leaves, None)[:3]
        if run is plain:
            loss = plain(h, w, labels, mask, b, scale)
        else:
            loss = linear_cross_entropy(h, w, labels, mask, b, scale, **more)
        (loss * upstream).backward()
        results.append((loss.detach(), [x.grad for x in leaves]))
    return results


def assert_equal(results, tolerance):
    (loss, grads), (expected, wanted) = results
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    assert len(grads) == len(wanted) >= 2
    for g, e in zip(grads, wanted, strict=True):
        torch.testing.assert_close(g, e, rtol=tolerance, atol=tolerance * e.abs().max().item())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("n,vocab", [(1, 2), (64, 11), (65, 11), (200, 7)])
def test_equals_cross_entropy(n, vocab, scale, bias):
    assert_equal(both(problem(n, vocab, bias=bias), scale, upstream=0.37), 2e-5)


@pytest.mark.parametrize("trains", [True, False])
def test_one_part_of_the_logits_is_there_at_a_time(trains, monkeypatch):
    """64 rows of 4096 float32 logits, of 200; the width is small, and the pass in place, as on GPUs."""
    monkeypatch.setattr(limits, "BUFFER_BYTES", 1)
    monkeypatch.setattr(kernel, "cross_entropy_", lambda logits, *_: None)
    hidden, weight, labels, _, _ = problem(200, 4096)
    with PeakMemory([hidden, weight, labels]) as measured:
        linear_cross_entropy(hidden.requires_grad_(trains), weight.requires_grad_(trains), labels, torch.ones(200))
    assert measured.peak < 1.5 * 64 * 4096 * 4


@pytest.mark.parametrize("n", [63, 64, 65, 127, 128, 129, 300])
def test_chunks_meet_without_a_seam(n, monkeypatch):
    """With buffers of a few rows the sum runs over many chunks, the last one smaller."""
    monkeypatch.setattr(limits, "BUFFER_BYTES", 1)
    assert_equal(both(problem(n, 9, bias=True), 2.0), 2e-5)


def test_masked_rows_add_nothing():
    hidden, weight, labels, _, bias = problem(50, 13, bias=True)
    h = hidden.clone().requires_grad_()
    mask = torch.zeros(50)
    mask[7] = 1.0
    linear_cross_entropy(h, weight, labels, mask, bias).backward()
    assert set(h.grad.any(-1).nonzero().flatten().tolist()) == {7}
    assert linear_cross_entropy(hidden, weight, labels, torch.zeros(50), bias).item() == 0.0


def test_loss_mask_weighs():
    """The mask may hold weights other than 0 and 1."""
    case = problem(40, 13)
    mask = torch.rand(40, generator=torch.Generator().manual_seed(4))
    assert_equal(both((*case[:3], mask, None), 1.0), 2e-5)


def test_large_logits_do_not_overflow():
    hidden, weight, labels, mask, _ = problem(30, 11)
    assert_equal(both((hidden * 100, weight * 100, labels, mask, None), 1.0), 1e-4)


def test_bfloat16_products_stay_near():
    case = problem(300, 50, d=32)
    (loss, grads), (expected, wanted) = both(case, 1.0, dtype=torch.bfloat16)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    for g, e in zip(grads, wanted, strict=True):
        assert g.dtype == torch.float32
        assert (g - e).norm() < 0.02 * e.norm()


def test_without_gradient(monkeypatch):
    """And then the two products of the backward pass are not made either."""
    case = problem(100, 13, bias=True)
    leaves = [x.clone().requires_grad_() for x in (case[0], case[1], case[4])]
    monkeypatch.setattr(torch, "mm", lambda *a, **k: pytest.fail("a gradient was computed"))
    with torch.no_grad():
        loss = linear_cross_entropy(leaves[0], leaves[1], case[2], case[3], leaves[2])
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(plain(*case, 1.0).item(), rel=1e-5)
    assert not linear_cross_entropy(*case[:4], case[4]).requires_grad


def test_gradient_agrees_with_finite_differences():
    """By central differences of the float64 reference in random directions: not autograd against autograd."""
    hidden, weight, labels, mask, bias = problem(20, 7, bias=True)
    (_, grads), _ = both((hidden, weight, labels, mask, bias), 1.5)
    draw, step = torch.Generator().manual_seed(9), 1e-4
    inputs = [hidden.double(), weight.double(), bias.double()]
    for i, x in enumerate(inputs):
        way = torch.randn(x.shape, generator=draw, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = [y + sign * step * way if j == i else y for j, y in enumerate(inputs)]
            ends.append(plain(moved[0], moved[1], labels, mask, moved[2], 1.5).item())
        assert (grads[i].double() * way).sum().item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_gets_no_gradient_and_changes_nothing_else(bias):
    hidden, weight, labels, mask, b = problem(130, 11, bias=bias)
    found = []
    for trains in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains)
        c = None if b is None else b.clone().requires_grad_(trains)
        loss = linear_cross_entropy(h, w, labels, mask, c, 0.7)
        loss.backward()
        assert (w.grad is not None) == trains and (c is None or (c.grad is not None) == trains)
        found.append((loss.detach(), h.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("counted", [0, 1, 5, 60, 100])
def test_few_counted_rows_give_the_loss_and_gradients_of_all(counted):
    torch.manual_seed(counted)
    hidden, weight = torch.randn(100, 8), torch.randn(37, 8)
    labels, mask = torch.randint(0, 37, (100,)), torch.zeros(100)
    mask[torch.randperm(100)[:counted]] = 1.0
    found = []
    for function in (linear_cross_entropy, kernel.plain_linear_cross_entropy):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = function(h, w, labels, mask)
        loss.backward()
        found.append((loss, h.grad, w.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert (found[0][1][mask == 0] == 0).all()
