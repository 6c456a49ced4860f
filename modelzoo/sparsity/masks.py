"""Masks with exactly k live weights: selection with ties broken by index, and the masks a run begins with."""

import hashlib

import torch
from torch import Tensor

from modelzoo.draws import make_generator

DEAD = float("-inf")  # the score of a weight that may not be chosen
NEVER = -1e6  # the logarithm of odds below those of any float64


def random_scores(weight: Tensor, seed: int, name: str, step: int) -> Tensor:
    """Uniform [0, 1) float32 scores of `weight`'s shape on its device, keyed by (seed, parameter name, step)."""
    return torch.rand(weight.shape, generator=make_generator(seed, name, step)).to(weight.device)


def soften(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Scores whose k highest are a sample of k without replacement, drawn in proportion to exp(log_weights).

    Args:
        log_weights: -inf (a weight of zero) is drawn only where nothing else is left, at random.
        uniform: [0, 1) draws of the same shape.

    Returns:
        float64 scores above DEAD (Gumbel noise added: arXiv 1903.06059).
    """
    noise = -torch.log(-torch.log(uniform.double() + 2.0**-26))  # half of float32's step in [0, 1): never 0 or 1
    return log_weights.double().clamp(min=NEVER) + noise


def top_k(scores: Tensor, k: int) -> Tensor:
    """The k highest of each row, exactly k, ties to the lower index.

    Args:
        scores: [..., n] floats. NaN counts as the lowest number: above DEAD, below all else.
        k: 0 <= k <= n.

    Returns:
        Bool mask of the same shape with k True per row. torch.topk alone leaves the order of ties to the kernel.
    """
    n = scores.shape[-1]
    if not 0 <= k <= n:
        raise ValueError(f"k {k} outside 0..{n}")
    if k in (0, n):
        return torch.full_like(scores, bool(k), dtype=torch.bool)
    scores = torch.nan_to_num(scores, nan=torch.finfo(scores.dtype).min, posinf=float("inf"), neginf=DEAD)
    if scores.is_cuda:  # where kthvalue looks at a row with one block of threads, and `deterministic` refuses it
        threshold = scores.sort(dim=-1).values[..., n - k].unsqueeze(-1)
    else:
        threshold = scores.kthvalue(n - k + 1, dim=-1, keepdim=True).values
    above, equal = scores > threshold, scores == threshold
    wanted = k - above.sum(-1, keepdim=True)
    if bool((equal.sum(-1, keepdim=True) == wanted).all()):  # no tie at the border: the usual case
        return above | equal
    return above | (equal & (equal.cumsum(-1) <= wanted))


def bits(mask: Tensor) -> Tensor:
    """`mask` as int8: -1 (all bits set) where live, 0 where dead."""
    return mask.to(torch.int8).neg_()


def digest(mask: Tensor, order: Tensor | None = None) -> str:
    """The hash of a mask, and of the order of its inputs where it has one."""
    found = hashlib.sha256(mask.cpu().numpy().tobytes())
    if order is not None:
        found.update(order.cpu().numpy().tobytes())
    return found.hexdigest()


def as_rows(x: Tensor, in_groups: int | None = None, out_groups: int | None = None) -> Tensor:
    """[out, in] as rows that compete among themselves: one row, or one per group of inputs or outputs."""
    if in_groups:
        return x.t().reshape(in_groups, -1)
    return x.reshape(out_groups or 1, -1)


def from_rows(rows: Tensor, shape: torch.Size, in_groups: int | None = None) -> Tensor:
    """The inverse of `as_rows`."""
    return rows.view(shape[1], shape[0]).t().contiguous() if in_groups else rows.view(shape)


def checkerboard(shape: torch.Size, k: int, device: torch.device) -> Tensor:
    """Exactly k live weights spread as evenly as they go, each row shifted by one against the row above."""
    numel = shape.numel()
    at = torch.arange(numel, dtype=torch.int64, device=device)
    flat = (at + 1) * k // numel > at * k // numel  # Bresenham's line of slope k / numel
    rows = flat.view(shape[0], -1)
    columns = torch.arange(rows.shape[1], device=device)
    shift = torch.arange(rows.shape[0], device=device).unsqueeze(1)
    return rows.gather(1, (columns + shift) % rows.shape[1]).view(shape)
