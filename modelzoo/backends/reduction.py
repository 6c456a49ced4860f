"""Gradients of a global batch, summed over its micro-batches and over ranks.

exact  The batch is cut into a fixed number of slices, a power of two. Each slice's gradients are summed by themselves,
       and the slices' sums go up one fixed binary tree, inside a rank and then across ranks. So one, two, four and
       eight ranks compute the same bits, and a run may change their number wherever it is resumed.
fast   Each rank sums its rows as they come, and the library sums over ranks, in buckets, while backward goes on:
       equal to rounding. So it is with `parallel: shard`, where each rank gets its share of the sums alone.
One rank without slices is neither: it sums its micro-batches in their order.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from modelzoo.backends.base import DENOMINATOR, TorchBackend
from modelzoo.backends.batch_shares import BATCH_SIZE, check_rows, check_shares, count_slices, sums_exactly
from modelzoo.config.sections.device import Backend as Config
from modelzoo.distributed import Ranks
from modelzoo.draws import make_seed, seed_torch
from modelzoo.kernels.cross_entropy.linear import counted_rows
from modelzoo.train_state import Reduction, TrainState

BUCKET = 4 << 20  # values in a bucket of the fast sum: large enough to use the wire, small enough to begin early


def decide_reduction(
    config: Config,
    kind: str,
    batch_size: int,
    ranks: int,
    before: Reduction | None,
    key: str = BATCH_SIZE,
) -> Reduction:
    """How a run sums.

    Args:
        kind: CPU or GPU.
        ranks: how many there are.
        before: how the run has summed so far, by its checkpoint; it goes on so where nothing else is asked.
        key: the config's, which says how large a batch is.

    Raises:
        UserError: the batch cannot be shared out among the ranks.
    """
    asked, slices = config.reduction, config.slices
    if ranks > 1 and config.parallel == "shard":
        check_shares(config)
        asked = "fast"
    check_rows(batch_size, ranks, key)
    if asked is None and before is not None and (before.exact or ranks == 1):
        asked, slices = ("exact" if before.exact else "fast"), before.slices or slices
    threads = config.num_threads or (before.threads if before is not None else None) or torch.get_num_threads()
    if not sums_exactly(asked, kind, ranks):
        return Reduction()
    slices = count_slices(batch_size, ranks, slices)
    return Reduction(slices, threads if kind == "CPU" else None)


def accumulate(
    backend: TorchBackend, run: TrainState, batch: Mapping[str, Tensor], denominator: Tensor, micro_batches: int
) -> Tensor:
    """Leave in `.grad` of each trained parameter (and of packed weights' probes) the gradient of the whole batch.

    Args:
        batch: the global one, on the host; each rank computes its share of the rows.
        micro_batches: into how many the whole batch is cut at least.

    Returns:
        The batch's loss, a scalar on the device.
    """
    ranks, slices = backend.ranks, run.reduction.slices
    if run.shares is not None:
        return _sum_shares(backend, run, batch, denominator, micro_batches)
    if slices is None and ranks.size == 1:
        seed_torch(make_seed(run.init.seed, run.step, bits=56), backend.device)
        return torch.stack([_backward(backend, run, m, denominator) for m in cut(batch, micro_batches)]).sum()
    if slices is not None:
        return _sum_exactly(backend, run, batch, denominator, micro_batches, slices)
    return _sum_fast(backend, run, batch, denominator, micro_batches)


def _backward(backend: TorchBackend, run: TrainState, micro: dict[str, Tensor], denominator: Tensor) -> Tensor:
    return backend.compute_gradients(run, micro | {DENOMINATOR: denominator})


def cut(batch: Mapping[str, Tensor], parts: int) -> Iterator[dict[str, Tensor]]:
    """A batch in `parts`, each with the rows that count."""
    pieces = {name: x.chunk(parts) for name, x in batch.items()}
    for i in range(len(pieces["attention_mask"])):
        piece = {name: x[i] for name, x in pieces.items()}
        yield piece | {"counted_rows": counted_rows(piece["attention_mask"].flatten())}


def _rows(batch: Mapping[str, Tensor], part: int, parts: int) -> dict[str, Tensor]:
    size = len(batch["attention_mask"]) // parts
    return {name: x[part * size : (part + 1) * size] for name, x in batch.items()}


def list_leaves(run: TrainState) -> list[Tensor]:
    """What has a gradient to sum: trained parameters, and probes of packed weights on steps that need them."""
    return [p for p in run.model.parameters() if p.requires_grad] + run.sparsity.probes()


class _Sums(NamedTuple):
    """Sums over some slices: a node of the tree."""

    level: int
    grads: list[Tensor]
    loss: Tensor


def _sum_exactly(
    backend: TorchBackend,
    run: TrainState,
    batch: Mapping[str, Tensor],
    denominator: Tensor,
    micro_batches: int,
    slices: int,
) -> Tensor:
    ranks, leaves, each = backend.ranks, list_leaves(run), slices // backend.ranks.size
    nodes: list[_Sums] = []
    for part in range(ranks.rank * each, (ranks.rank + 1) * each):
        # keyed by the slice, not by the rank or by what was drawn before: dropout is the same wherever it is computed
        seed_torch(make_seed(run.init.seed, run.step, f"slice {part}", bits=56), backend.device)
        pieces = cut(_rows(batch, part, slices), -(-micro_batches // slices))
        loss = torch.stack([_backward(backend, run, m, denominator) for m in pieces]).sum()
        nodes.append(_Sums(0, _take_gradients(leaves), loss))
        while len(nodes) > 1 and nodes[-1].level == nodes[-2].level:
            _add_last(nodes)
    (root,) = nodes
    if ranks.size == 1:
        loss, grads = root.loss, root.grads
    else:
        places = run.sparsity.live_places(run.optimizer_step + 1)
        sent = _pack(places, leaves, root.grads)
        flat = torch.cat([*(x.reshape(-1) for x in sent), root.loss.float().reshape(1)])
        for bit in _powers(ranks):
            flat = flat + ranks.exchange(flat, ranks.rank ^ bit)  # a + b and b + a are the same bits
        loss, grads = flat[-1], _unpack(places, leaves, root.grads, flat)
    for leaf, grad in zip(leaves, grads, strict=True):
        leaf.grad = grad
    return loss


def _add_last(nodes: list[_Sums]) -> None:
    """Put the sum of the last two nodes in their place. A function of its own, since a name would hold a node on."""
    right, left = nodes.pop(), nodes.pop()
    torch._foreach_add_(left.grads, right.grads)  # pyright: ignore[reportPrivateImportUsage]  as in clipping
    nodes.append(_Sums(left.level + 1, left.grads, left.loss + right.loss))


def _powers(ranks: Ranks) -> Iterator[int]:
    """1, 2, 4, ... below the number of ranks: ranks r and r ^ bit hold neighbouring nodes of the tree."""
    bit = 1
    while bit < ranks.size:
        yield bit
        bit *= 2


def _take_gradients(leaves: list[Tensor]) -> list[Tensor]:
    """The gradients, taken out of their leaves."""
    found = _list_gradients(leaves)
    for leaf in leaves:
        leaf.grad = None
    return found


def _list_gradients(leaves: list[Tensor]) -> list[Tensor]:
    """The gradients of leaves; zeros where the graph left one out."""
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def _pack(places: Mapping[Tensor, Tensor], leaves: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """What goes over the wire: of a masked weight its live values alone, where dead ones are not asked for.

    Args:
        places: `Sparsity.live_places` of the step.
    """
    return [g if (at := places.get(leaf)) is None else g.view(-1)[at] for leaf, g in zip(leaves, grads, strict=True)]


def _unpack(places: Mapping[Tensor, Tensor], leaves: list[Tensor], grads: list[Tensor], flat: Tensor) -> list[Tensor]:
    """The inverse of `_pack`, into the tensors that were packed; what was not sent becomes zero."""
    start = 0
    for leaf, grad in zip(leaves, grads, strict=True):
        at = places.get(leaf)
        size = grad.numel() if at is None else at.numel()
        part = flat[start : start + size]
        if at is None:
            grad.copy_(part.view_as(grad))
        else:
            grad.zero_().view(-1)[at] = part
        start += size
    return grads


def _share_batch(
    backend: TorchBackend, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int
) -> list[dict[str, Tensor]]:
    """This rank's rows of a batch, in micro-batches; seeds its dropout."""
    ranks = backend.ranks
    key = f"rank {ranks.rank} of {ranks.size}"
    seed_torch(make_seed(run.init.seed, run.step, key, bits=56), backend.device)
    return list(cut(_rows(batch, ranks.rank, ranks.size), -(-micro_batches // ranks.size)))


def _sum_shares(
    backend: TorchBackend, run: TrainState, batch: Mapping[str, Tensor], denominator: Tensor, micro_batches: int
) -> Tensor:
    """Each micro-batch's gradients are summed at once into the shares: no rank ever holds the whole gradient."""
    assert run.shares is not None
    with backend.ranks.computing():
        pieces = _share_batch(backend, run, batch, micro_batches)
        losses = [_backward(backend, run, m, denominator) for m in pieces]
    run.shares.take_gradients()
    return backend.ranks.sum(torch.stack(losses).sum().float())


def _sum_fast(
    backend: TorchBackend, run: TrainState, batch: Mapping[str, Tensor], denominator: Tensor, micro_batches: int
) -> Tensor:
    ranks, leaves = backend.ranks, list_leaves(run)
    pieces = _share_batch(backend, run, batch, micro_batches)
    losses = [_backward(backend, run, m, denominator) for m in pieces[:-1]]
    buckets = _Buckets(ranks, run, leaves)
    try:
        losses.append(_backward(backend, run, pieces[-1], denominator))
    finally:
        buckets.stop_watching()
    return buckets.finish(torch.stack(losses).sum())


class _Buckets:
    """Sums over ranks that begin as soon as backward has filled a bucket, always in the same order on every rank."""

    def __init__(self, ranks: Ranks, run: TrainState, leaves: list[Tensor]):
        self.ranks = ranks
        self.places = run.sparsity.live_places(run.optimizer_step + 1)
        self.buckets: list[list[Tensor]] = [[]]
        for leaf in reversed(leaves):  # backward fills the last layers first
            if sum(x.numel() for x in self.buckets[-1]) >= BUCKET:
                self.buckets.append([])
            self.buckets[-1].append(leaf)
        self.missing = [len(b) for b in self.buckets]
        self.flats: list[Tensor] = []
        self.works: list = []
        where = {leaf: i for i, bucket in enumerate(self.buckets) for leaf in bucket}
        self.hooks = [
            leaf.register_post_accumulate_grad_hook(lambda x, i=i: self._count(i)) for leaf, i in where.items()
        ]

    def _count(self, bucket: int) -> None:
        self.missing[bucket] -= 1
        while len(self.flats) < len(self.buckets) and self.missing[len(self.flats)] <= 0:
            self._start(len(self.flats))

    def _start(self, bucket: int) -> None:
        leaves = self.buckets[bucket]
        sent = _pack(self.places, leaves, _list_gradients(leaves))
        self.flats.append(torch.cat([x.reshape(-1) for x in sent]))
        self.works.append(self.ranks.start_sum(self.flats[-1]))

    def stop_watching(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def finish(self, loss: Tensor) -> Tensor:
        """Wait for all sums and put them into `.grad`; returns the whole batch's loss."""
        while len(self.flats) < len(self.buckets):  # a leaf that the graph left out
            self._start(len(self.flats))
        total = loss.float().clone()
        self.ranks.finish([*self.works, self.ranks.start_sum(total)])
        for leaves, flat in zip(self.buckets, self.flats, strict=True):
            for leaf, grad in zip(leaves, _unpack(self.places, leaves, _list_gradients(leaves), flat), strict=True):
                leaf.grad = grad
        return total
