"""Predictions of a model: the likelihood of given answers, and answers written under a grammar.

A model here is anything with `model.hidden([b, t] ids) -> [b, t, d]` and `model.logits([n, d]) -> [n, V]`; what writes
answers takes `model.make_cache(rows)`, too. Rows are padded on the right, which a causal model does not see.

Several ranks share the batches, which are those of one process, and all have all results in the end.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modelzoo.distributed import Ranks
from modelzoo.evaluation.grammar import Answer

Progress = Callable[[int, int], None]


class Likelihoods(NamedTuple):
    """Of one example's answers: summed log-probabilities (nats) [answers], and over how many tokens each."""

    log_p: np.ndarray
    tokens: np.ndarray


class _Row(NamedTuple):
    """Ids to run, and (position, token, example, answer) whose log-probability is asked."""

    ids: list[int]
    asked: list[tuple[int, int, int, int]]


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


@torch.inference_mode()
def likelihoods(
    model,
    backend,
    prompts: Sequence[list[int]],
    answers: Sequence[Sequence[list[int]]],
    batch_size: int,
    progress: Progress | None = None,
) -> list[Likelihoods]:
    """log p(answer | prompt) of each example's answers.

    Tokens that all answers of an example begin with count as part of its prompt: they shift all alike. Where one token
    then separates the answers, a prompt runs once for all of them.
    """
    rows, results = [], []
    for e, (prompt, choices) in enumerate(zip(prompts, answers, strict=True)):
        shared = _shared(choices)
        base, rest = [*prompt, *choices[0][:shared]], [c[shared:] for c in choices]
        results.append(Likelihoods(np.zeros(len(rest)), np.array([len(c) for c in rest])))
        if all(len(c) == 1 for c in rest):
            rows.append(_Row(base, [(len(base) - 1, c[0], e, a) for a, c in enumerate(rest)]))
        else:
            for a, c in enumerate(rest):
                asked = [(len(base) - 1 + i, token, e, a) for i, token in enumerate(c)]
                rows.append(_Row([*base, *c[:-1]], asked))
    rows.sort(key=lambda r: -len(r.ids))  # the largest batch first: what does not fit in memory fails at once

    def run(batch: list[_Row]) -> list:
        at = [(r, position) for r, row in enumerate(batch) for position, _, _, _ in row.asked]
        places = sorted(set(at))
        where = {place: i for i, place in enumerate(places)}
        log_p = torch.log_softmax(_logits(model, backend, [row.ids for row in batch], places), -1)
        found = []
        for r, row in enumerate(batch):
            picked = log_p[[where[r, q[0]] for q in row.asked], [q[1] for q in row.asked]].double().cpu().numpy()
            found += [[e, a, float(value)] for (_, _, e, a), value in zip(row.asked, picked, strict=True)]
        return found

    for found in share_batches(rows, batch_size, backend.ranks, run, progress):
        for e, a, value in found:
            results[e].log_p[a] += value
    return results


def _shared(choices: Sequence[list[int]]) -> int:
    """How many tokens all begin with, short of the whole of any."""
    n = 0
    while n < min(map(len, choices)) - 1 and len({c[n] for c in choices}) == 1:
        n += 1
    return n


