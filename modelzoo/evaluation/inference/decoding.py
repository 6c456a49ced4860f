"""Answers that a model writes: under a grammar, or greedily. See `batches` for what a model is here, and for ranks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modelzoo.evaluation.inference.batches import Progress, pad_rows, share_batches
from modelzoo.evaluation.inference.grammar import Answer


@torch.inference_mode()
def generate_answers(
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
        hidden = self.model.hidden(self.backend.put({"input_ids": pad_rows(fresh)})["input_ids"], past=self.cache)
        self.cache.trim([len(x) for x in ids])
        return self.model.logits(hidden[list(range(len(rows))), [len(x) - 1 for x in fresh]]).float()


@torch.inference_mode()
def decode_greedily(
    model, backend, prompts: Sequence[list[int]], tokens: int, done: Callable[[list[int]], bool]
) -> list:
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
