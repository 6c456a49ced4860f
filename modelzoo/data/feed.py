"""Shards to a run: training batches step by step, prefetched by worker processes, and validation's in file order."""

import multiprocessing
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from modelzoo.config.errors import UserError
from modelzoo.data.hdf5 import Shards


class Arrays:
    """A batch on its way from a worker, in NumPy: tensors would go through /dev/shm, which may be small or closed."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def tensors(self) -> dict[str, Tensor]:
        """The arrays as tensors that share their memory."""
        return {name: torch.from_numpy(x) for name, x in self.arrays.items()}

    def pin_memory(self) -> dict[str, Tensor]:
        """What DataLoader calls in a thread of its own."""
        return {name: x.pin_memory() for name, x in self.tensors().items()}


class Steps(torch.utils.data.Dataset):
    """Batches by step, for torch's DataLoader: workers fetch whole batches, in the order of steps.

    A worker hands an error's text over like a batch: raised there, torch would wrap it in its own traceback.
    """

    def __init__(self, shards: Shards):
        self.shards = shards

    def __getitem__(self, step: int) -> "Arrays | str":
        try:
            return Arrays({name: x.numpy() for name, x in self.shards.batch(step).items()})
        except UserError as e:
            return str(e)


def iterate_batches(shards: Shards, start: int, stop: int, pin_memory: bool = False) -> Iterator[dict[str, Tensor]]:
    """Batches of steps start..stop-1, prefetched by `num_workers` processes if there are any."""
    workers = shards.config.num_workers
    try:
        _try_semaphores(workers)
        batches = _start(_loader(shards, start, stop, workers, pin_memory))
    except (OSError, ImportError) as e:  # no semaphores, or no more processes
        print(f"{workers} data workers cannot be started here ({e}): this process reads", file=sys.stderr, flush=True)
        batches = _start(_loader(shards, start, stop, 0, pin_memory))
    while True:
        try:
            batch = next(batches, None)
        except RuntimeError as e:
            if "DataLoader worker" not in str(e):
                raise
            raise UserError(_explain_lost_worker(workers, shards.config.prefetch_factor)) from None
        if batch is None:
            return
        if isinstance(batch, str):
            raise UserError(batch)
        yield batch.tensors() if isinstance(batch, Arrays) else batch


def _loader(shards: Shards, start: int, stop: int, workers: int, pin_memory: bool) -> torch.utils.data.DataLoader:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # `planning.batches` notes it, with the key
        return torch.utils.data.DataLoader(
            Steps(shards),
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            pin_memory=pin_memory,
            prefetch_factor=shards.config.prefetch_factor if workers else None,
            persistent_workers=bool(workers) and shards.config.persistent_workers,
        )


def _try_semaphores(workers: int) -> None:
    """Make what the loader's workers will share: torch's iterator, half made, would end in a traceback.

    Raises:
        OSError, ImportError: there are none to be had; /dev/shm is missing, full or closed.
    """
    if workers:
        made = [*(multiprocessing.Queue() for _ in range(workers + 1)), multiprocessing.Event()]
        del made


def _start(loader: torch.utils.data.DataLoader) -> Iterator:
    """Start the loader's workers. A dead worker raises when its batch is requested, not in the middle of a step.

    torch sets a signal handler that raises wherever this process happens to be; this puts the earlier handler back.
    """
    main = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if main else None
    batches = iter(loader)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
    return batches


def _explain_lost_worker(workers: int, prefetch: int | None) -> str:
    where = "trainer.fit.train_dataloader"
    return (
        f"{where}: one of {workers} data workers was killed, most often for want of memory; lower {where}.num_workers "
        f"({workers}; 0 reads in this process) or prefetch_factor ({2 if prefetch is None else prefetch}), and start "
        "again: the run goes on from its last checkpoint"
    )


def iterate_validation(
    shards: Shards, eval_steps: int | None = None, rank: int = 0, ranks: int = 1
) -> Iterator[dict[str, Tensor]]:
    """Each example once, in file order, the last batch as small as it comes; or a sample of `eval_steps` batches.

    Args:
        rank, ranks: take each `ranks`-th batch, from number `rank`.
    """
    size = shards.config.batch_size
    examples = pick_examples(shards.total, size, eval_steps)
    for first in range(0, len(examples), size)[rank::ranks]:
        yield shards.read(examples[first : first + size])


def pick_examples(total: int, batch_size: int, eval_steps: int | None) -> Sequence[int]:
    """Numbers of `total` examples, rising: all, or `eval_steps` batches, the middle of each of as many equal parts.

    The first ones would not do for all: a set keeps the order of its input files, and PubMed's first are its oldest.
    """
    if eval_steps is None or (most := eval_steps * batch_size) >= total:
        return range(total)
    return [(2 * i + 1) * total // (2 * most) for i in range(most)]
