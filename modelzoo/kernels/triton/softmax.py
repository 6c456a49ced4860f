"""Cross-entropy of rows of logits and its gradient in their place, in Triton; imported only where Triton is.

A row is read twice and written once, the least that can be done without a copy of it.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192  # logits of a row at a time


@triton.jit
def _cross_entropy(logits, labels, losses, stride, vocab, GRADIENT: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    line, label = logits + row * stride, tl.load(labels + row)
    k = tl.arange(0, BLOCK)
    # Each lane keeps its own maximum and sum: one reduction at the end. The least maximum is finite, so that a lane
    # without logits adds exp(-inf) = 0, and NaN and infinite logits make the sum NaN.
    high, total = tl.full((BLOCK,), -1e30, tl.float32), tl.zeros((BLOCK,), tl.float32)
    for first in range(0, vocab, BLOCK):
        x = tl.load(line + first + k, mask=first + k < vocab, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(high, x)
        total = total * tl.exp(high - higher) + tl.exp(x - higher)
        high = higher
    top = tl.max(high, 0)
    denominator = tl.sum(total * tl.exp(high - top), 0)
    tl.store(losses + row, top + tl.log(denominator) - tl.load(line + label).to(tl.float32))
    if GRADIENT:
        for first in range(0, vocab, BLOCK):
            at = first + k
            x = tl.load(line + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
            p = tl.exp(x - top) / denominator - tl.where(at == label, 1.0, 0.0)
            tl.store(line + at, p.to(logits.dtype.element_ty), at < vocab)


def cross_entropy_(logits: Tensor, labels: Tensor, losses: Tensor, gradient: bool) -> None:
    """As `softmax.cross_entropy_`, for rows whose neighbours in memory are neighbours; rows may be further apart."""
    n, vocab = logits.shape
    if n:
        _cross_entropy[(n,)](
            logits, labels, losses, logits.stride(0), vocab, GRADIENT=gradient, BLOCK=BLOCK, num_warps=16
        )
