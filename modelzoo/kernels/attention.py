"""Causal attention: torch's fused kernel, and on CPUs at short lengths three plain products, which are faster there."""

import torch
import torch.nn.functional as F
from torch import Tensor

from modelzoo.kernels.limits import find_longest_plain


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float) -> Tensor:
    """softmax(scale * q k^T + mask) v.

    Args:
        q, k, v: [b, heads, t, head_dim], any strides.
        mask: additive [1 or b, 1 or heads, t, t], or None for causal.
        dropout: on the probabilities.

    Returns:
        [b, heads, t, head_dim].
    """
    b, h, t, d = q.shape
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
