"""Causal attention: torch's fused kernel, and on CPUs at short lengths three plain products, which are faster there."""

import torch
import torch.nn.functional as F
from torch import Tensor

from modelzoo.kernels import few
from modelzoo.kernels.limits import find_longest_plain


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float) -> Tensor:
    """softmax(scale * q k^T + mask) v.

    Args:
        q: [b, heads, t, head_dim], any strides. k, v: [b, heads, n, head_dim]; n is t but for generation, where
            earlier tokens' are cached.
        mask: additive [1 or b, 1 or heads, t, n]. None: causal where n is t; else every query sees all keys.
        dropout: on the probabilities.

    Returns:
        [b, heads, t, head_dim].
    """
    b, h, t, d = q.shape
    if k.shape[2] != t:
        return _attend_cached(q, k, v, mask, scale)
    longest = 0 if torch.compiler.is_compiling() else find_longest_plain(str(q.dtype).removeprefix("torch."), dropout)
    if q.device.type != "cpu" or t > longest:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale
        )
    if mask is None:  # one [t, t] for all, by strides
        bias = torch.full((t, t), float("-inf"), dtype=q.dtype).triu(1).expand(b * h, t, t)
    else:
        bias = mask.to(q.dtype).expand(b, h, t, t).reshape(b * h, t, t)
    q, k, v = (x.reshape(b * h, t, d) for x in (q, k, v))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    weights = F.dropout(torch.softmax(scores, -1), dropout) if dropout else torch.softmax(scores, -1)
    return torch.bmm(weights, v).view(b, h, t, d)


def _attend_cached(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """`attention` of a few new tokens to many cached ones: plain products, which read each key and value once."""
    b, h, t, d = q.shape
    n = k.shape[2]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if (y := few.attend(q, k, v, mask, scale)) is not None:
        return y
    q, k, v = q.reshape(b * h, t, d), k.reshape(b * h, n, d), v.reshape(b * h, n, d)  # of a cache a view, no copy
    scores = torch.bmm(q, k.transpose(1, 2)).view(b, h, t, n).mul_(scale)
    weights = torch.softmax(scores if mask is None else scores.add_(mask), -1)
    return torch.bmm(weights.view(b * h, t, n), v).view(b, h, t, d)
