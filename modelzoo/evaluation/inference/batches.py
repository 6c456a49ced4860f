"""Batches of rows for a model, which several ranks share.

A model here is anything with `model.hidden([b, t] ids) -> [b, t, d]` and `model.logits([n, d]) -> [n, V]`; what writes
answers takes `model.make_cache(rows)`, too. Rows are padded on the right, which a causal model does not see.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from modelzoo.distributed import Ranks

Progress = Callable[[int, int], None]


def share_batches(
    items: list, batch_size: int, ranks: Ranks, work: Callable[[list], list], progress: Progress | None = None
) -> Iterator[list]:
    """What `work` makes of each batch of `items` (JSON values), in their order, on every rank.

    Each rank does one batch of a round, and none begins the next before all have ended it: an error of one ends all at
    once, and none waits for another longer than for a batch.
    """
    firsts = range(0, len(items), batch_size)
    for start in range(0, len(firsts), ranks.size):
        begin = (start + ranks.rank) * batch_size
        found = ranks.gather(work(items[begin : begin + batch_size]) if begin < len(items) else [])
        yield from found[: len(firsts) - start]
        if progress:
            progress(min((start + ranks.size) * batch_size, len(items)), len(items))


def pad_rows(rows: Sequence[list[int]]) -> Tensor:
    """int32 [rows, longest], padded on the right."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int32)
    for row, x in zip(ids, rows, strict=True):
        row[: len(x)] = torch.tensor(x, dtype=torch.int32)
    return ids
