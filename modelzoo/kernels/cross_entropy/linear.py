"""The output head and its cross-entropy in one pass, some rows at a time: the batch's logits never exist at once.

At V = 50257 the logits of 16 sequences of 2048 tokens take 6.6 GB in float32, and their gradient as much again. Here
the gradient is made in the place of the logits while they are at hand, so the head costs its three matrix products (a
frozen one two), two passes over a bounded buffer, and nothing else. Equals F.cross_entropy(hidden @ weight.T) to
rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from modelzoo.kernels.cross_entropy.softmax import cross_entropy_
from modelzoo.kernels.limits import count_head_rows


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, loss_mask, scale, dtype, needs):
        n, vocab = hidden.shape[0], weight.shape[0]
        # The scale goes onto the narrow side [n, d], and so does the mask: the wide side [n, vocab] is touched least.
        x = (hidden.detach() * scale if scale != 1.0 else hidden.detach()).to(dtype)
        w = _align(weight.detach(), dtype)
        b = None if bias is None else _align(bias.detach() * scale, dtype)
        losses = torch.empty(n, dtype=torch.float32, device=hidden.device)
        dx = torch.empty_like(x) if needs else None
        dw = db = None
        rows = count_head_rows(vocab, dtype.itemsize, hidden.is_cuda)
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            logits = F.linear(x[part], w, b)  # [rows, vocab, and zeros to fill]
            cross_entropy_(logits[:, :vocab], labels[part], losses[part], needs)
            if dx is None:
                del logits
                continue
            torch.mm(logits, w, out=dx[part])
            if weight.requires_grad:
                counted = x[part] * loss_mask[part].unsqueeze(1).to(dtype)
                part_dw = torch.mm(logits.t(), counted)[:vocab]
                dw = part_dw.float() if dw is None else dw.add_(part_dw)
                del part_dw
            if bias is not None and bias.requires_grad:
                part_db = logits.t().mv(loss_mask[part].to(dtype))[:vocab].float()
                db = part_db if db is None else db.add_(part_db)
            del logits  # before the next part's: else two are there at once
        if dx is not None:
            dx *= (loss_mask * scale).unsqueeze(1).to(dtype)
        ctx.save_for_backward(dx, dw, db)
        ctx.dtypes, ctx.scale = (hidden.dtype, weight.dtype), scale
        return torch.dot(losses, loss_mask)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]  one output, one gradient
        dx, dw, db = ctx.saved_tensors
        if db is not None:
            db = db * (grad * ctx.scale)
        dw = None if dw is None else dw.mul_(grad).to(ctx.dtypes[1])
        return dx.to(ctx.dtypes[0]) * grad, dw, db, *[None] * 5


def _align(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` [vocab, ...] in `dtype`; on GPUs with zeros below, to a multiple of 64 rows.

    Their matrix units want rows of logits that begin at multiples of 16 bytes: V = 50257 takes several times as long.
    Logits of the zero rows are zero, and stay so: no gradient is written there.
    """
    missing = -len(weight) % 64
    if not weight.is_cuda or not missing:
        return weight.to(dtype)
    wide = weight.new_zeros(len(weight) + missing, *weight.shape[1:], dtype=dtype)
    wide[: len(weight)] = weight
    return wide


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    rows: Tensor | None = None,
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
        rows: `counted_rows(loss_mask)`, from whoever has the mask on the host: finding them here waits for the device.

    Returns:
        float32 scalar, in nats. Differentiable once in hidden, weight and bias; what requires no gradient costs none.
    """
    if hidden.device.type == "lazy":  # traced for the CS-2: its compiler wants plain ops, and cuts the work itself
        return plain_linear_cross_entropy(hidden, weight, labels, loss_mask, bias, scale)
    rows = counted_rows(loss_mask) if rows is None else rows
    if len(rows):
        hidden, labels, loss_mask = hidden.index_select(0, rows), labels[rows], loss_mask[rows]
    with torch.autocast(hidden.device.type, enabled=False):  # dtypes are chosen above; autocast must not choose again
        # Asked here: inside a Function gradients are always off, and needs_input_grad knows nothing of `no_grad`.
        needs = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
        return _LinearCrossEntropy.apply(hidden, weight, bias, labels, loss_mask, scale, dtype or hidden.dtype, needs)


def counted_rows(loss_mask: Tensor) -> Tensor:
    """Positions [m] of the tokens of [n] that count, where leaving out the others pays; else empty, for all.

    Fine-tuning counts a few tokens of a text: the head sees only these.
    """
    rows = loss_mask.nonzero().squeeze(1)
    return rows if len(rows) < 0.75 * len(loss_mask) else rows[:0]


def plain_linear_cross_entropy(hidden, weight, labels, loss_mask, bias=None, scale=1.0) -> Tensor:
    """The same sum in torch's own ops, with all logits at once. Arguments as in `linear_cross_entropy`."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale
    return (torch.nn.functional.cross_entropy(logits, labels, reduction="none") * loss_mask).sum()
