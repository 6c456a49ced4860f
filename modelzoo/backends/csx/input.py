"""What the input workers of a cluster run: every worker its share of every global batch, in our order."""

import torch
from torch import Tensor

from modelzoo.backends.csx.library import cstorch
from modelzoo.config.sections.dataloader import DataLoader
from modelzoo.data.hdf5 import Shards


def input_batches(config: DataLoader, vocab_size: int, prompt_tokens: int, start: int, stop: int):
    """The batches of steps start..stop-1. On a worker: its own system's part of those that are its turn."""
    shards = Shards.open(config, vocab_size, prompt_tokens=prompt_tokens)
    order = cstorch.utils.data.sampler.ShardedSampler(_Order(shards, start, stop))
    return torch.utils.data.DataLoader(_Rows(shards), batch_size=None, sampler=order, num_workers=config.num_workers)


class _Order:
    """Steps start..stop-1 as lists of example numbers."""

    def __init__(self, shards: Shards, start: int, stop: int):
        self.shards, self.steps = shards, range(start, stop)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self):
        return (self.shards.indices(step) for step in self.steps)


class _Rows(torch.utils.data.Dataset):
    def __init__(self, shards: Shards):
        self.shards = shards

    def __getitem__(self, indices: list[int]) -> dict[str, Tensor]:
        return self.shards.read(indices)
