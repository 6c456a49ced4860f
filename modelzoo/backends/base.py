"""What the training loop needs from a device. Small on purpose: CPU, GPU and CS-2 differ here and nowhere else."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from modelzoo.backends.abilities import Abilities
from modelzoo.backends.arithmetic import Arithmetic
from modelzoo.data.hdf5 import Shards
from modelzoo.distributed import Ranks
from modelzoo.models.gpt import GPTModel
from modelzoo.train_state import Step, TrainState

DENOMINATOR = "denominator"  # of a batch's summed loss: it travels with the micro-batch


class Backend(Protocol):
    """A place to train."""

    kind: str  # CPU, GPU or CSX
    abilities: Abilities
    device: torch.device
    device_class: str  # what figures and arithmetic depend on: avx2, sm_90, CS-2
    arithmetic: Arithmetic  # of matrix products, and why
    dtype: torch.dtype  # the same for torch: float32, bfloat16 or float16
    notes: list[str]  # what was asked for and is done otherwise here, a line each
    ranks: Ranks  # the processes that train one run together, this one among them
    asynchronous: bool  # whether work is queued, so that reading a value waits for all work queued before

    def describe(self) -> str:
        """One line: device, precision, threads."""
        ...

    def place(self, model: GPTModel, move: bool = True) -> GPTModel:
        """The model on the device, compiled if the config says so. Parameter names stay.

        Args:
            move: false leaves it on the host, from where `sharding` shares it out.
        """
        ...

    def autocast(self) -> AbstractContextManager:
        """The precision of forward passes."""
        ...

    def put(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the device."""
        ...

    def batches(self, run: TrainState, shards: Shards, stop: int) -> Iterator[dict[str, Tensor]]:
        """The global batches of steps run.step..stop-1, one after another."""
        ...

    def train_step(self, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int) -> Step:
        """One optimizer step on a global batch, cut into `micro_batches`.

        A step whose loss or gradient is not finite leaves weights, moments, masks and learning rate as they were.
        """
        ...

    def queue_step(self, run: TrainState, batch: Mapping[str, Tensor], micro_batches: int) -> Step | None:
        """The same, but loss and norm may stay on the device until a later `train_step` reads them: None then.

        That one returns the first step which was not finite, if one was; none after it has changed anything.
        """
        ...

    def lower(
        self,
        batch: dict[str, Tensor],
        micro_batch_size: int | str | None,
        names: Iterable[str],
        live: Mapping[str, int],
    ) -> str:
        """Turn one training step into the device's own program without taking it; lines that describe the result.

        Args:
            batch: of the right shapes; values do not matter. micro_batch_size: into what the device's compiler cuts it.
            names: the model's parameters. live: live weights of each sparse one at step 0.

        Raises:
            UserError: what does not go, or the device has no such program.
        """
        ...

    def validation_batches(self, shards: Shards, eval_steps: int | None) -> Iterator[dict[str, Tensor]]:
        """The batches of a validation set on the device, in file order: all, or `eval_steps` spread evenly."""
        ...

    def fetch(self, run: TrainState) -> bool:
        """Copy the state of `run` (weights, masks, moments) to the host; False if it is not available at this step."""
        ...

    def memory(self) -> int | None:
        """Peak bytes used on the device, if it can tell."""
        ...

    def holds_graphs(self) -> bool:
        """Whether micro-batches are captured as CUDA graphs, which keep a step's memory."""
        ...


class TorchBackend(Backend, Protocol):
    """A place where torch takes the step as it is written, one micro-batch after another."""

    def compute_gradients(self, run: TrainState, micro: dict[str, Tensor]) -> Tensor:
        """Forward and backward of a micro-batch on the host, which has its `DENOMINATOR`; gradients add up in `.grad`.

        Returns:
            Its loss, on the device.
        """
        ...
