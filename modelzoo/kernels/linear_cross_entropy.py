"""The output head and its cross-entropy in one pass, a few rows at a time: logits of the whole batch never exist.

At V = 50257 the logits of 16 sequences of 2048 tokens take 6.6 GB in float32, and their gradient as much again. Here the
gradient is made while a chunk's logits are at hand (their softmax is half the work already done), so the head costs three
matrix products and little memory. The result equals F.cross_entropy(hidden @ weight.T) to rounding.
"""

import torch
from torch import Tensor

CHUNK_BYTES = 32 << 20  # float32 logits at a time: large enough for the matrix product, small enough to stay near cache


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, loss_mask, scale, dtype):
        n, vocab = hidden.shape[0], weight.shape[0]
        x, w = hidden.detach().to(dtype), weight.detach().to(dtype)
        b = None if bias is None else bias.detach().to(dtype)
        rows = max(64, CHUNK_BYTES // (4 * vocab))
        losses = torch.empty(n, dtype=torch.float32, device=hidden.device)
        needs = any(ctx.needs_input_grad[:3])
        dx = torch.empty_like(x) if needs else None
        dw = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if needs else None
        db = torch.zeros_like(bias, dtype=torch.float32) if needs and bias is not None else None
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            logits = torch.nn.functional.linear(x[part], w, b).float() * scale  # [rows, vocab]
            lse = logits.logsumexp(-1)
            at = labels[part].unsqueeze(1)
            losses[part] = (lse - logits.gather(1, at).squeeze(1)) * loss_mask[part]
            if not needs:
                continue
            # d loss / d logits = (softmax - one-hot) * mask, still without the denominator: half precision keeps it.
            g = logits.sub_(lse.unsqueeze(1)).exp_()
            g.scatter_add_(1, at, torch.full_like(at, -1.0, dtype=torch.float32))
            g = g.mul_((loss_mask[part] * scale).unsqueeze(1)).to(dtype)
            torch.mm(g, w, out=dx[part])
            dw += torch.mm(g.t(), x[part])
            if db is not None:
                db += g.sum(0, dtype=torch.float32)
        ctx.save_for_backward(dx, dw, db)
        ctx.dtypes = hidden.dtype, weight.dtype
        return losses.sum()

    @staticmethod
    def backward(ctx, grad):
        dx, dw, db = ctx.saved_tensors
        return (
            dx.to(ctx.dtypes[0]) * grad,
            dw.mul_(grad).to(ctx.dtypes[1]),
            None if db is None else db * grad,
            *[None] * 4,
        )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sum over tokens of loss_mask * -log softmax(scale * (hidden @ weight.T + bias))[label].

    Args:
        hidden: [n, d] activations.
        weight: [vocab, d], usually float32.
        labels: [n] token ids, int64.
        loss_mask: [n] float32, 0 where a token does not count.
        bias: [vocab] or None.
        scale: multiplies the logits (muP).
        dtype: of the matrix products; default `hidden`'s. Softmax and sums are float32.

    Returns:
        float32 scalar, in nats. Differentiable once in hidden, weight and bias.
    """
    with torch.autocast(hidden.device.type, enabled=False):  # dtypes are chosen above; autocast must not choose again
        return _LinearCrossEntropy.apply(hidden, weight, bias, labels, loss_mask, scale, dtype or hidden.dtype)
