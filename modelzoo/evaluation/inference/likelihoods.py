"""The likelihood of given answers. See `batches` for what a model is here, and for ranks: all have all results."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modelzoo.evaluation.inference.batches import Progress, pad_rows, share_batches


class Likelihoods(NamedTuple):
    """Of one example's answers: summed log-probabilities (nats) [answers], and over how many tokens each."""

    log_p: np.ndarray
    tokens: np.ndarray


class _Row(NamedTuple):
    """Ids to run, and (position, token, example, answer) whose log-probability is asked."""

    ids: list[int]
    asked: list[tuple[int, int, int, int]]


@torch.inference_mode()
def compute_likelihoods(
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


def _logits(model, backend, rows: Sequence[list[int]], places: Sequence[tuple[int, int]]) -> Tensor:
    """float32 logits [places, V] at (row, position)."""
    with backend.autocast():
        hidden = model.model.hidden(backend.put({"input_ids": pad_rows(rows)})["input_ids"])
        r, p = zip(*places, strict=True)
        return model.model.logits(hidden[list(r), list(p)]).float()


@torch.inference_mode()
def score_continuations(
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
