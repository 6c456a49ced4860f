"""Causal attention: torch's fused kernel, and on CPUs at short lengths three plain products, which are faster there."""

import torch
import torch.nn.functional as F
from torch import Tensor

from modelzoo.kernels import few
from modelzoo.kernels.limits import find_longest_plain


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float) -> Tensor:
    """softmax(scale * q k^T + mask) v.

    Args:
        q: [b, heads, t, head_dim], any strides. k, v: [b, groups, n, head_dim], of which each group serves heads /
            groups heads next to each other; n is t but for generation, where earlier tokens' are cached.
        mask: additive [1 or b, 1 or heads, t, n]. None: causal where n is t; else every query sees all keys.
        dropout: on the probabilities.

    Returns:
        [b, heads, t, head_dim].
    """
    b, h, t, d = q.shape
    if k.shape[2] != t:
        return _attend_cached(q, k, v, mask, scale)
    k, v = _share(k, h), _share(v, h)
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
    n, groups = k.shape[2], k.shape[1]
    if q.device.type != "cpu":
        k, v = _share(k, h), _share(v, h)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if (y := few.attend(q, k, v, mask, scale)) is not None:
        return y
    # of a cache a view, no copy; the heads of a group are further queries of its keys
    q, k, v = q.reshape(b * groups, -1, d), k.reshape(b * groups, n, d), v.reshape(b * groups, n, d)
    scores = torch.bmm(q, k.transpose(1, 2)).view(b, h, t, n).mul_(scale)
    weights = torch.softmax(scores if mask is None else scores.add_(mask), -1)
    return torch.bmm(weights.view(b * groups, -1, n), v).view(b, h, t, d)


def _share(x: Tensor, heads: int) -> Tensor:
    """[b, groups, n, head_dim] to [b, heads, n, head_dim]: each group's once for each of its heads."""
    b, groups, n, d = x.shape
    if groups == heads:
        return x
    return x.unsqueeze(2).expand(b, groups, heads // groups, n, d).reshape(b, heads, n, d)
