"""One token from a row of scores: penalty, temperature, top-k and top-p in transformers' order, then a draw."""

import torch
from torch import Tensor

from modelzoo.generation.settings import Settings

FEW = 1024  # likeliest tokens that nearly always reach top_p's share: sorting them is quick


def choose_token(scores: Tensor, seen: set[int], settings: Settings, generator: torch.Generator | None) -> int:
    """The next token's id.

    Args:
        scores: [V] float32 logits, finite, on the CPU.
        seen: tokens of the prompt and of the text so far.
        generator: of the text; None takes the likeliest, of equals the first.
    """
    scores = penalize(scores, seen, settings.repetition_penalty)
    if generator is None:
        return int(scores.argmax())
    values, ids = narrow(scores / settings.temperature, settings.top_k, settings.top_p)
    reached = torch.softmax(values.double(), -1).cumsum(-1)
    drawn = torch.rand((), dtype=torch.float64, generator=generator) * reached[-1]
    return int(ids[min(int(torch.searchsorted(reached, drawn, right=True)), len(ids) - 1)])


def penalize(scores: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Scores with those of `seen` made less likely (arXiv 1909.05858, eq. 4; negative ones are multiplied)."""
    if penalty == 1 or not seen:
        return scores
    at = torch.tensor(sorted(seen))
    scores, old = scores.clone(), scores[at]
    scores[at] = torch.where(old < 0, old * penalty, old / penalty)
    return scores


def narrow(scores: Tensor, top_k: int | None, top_p: float | None) -> tuple[Tensor, Tensor]:
    """The scores that are drawn among, and their ids.

    `top_k` keeps all that are at least the k-th. `top_p` then keeps the fewest likeliest whose share reaches it.
    """
    ids = torch.arange(len(scores))
    if top_k is not None and top_k < len(scores):
        ids = (scores >= scores.topk(top_k).values[-1]).nonzero().squeeze(1)
        scores = scores[ids]
    if top_p is None:
        return scores, ids
    whole = torch.softmax(scores.double(), -1)
    shares, order = whole.topk(min(FEW, len(whole)))
    if float(shares.sum()) < top_p:
        shares, order = whole.sort(descending=True)
    count = int((shares.cumsum(0) - shares < top_p).sum())
    kept = order[: max(count, 1)].sort().values
    return scores[kept], ids[kept]
