"""Shards to a run: training batches step by step, prefetched by worker processes, and validation's in file order."""

import signal
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.data.hdf5 import Shards


class Steps(torch.utils.data.Dataset):
    """Batches by step, for torch's DataLoader: workers fetch whole batches, in the order of steps.

    A worker hands an error's text over like a batch: raised there, torch would wrap it in its own traceback.
    """

    def __init__(self, shards: Shards):
        self.shards = shards

    def __getitem__(self, step: int) -> dict[str, Tensor] | str:
        try:
            return self.shards.batch(step)
        except UserError as e:
            return str(e)


def batches(shards: Shards, start: int, stop: int, pin_memory: bool = False) -> Iterator[dict[str, Tensor]]:
    """Batches of steps start..stop-1, prefetched by `num_workers` processes if there are any."""
    workers = shards.config.num_workers
    loader = torch.utils.data.DataLoader(
        Steps(shards),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=shards.config.prefetch_factor if workers else None,
        persistent_workers=bool(workers) and shards.config.persistent_workers,
    )
    source = _started(loader)
    while True:
        try:
            batch = next(source, None)
        except RuntimeError as e:
            if "DataLoader worker" not in str(e):
                raise
            raise UserError(_lost(workers, shards.config.prefetch_factor)) from None
        if batch is None:
            return
        if isinstance(batch, str):
            raise UserError(batch)
        yield batch


def _started(loader: torch.utils.data.DataLoader) -> Iterator:
    """The loader's iterator. A worker's death is met where its batch is missed, not in the middle of a step.

    torch sets a signal handler that raises wherever this process happens to be; the one that was there comes back.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if main else None
    source = iter(loader)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
    return source


def _lost(workers: int, prefetch: int | None) -> str:
    where = "trainer.fit.train_dataloader"
    return (
        f"{where}: one of {workers} data workers was killed, most often for want of memory; lower {where}.num_workers "
        f"({workers}; 0 reads in this process) or prefetch_factor ({2 if prefetch is None else prefetch}), and start "
        "again: the run goes on from its last checkpoint"
    )


def validation(shards: Shards, eval_steps: int | None = None) -> Iterator[dict[str, Tensor]]:
    """Every example once, in file order, the last batch as small as it comes; `eval_steps` batches at most."""
    size = shards.config.batch_size
    for step, first in enumerate(range(0, shards.total, size)):
        if eval_steps is not None and step >= eval_steps:
            return
        yield shards.read(range(first, min(first + size, shards.total)))
