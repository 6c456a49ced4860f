"""Causal attention equals softmax(scale q k^T + mask) v in float64, on either side of its switch."""

import pytest
import torch

attention = pytest.importorskip("modelzoo.kernels.attention", exc_type=ImportError)


def plain(q, k, v, mask, scale):
    scores = scale * q.double() @ k.double().transpose(-1, -2)
    if mask is None:
        mask = torch.full(scores.shape[-2:], float("-inf")).triu(1)
    return torch.softmax(scores + mask.double(), -1) @ v.double()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch_of_mask", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_value_and_gradient(fused, masked, batch_of_mask, groups, monkeypatch):
    monkeypatch.setattr(attention, "find_longest_plain", lambda dtype, dropout: 0 if fused else 512)
    draw = torch.Generator().manual_seed(0)
    # [b, t, heads, head_dim] transposed: the strides that the model hands over
    q, k, v = (torch.randn(2, 9, n, 3, generator=draw).transpose(1, 2).requires_grad_() for n in (4, groups, groups))
    mask = None
    if masked:
        mask = torch.randn(batch_of_mask, 4, 9, 9, generator=draw)
        mask = mask.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), float("-inf"))
    way = torch.randn(2, 4, 9, 3, generator=draw)
    ours, theirs = (
        attention.attention(q, k, v, mask, 0.0, 0.3),
        plain(q, *(x.repeat_interleave(4 // groups, 1) for x in (k, v)), mask, 0.3),
    )
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad((ours * way).sum(), (q, k, v))
    wanted = torch.autograd.grad((theirs * way).sum(), (q, k, v))
    for g, e in zip(grads, wanted, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_cached_keys_serve_many_tokens(groups):
    """More queries than the kernels for few rows take; all see every key that their mask leaves."""
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, 11, 4, 3, generator=draw).transpose(1, 2)
    k, v = (torch.randn(2, groups, 17, 3, generator=draw) for _ in range(2))
    mask = torch.randn(1, 4, 11, 17, generator=draw)
    wanted = plain(q, *(x.repeat_interleave(4 // groups, 1) for x in (k, v)), mask, 0.3)
    torch.testing.assert_close(attention.attention(q, k, v, mask, 0.0, 0.3).double(), wanted, rtol=1e-5, atol=1e-6)


def test_dropout_falls_on_the_probabilities():
    """With v the identity the output is the weights themselves: each is 0, or scaled up by 1 / (1 - p)."""
    q, k = (torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    v = torch.eye(8).view(1, 1, 8, 8)
    weights = attention.attention(q, k, v, None, 0.0, 1.0)
    torch.manual_seed(0)
    dropped = attention.attention(q, k, v, None, 0.5, 1.0)
    kept = dropped != 0
    assert 5 < int(kept.sum()) < 31  # of 36 below the diagonal
    torch.testing.assert_close(dropped[kept], 2 * weights[kept])
