"""SparseGPT (arXiv 2301.00774, algorithm 1): columns are pruned one after another, and what follows makes up for it."""

import torch
from torch import Tensor

from modelzoo.kernels.blocks import tiling
from modelzoo.pruning.choose import Plan
from modelzoo.sparsity import masks

WIDTH = 128  # columns whose weights compete, and between whose updates the rest of the matrix waits (the paper's B, Bs)
DAMPING = 0.01  # of the mean diagonal of X^T X, added to all of it (the paper's)


def factor_inverse(gram: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of a damped X^T X.

    Its row i is that of the inverse of what is left when the columns before i are fixed, divided by the root of that
    inverse's first entry. All in float64: the inverse of a nearly singular float32 matrix is noise.

    Args:
        gram: [in, in] float64, finite. damping: share of its mean diagonal.
    """
    shift = (
        damping * float(gram.diagonal().mean()) or 1.0
    )  # all inputs 0: nothing is known, and nothing makes up for anything
    damped = gram + shift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def _split_columns(plan: Plan, inputs: int, width: int) -> list[tuple[int, int, int]]:
    """Stretches of columns whose weights compete: first, last, and the blocks that stay, of a group of outputs."""
    nm, columns = plan.group.nm, plan.block[1]
    step = nm[1] if nm else columns
    width = max(width // step, 1) * step
    groups, tiles = plan.group.shared_inputs or 1, inputs // columns
    quota = lambda column: plan.live_blocks // groups * (column // columns) // tiles  # what has stayed up to there
    ends = [(first, min(first + width, inputs)) for first in range(0, inputs, width)]
    return [(first, last, quota(last) - quota(first)) for first, last in ends]


def prune_matrix(plan: Plan, weight: Tensor, factor: Tensor, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Prune one weight, and change what stays so that its outputs on the calibration text stay near.

    A weight's saliency is w^2 / [H^-1]_cc, and a block's is the sum of its weights'. Those of `width` columns compete
    when the columns before are done; each such stretch keeps its share of the exact total, rounded as a running sum.
    N:M is chosen when its M columns are reached.

    Args:
        weight: [out, in] float64. factor: of `factor_inverse`.

    Returns:
        The new weight, exactly zero where it is off, and its mask.
    """
    w, u, nm, groups = weight.clone(), factor, plan.group.nm, plan.group.shared_inputs or 1
    mask = torch.ones_like(w, dtype=torch.bool)
    for first, last, k in _split_columns(plan, w.shape[1], width):
        part, inner = w[:, first:last], u[first:last, first:last]  # a view: changes reach `w`
        root = inner.diagonal()
        keep = mask[:, first:last]
        if not nm:
            saliency = tiling.scores((part / root).square(), plan.block)
            chosen = masks.top_k(masks.as_rows(saliency, None, groups), k)
            keep.copy_(tiling.spread(masks.from_rows(chosen, saliency.shape), plan.block))
        errors = torch.zeros_like(part)
        for i in range(last - first):
            if nm and i % nm[1] == 0:
                several = slice(i, i + nm[1])
                keep[:, several] = masks.top_k((part[:, several] / root[several]).square(), nm[0])
            errors[:, i] = torch.where(keep[:, i], 0.0, part[:, i]) / root[i]
            part[:, i:].addr_(errors[:, i], inner[i, i:], alpha=-1)
        w[:, last:].addmm_(errors, u[first:last, last:], alpha=-1)
    return torch.where(mask, w, 0.0), mask


def prune_in_best_order(
    plan: Plan, weight: Tensor, gram: Tensor, factor: Tensor, damping: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`prune_matrix` in that order of inputs which leaves the least error, of three; also returns the order.

    As inputs are; as blocks hold most saliency, w^2 / [H^-1]_cc of the whole H; and as they hold most w^2 H_cc, Wanda's
    score squared. Neither score knows that inputs which hang together make up for each other, and that a group of such
    inputs takes with it what they share: so the error decides.

    Args:
        weight: [out, in] float64. gram: H, [in, in] float64. factor: of `factor_inverse`, of inputs as they are.
    """
    parts = _split_columns(plan, weight.shape[1], WIDTH)

    def choose(scores: Tensor) -> Tensor:
        found = []
        for first, last, k in parts:
            part = scores[:, first // plan.block[1] : last // plan.block[1]]
            found.append(masks.top_k(part.reshape(-1), k).view(part.shape))
        return torch.cat(found, 1)

    same = torch.arange(weight.shape[1], device=weight.device)
    best = (*prune_matrix(plan, weight, factor), same)
    least = measure_error(weight, best[0], gram)
    for scores in (weight.square() / factor.square().sum(0), weight.square() * gram.diagonal()):
        order = plan.algorithm.find_order(scores, plan.block, choose)
        there = factor_inverse(gram[order][:, order], damping)  # an input's turn in the elimination is another
        left, mask = (tiling.restore(x, order) for x in prune_matrix(plan, tiling.arrange(weight, order), there))
        if (error := measure_error(weight, left, gram)) < least:
            best, least = (left, mask, order), error
    return best


def measure_error(dense: Tensor, pruned: Tensor, gram: Tensor) -> float:
    """||W X - W' X|| / ||W X|| in the Frobenius norm over the calibration tokens, from X^T X.

    Args:
        dense, pruned: [out, in]. gram: [in, in] float64.
    """
    square = lambda w: float(((w @ gram) * w).sum())
    dense = dense.double()
    whole, rest = square(dense), square(dense - pruned.double())
    return (max(rest, 0.0) / whole) ** 0.5 if whole > 0 else 0.0