@torch.inference_mode()
def generate(
    model,
    backend,
    prompts: Sequence[list[int]],
    answers: Sequence[Answer],
    batch_size: int,
    progress: Progress | None = None,
) -> None:
    """Write each answer greedily: of the tokens that its grammar allows, the likeliest; ties go to the lower id."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))

    def run(batch: list[int]) -> list:
        writing, ids = Continuation(model, backend, len(batch)), [list(prompts[i]) for i in batch]
        rows = list(range(len(batch)))
        with backend.autocast():  # one for all steps: it casts each weight once
            while True:
                for r in rows:
                    answers[batch[r]].forced()
                rows = [r for r in rows if answers[batch[r]].labels is None]
                if not rows:
                    break
                logits = writing.read(rows, [[*ids[r], *answers[batch[r]].ids] for r in rows]).cpu()
                for row, r in zip(logits, rows, strict=True):
                    allowed = answers[batch[r]].allowed()
                    answers[batch[r]].write(allowed[int(row[allowed].argmax())])
        return [[i, answers[i].ids, answers[i].labels] for i in batch]

    for found in share_batches(order, batch_size, backend.ranks, run, progress):
        for i, ids, labels in found:
            answers[i].ids, answers[i].labels = ids, tuple(labels)


class Continuation:
    """Texts that are being written, token by token, with the model's cache of what it has read of each.

    Args:
        rows: how many texts there are; they are numbered from 0.
    """

    def __init__(self, model, backend, rows: int):
        self.model, self.backend = model.model, backend
        self.cache = model.model.make_cache(rows)
        self.rows = list(range(rows))  # of the cache

    def read(self, rows: Sequence[int], ids: Sequence[list[int]]) -> Tensor:
        """Read on, and predict.

        Args:
            rows: numbers of the texts that go on; others end for good.
            ids: of each, all of its tokens so far, at least one more than at the last call.

        Returns:
            float32 logits [rows, V] of each text's next token.
        """
        if list(rows) != self.rows:
            self.cache.keep([self.rows.index(r) for r in rows])
            self.rows = list(rows)
        fresh = [x[n:] for x, n in zip(ids, self.cache.lengths, strict=True)]
        hidden = self.model.hidden(self.backend.put({"input_ids": _pad(fresh)})["input_ids"], past=self.cache)
        self.cache.trim([len(x) for x in ids])
        return self.model.logits(hidden[list(range(len(rows))), [len(x) - 1 for x in fresh]]).float()


def _pad(rows: Sequence[list[int]]) -> Tensor:
    """int32 [rows, longest], padded on the right."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int32)
    for row, x in zip(ids, rows, strict=True):
        row[: len(x)] = torch.tensor(x, dtype=torch.int32)
    return ids


def _logits(model, backend, rows: Sequence[list[int]], places: Sequence[tuple[int, int]]) -> Tensor:
    """float32 logits [places, V] at (row, position)."""
    with backend.autocast():
        hidden = model.model.hidden(backend.put({"input_ids": _pad(rows)})["input_ids"])
        r, p = zip(*places, strict=True)
        return model.model.logits(hidden[list(r), list(p)]).float()


@torch.inference_mode()
def continuations(
    model, backend, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int, progress: Progress | None = None
) -> list[tuple[float, bool]]:
    """Of each (context, continuation): log p(continuation | context), and whether greedy decoding would write it.

    Pairs that differ in their last token alone, as the letters of multiple choice, run as one row.
    """
    rows: dict[tuple[int, ...], list[int]] = {}  # what runs, to the pairs that it answers
    results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for i, (context, continuation) in enumerate(pairs):
        if continuation:
            rows.setdefault((*context, *continuation[:-1]), []).append(i)

    def run(batch: list[tuple[int, ...]]) -> list:
        asked = [(r, i, len(row) - len(pairs[i][1])) for r, row in enumerate(batch) for i in rows[row]]
        places = sorted({(r, first + k) for r, i, first in asked for k in range(len(pairs[i][1]))})
        where = {place: n for n, place in enumerate(places)}
        log_p = torch.log_softmax(_logits(model, backend, [list(row) for row in batch], places), -1)
        best, found = log_p.argmax(-1).tolist(), []
        for r, i, first in asked:
            at = [where[r, first + k] for k in range(len(pairs[i][1]))]
            value = float(log_p[at, pairs[i][1]].double().sum())
            found.append([i, value, [best[n] for n in at] == list(pairs[i][1])])
        return found

    for found in share_batches(sorted(rows, key=lambda row: -len(row)), batch_size, backend.ranks, run, progress):
        for i, value, is_greedy in found:
            results[i] = value, is_greedy
    return results


@torch.inference_mode()
def greedy(model, backend, prompts: Sequence[list[int]], tokens: int, done: Callable[[list[int]], bool]) -> list:
    """Generate up to `tokens` ids after each prompt, greedily, until `done` is true of those written."""
    written: list[list[int]] = [[] for _ in prompts]
    writing, open_ = Continuation(model, backend, len(prompts)), list(range(len(prompts)))
    with backend.autocast():
        for _ in range(tokens):
            if not open_:
                break
            logits = writing.read(open_, [[*prompts[i], *written[i]] for i in open_])
            for i, token in zip(open_, logits.argmax(-1).tolist(), strict=True):
                written[i].append(token)
            open_ = [i for i in open_ if not done(written[i])]
    return written
