"""Validation: loss, perplexity and accuracy of a run's model on whole examples."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from modelzoo.backends.base import Backend
from modelzoo.config.errors import UserError
from modelzoo.data.feed import pick_examples
from modelzoo.data.hdf5 import Shards
from modelzoo.train_state import TrainState

TOGETHER = 16  # batches after which ranks wait for each other: none is ever late by more than a collective waits


class Score(NamedTuple):
    """Validation over whole examples: mean loss in nats per counting token."""

    loss: float
    perplexity: float
    accuracy: float | None  # None where compute_eval_metrics leaves it out
    tokens: int
    examples: int  # read
    all_examples: int  # that the set has

    @property
    def metrics(self) -> dict[str, float]:
        """What a log and a report hold of it."""
        found = {"loss": self.loss, "perplexity": self.perplexity}
        return found if self.accuracy is None else {**found, "accuracy": self.accuracy}


def make_score(
    shards: Shards, loss: float, tokens: int, right: int | None = None, examples: int | None = None
) -> Score:
    """The score of a pass over `shards`, from the sums of its tokens' losses and, where asked for, right predictions.

    Args:
        examples: that were read; default: all.

    Raises:
        UserError: no token counts.
    """
    if tokens == 0:
        raise UserError(f"{shards.files[0].path}: no token of the validation set counts (its loss mask is all 0)")
    mean = loss / tokens
    accuracy = None if right is None else right / tokens
    read = shards.total if examples is None else examples
    return Score(mean, math.exp(min(mean, 700.0)), accuracy, tokens, read, shards.total)


def _in_order(found: list[list]) -> Iterator:
    """The batches of all ranks as one rank would have had them: rank r had each `len(found)`-th, from number r."""
    return (found[i % len(found)][i // len(found)] for i in range(sum(map(len, found))))


def _score(backend: Backend, run: TrainState, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    with backend.ranks.computing(), backend.autocast():
        return run.model.score(batch)


def _one_token(device: torch.device) -> dict[str, Tensor]:
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    return {"input_ids": token, "labels": token, "attention_mask": token}


@torch.no_grad()
def validate(backend: Backend, run: TrainState, shards: Shards, eval_steps: int | None) -> Score:
    """Loss, perplexity and next-token accuracy over `shards`, or `eval_steps` batches spread evenly over them."""
    run.model.eval()
    ranks, found = backend.ranks, list[tuple[float, int, int]]()
    size = shards.config.batch_size
    examples = len(pick_examples(shards.total, size, eval_steps))
    batches = -(-examples // size)
    for batch in shards.holding.watch(backend.validation_batches(shards, eval_steps)):
        part_loss, part_right, part_tokens = _score(backend, run, batch)
        found.append((float(part_loss), int(part_right), int(part_tokens)))
        if len(found) % TOGETHER == 0 and len(found) <= batches // ranks.size:  # each rank has that many
            ranks.any(False)
    if run.shares is not None and len(found) < -(-batches // ranks.size):  # all gather the weights as many times
        _score(backend, run, _one_token(backend.device))
    loss, right, tokens = 0.0, 0, 0
    for part in _in_order(ranks.gather(found)):  # added in file order, whatever rank had them
        loss, right, tokens = loss + part[0], right + part[1], tokens + part[2]
    return make_score(shards, loss, tokens, right if run.init.model.compute_eval_metrics else None, examples)
