"""The order of a weight's inputs in which its blocks are formed, so that the blocks that stay hold the largest scores.

An order is a permutation of the inputs; a group is `columns` inputs next to each other in it. Which groups there are
is what an order decides: outputs stay where they are. Found is an order by two steps in turn, neither of which loses
score: with the groups fixed, choose the blocks that stay; with these places fixed, swap inputs between groups as long
as that gains (TETRIS, NeurIPS 2018, swaps with the blocks chosen anew each time). Several beginnings are tried, the
inputs as they are among them. Channel permutations for N:M masks (Pool and Yu, NeurIPS 2021) search alike.

All scores are whole numbers, so that sums are exact: the same order on any processor and any number of threads.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

PARTS = 2.0**26  # of the largest score: sums over 2^27 of them are exact in float64
ROUNDS = 20  # times that blocks are chosen and inputs swapped, at most
PASSES = 100  # of swaps with the same blocks, at most
LEAST = 2.0**-14  # of all scores: what one of these must gain for another to follow
ENTRIES = 2**17  # numbers of a table of swaps at a time, which a processor's cache holds

Choose = Callable[[Tensor], Tensor]  # which blocks stay, bool, by the scores of all, [out / R, in / C]


def score_columns(scores: Tensor, rows: int) -> np.ndarray:
    """The sum of each input's scores in each block of `rows` outputs, [out / rows, in] float64 in whole numbers.

    Args:
        scores: [out, in], of single weights. Their magnitudes count; what is not finite counts as nothing.
    """
    size = torch.nan_to_num(scores.detach().double().abs().cpu(), nan=0.0, posinf=0.0)
    largest = float(size.max())
    whole = torch.floor(size / largest * PARTS) if largest > 0 else size
    return whole.unflatten(0, (-1, rows)).sum(1).numpy()


def find_order(sums: np.ndarray, columns: int, choose: Choose) -> Tensor:
    """The best order found, [in] int64; the inputs as they are where no other keeps more.

    Args:
        sums: of `score_columns`. columns: inputs of a group.
        choose: the rule by which blocks stay; any that keeps as many for all scores, and the best of them.
    """
    search = _Search(sums, columns, choose)
    same = np.arange(sums.shape[1])
    live = int(search.choose(search.add_groups(same)).sum())
    totals = np.lexsort((same, -sums.sum(0)))
    return search.find_best([same, totals, _build_groups(sums, columns, live)])


def improve_order(sums: np.ndarray, columns: int, choose: Choose, order: Tensor) -> Tensor:
    """The same, by swaps from `order` alone: little moves where little is gained."""
    return _Search(sums, columns, choose).find_best([order.cpu().numpy()])


def derive_order(mask: Tensor, block: Sequence[int]) -> Tensor:
    """An order in which a mask [out, in] is one of blocks, where there is one; else, of as few live blocks as are easy.

    The inputs as they are where these do. A mask of blocks tells its order but for inputs that are alike.
    """
    rows, columns = block
    live = mask.cpu().unflatten(0, (-1, rows)).any(1).numpy()  # [out / rows, in]
    same = np.arange(live.shape[1])
    if (live.reshape(len(live), -1, columns) == live[:, ::columns, None]).all():
        return torch.from_numpy(same)
    _, first, kinds = np.unique(live, axis=1, return_index=True, return_inverse=True)
    by_kind = [np.flatnonzero(kinds.reshape(-1) == kind) for kind in np.argsort(first)]
    full = [inputs[: len(inputs) // columns * columns] for inputs in by_kind]
    rest = [inputs[len(inputs) // columns * columns :] for inputs in by_kind]
    return torch.from_numpy(np.concatenate(full + rest))


def is_order(order: Tensor, inputs: int) -> bool:
    """Whether it is a permutation of so many inputs."""
    whole = order.dim() == 1 and not order.is_floating_point() and not order.is_complex()
    return whole and torch.equal(order.long().sort().values, torch.arange(inputs, device=order.device))


class _Search:
    """Orders of one weight's inputs."""

    def __init__(self, sums: np.ndarray, columns: int, choose: Choose):
        self.sums, self.columns, self.least = sums, columns, float(sums.sum()) * LEAST
        self.choose = lambda scores: choose(torch.from_numpy(scores)).numpy()

    def add_groups(self, order: np.ndarray) -> np.ndarray:
        """The scores of blocks, [out / R, in / C]."""
        return self.sums[:, order].reshape(len(self.sums), -1, self.columns).sum(2)

    def find_best(self, starts: Sequence[np.ndarray]) -> Tensor:
        """The best of what the beginnings lead to; the first of them where nothing is better."""
        best, most = starts[0], self._count(starts[0])[0]
        for start in starts:
            order, kept = self._improve(start, 1)
            if kept > most:
                best, most = order, kept
        return torch.from_numpy(self._improve(best, ROUNDS)[0].copy())

    def _count(self, order: np.ndarray) -> tuple[float, np.ndarray]:
        """The score that stays, and the blocks [out / R, in / C] that hold it."""
        scores = self.add_groups(order)
        live = self.choose(scores)
        return float(scores[live].sum()), live

    def _improve(self, order: np.ndarray, rounds: int) -> tuple[np.ndarray, float]:
        kept, live = self._count(order)
        for _ in range(rounds):
            swapped = self._swap(order, live)
            now, live = self._count(swapped)
            if now <= kept:
                break
            gain, order, kept = now - kept, swapped, now
            if gain <= self.least:
                break
        return order, kept

    def _swap(self, order: np.ndarray, live: np.ndarray) -> np.ndarray:
        """Swap inputs between groups of which the blocks `live` stay, until that gains next to nothing."""
        table = self.sums.T @ live.astype(np.float64)  # [in, groups]: what an input would keep in each group
        groups = np.arange(live.shape[1])
        order = order.copy().reshape(len(groups), self.columns)
        for _ in range(PASSES):
            gain = self._weigh_moves(order, table)
            both = gain + gain.T
            partner = both.argmax(1)  # the first of the best
            pairs = (partner[partner] == groups) & (both[groups, partner] > 0) & (groups < partner)
            a, b = groups[pairs], partner[pairs]  # none where no swap gains: the best of all pairs is mutual
            x, y = order[a], order[b]
            to_b, to_a = table[x, b[:, None]] - table[x, a[:, None]], table[y, a[:, None]] - table[y, b[:, None]]
            i, j = (np.argsort(-moves, axis=1, kind="stable") for moves in (to_b, to_a))
            gains = np.take_along_axis(to_b, i, 1) + np.take_along_axis(to_a, j, 1)
            x, y = np.take_along_axis(x, i, 1), np.take_along_axis(y, j, 1)
            order[a], order[b] = np.where(gains > 0, y, x), np.where(gains > 0, x, y)
            if gains[gains > 0].sum() <= self.least:
                break
        return order.reshape(-1)

    def _weigh_moves(self, order: np.ndarray, table: np.ndarray) -> np.ndarray:
        """The most that moving one input of a group to another gains, [groups, groups]."""
        count = len(order)
        gain = np.empty((count, count))
        stride = max(1, ENTRIES // order.size)
        for begin in range(0, count, stride):
            part = np.arange(begin, min(begin + stride, count))
            moved = table[order[part]]  # [part, columns, groups]
            gain[part] = (moved - moved[np.arange(len(part)), :, part][:, :, None]).max(1)
        return gain


def _build_groups(sums: np.ndarray, columns: int, live: int) -> np.ndarray:
    """An order of groups built one after another: the best input that is left, and those that are most like it."""
    inputs = np.arange(sums.shape[1])
    tall = min(max(round(live * columns / len(inputs)), 1), len(sums))  # blocks that stay in a group, were they even
    heads = -np.sort(-sums, axis=0)[:tall].sum(0)  # what an input would keep, had it its own choice of blocks
    found = []
    while len(inputs):
        group = inputs[[heads[inputs].argmax()]]
        for _ in range(2):  # like the first input, then like all
            best = np.argsort(-sums[:, group].sum(1), kind="stable")[:tall]
            like = sums[np.ix_(best, inputs)].sum(0)
            group = inputs[np.lexsort((inputs, -like))[:columns]]
        found.append(group)
        inputs = np.setdiff1d(inputs, group, assume_unique=True)
    return np.concatenate(found)
