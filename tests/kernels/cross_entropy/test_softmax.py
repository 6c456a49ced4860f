"""Cross-entropy and its gradient in place against float64, compiled and in torch's operators."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzoo.kernels.compiled import build
from modelzoo.kernels.cross_entropy import softmax
from modelzoo.kernels.cross_entropy.linear import linear_cross_entropy


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch):
    if request.param == "compiled":
        try:
            build.library("softmax")
        except build.Unavailable as reason:
            pytest.skip(f"no compiled kernels: {reason}")
    monkeypatch.setattr(softmax, "WORTH", 0 if request.param == "compiled" else float("inf"))


def wanted(logits, labels):
    exact = logits.double().requires_grad_()
    losses = F.cross_entropy(exact, labels, reduction="none")
    return losses.detach(), torch.autograd.grad(losses.sum(), exact)[0]


def hold(n, vocab, dtype, spread, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, vocab, generator=draw) * spread).to(dtype)
    labels = torch.randint(vocab, (n,), generator=draw)
    losses, gradient = wanted(logits, labels)
    got, kept = torch.empty(n), logits.clone()
    softmax.cross_entropy_(kept, labels, got, False)
    assert torch.equal(kept, logits)
    torch.testing.assert_close(got.double(), losses, rtol=1e-5, atol=1e-5)
    softmax.cross_entropy_(logits, labels, got, True)
    near = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(logits.double(), gradient, rtol=near, atol=1e-6)
    torch.testing.assert_close(got.double(), losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("n,vocab", [(1, 1), (3, 2), (5, 15), (4, 16), (7, 37), (2, 50257)])
def test_equals_float64(way, n, vocab, dtype):
    for spread in (0.0, 1.0, 30.0):
        hold(n, vocab, dtype, spread, n)


@given(st.integers(1, 40), st.integers(1, 300), st.floats(0, 60), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_any_shape_and_spread_compiled(n, vocab, spread, seed):
    try:
        build.library("softmax")
    except build.Unavailable as reason:
        pytest.skip(f"no compiled kernels: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax, "WORTH", 0)
        hold(n, vocab, torch.float32, spread, seed)
        hold(n, vocab, torch.bfloat16, spread, seed)


def test_what_is_not_finite_stays_within_its_row(way):
    logits = torch.zeros(4, 33)
    logits[1, 7], logits[2, 3] = float("nan"), float("-inf")
    labels = torch.tensor([0, 1, 2, 32])
    losses, gradient = wanted(logits, labels)
    got = torch.empty(4)
    softmax.cross_entropy_(logits, labels, got, True)
    torch.testing.assert_close(got.double(), losses, equal_nan=True)
    torch.testing.assert_close(logits.double(), gradient, equal_nan=True)
    assert got[1].isnan() and got[[0, 2, 3]].isfinite().all() and logits[2, 3] == 0


def test_bits_do_not_depend_on_threads():
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        logits = torch.randn(50, 40000, generator=torch.Generator().manual_seed(0))
        losses = torch.empty(50)
        softmax.cross_entropy_(logits, torch.arange(50), losses, True)
        results.append((logits, losses))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0]))


def test_torch_compile_sees_operators_alone(monkeypatch):
    monkeypatch.setattr(softmax, "WORTH", 0)
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    labels, mask = torch.arange(6), torch.ones(6)

    def f(hidden, weight):
        return linear_cross_entropy(hidden, weight, labels, mask)

    want = torch.autograd.grad(f(hidden, weight), (hidden, weight))
    got = torch.autograd.grad(torch.compile(f, backend="aot_eager")(hidden, weight), (hidden, weight))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)
