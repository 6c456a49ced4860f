"""What a checkpoint holds of a run: its tensors by file and name, each made when it is read, and its state."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from modelzoo.names import name_mask
from modelzoo.train_state import TrainState
from modelzoo.training.checkpoints.state_json import (
    CheckpointState,
    LogFacts,
    record_config,
)

EXPLORED = "explored"  # the file of the weights that were ever live; runs whose masks stay have none
ORDERS = "orders"  # the file of the orders of inputs in which blocks are formed; other runs have none


class Streamed(Mapping[str, Tensor]):
    """A run's tensors by name as they are when each is read: a packed one is made whole then, and not kept."""

    def __init__(self, make: Mapping[str, Callable[[], Tensor]]):
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        return self._make[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


def list_tensors(run: TrainState) -> dict[str, Mapping[str, Tensor]]:
    """The tensors of a checkpoint of `run` by file and name. Tied weights are written once.

    Read them before the run goes on, and keep none: all of them whole may not fit where the run is.
    Where each rank holds a share, all must call it, and rank 0 alone has the tensors.
    """
    names = {p: n for n, p in run.parameters.items()}
    model = {n: partial(run.whole, p, p.detach()) for p, n in names.items()}
    model |= {name_mask(p.name): partial(getattr, p, "mask") for p in run.sparsity.parameters}
    moments = {
        f"{names[p]}/{key}": partial(run.whole, p, torch.as_tensor(value))
        for p, entries in run.optimizer.state.items()
        if isinstance(p, nn.Parameter)  # all are; torch types the keys as tensors
        for key, value in entries.items()
        if value is not None
    }
    explored = {n: partial(Tensor.detach, bits) for n, bits in run.sparsity.explored.bits.items()}
    orders = {n: partial(Tensor.detach, order) for n, order in run.sparsity.orders().items()}
    files = {"model": model, "optimizer": moments}
    files |= {name: found for name, found in ((EXPLORED, explored), (ORDERS, orders)) if found}
    return {stem: _collect(run, make) for stem, make in files.items()}


def snapshot(
    run: TrainState, fingerprint: str, logs: Mapping[str, LogFacts] = MappingProxyType({})
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
    """What a checkpoint of `run` holds: `list_tensors`, and JSON state.

    Args:
        fingerprint: of the data. logs: how long each log is now, by file name.
    """
    scale = run.loss_scale
    if run.recorded is None:
        run.recorded = record_config(run.config)
    state = CheckpointState.of(
        run.init,
        global_step=run.step,
        skipped=run.skipped,
        unmended=run.unavoidable,
        tokens=run.tokens,
        churn=run.churn,
        flops=[run.ledger.sparse, run.ledger.dense],
        finite=run.is_finite(),
        loss_scale={"scale": scale.scale, "good_steps": scale.good_steps, "dynamic": scale.dynamic},
        dtype=run.dtype,
        slices=run.reduction.slices,
        threads=run.reduction.threads,
        dataset=fingerprint,
        run=run.origin,
        logs={name: facts.model_dump() for name, facts in logs.items()},
        unassessed=run.unassessed,
        **run.recorded,
    )
    return list_tensors(run), state.as_json()


def _collect(run: TrainState, make: Mapping[str, Callable[[], Tensor]]) -> Mapping[str, Tensor]:
    """Tensors to be read one by one. Those of shares are on the host of rank 0 at once, and nowhere else."""
    if run.shares is None:
        return Streamed(make)
    first = run.shares.ranks.first
    return {name: x.cpu() if first else x.new_empty(0, device="cpu") for name, x in Streamed(make).items()}
