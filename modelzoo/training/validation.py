"""Validation: loss, perplexity and accuracy of a run's model on whole examples."""

import math
from typing import NamedTuple

import torch

from modelzoo.backends.base import Backend
from modelzoo.config.errors import UserError
from modelzoo.data.hdf5 import Shards
from modelzoo.train_state import TrainState


class Score(NamedTuple):
    """Validation over whole examples: mean loss in nats per counting token."""

    loss: float
    perplexity: float
    accuracy: float | None  # None where compute_eval_metrics leaves it out
    tokens: int

    @property
    def metrics(self) -> dict[str, float]:
        """What a log and a report hold of it."""
        found = {"loss": self.loss, "perplexity": self.perplexity}
        return found if self.accuracy is None else {**found, "accuracy": self.accuracy}


@torch.no_grad()
def validate(backend: Backend, run: TrainState, shards: Shards, eval_steps: int | None) -> Score:
    """Loss, perplexity and next-token accuracy over `shards`, in file order."""
    run.model.eval()
    loss, right, tokens = 0.0, 0, 0
    for batch in shards.holding.watch(backend.validation_batches(shards, eval_steps)):
        with backend.autocast():
            part_loss, part_right, part_tokens = run.model.score(batch)
        loss, right, tokens = loss + float(part_loss), right + int(part_right), tokens + int(part_tokens)
    if tokens == 0:
        raise UserError(f"{shards.files[0].path}: no token of the validation set counts (its loss mask is all 0)")
    mean = loss / tokens
    accuracy = right / tokens if run.init.model.compute_eval_metrics else None
    return Score(mean, math.exp(min(mean, 700.0)), accuracy, tokens)
