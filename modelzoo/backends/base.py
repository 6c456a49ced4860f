"""What the training loop asks of a device. Small on purpose: CPU, GPU and CS-2 differ here and nowhere else."""

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn


class Backend(Protocol):
    """A place to train."""

    kind: str  # CPU, GPU or CSX
    device: torch.device
    dtype: torch.dtype  # of matrix products: float32, bfloat16 or float16
    notes: list[str]  # what was asked for and is done otherwise here, a line each

    def describe(self) -> str:
        """One line: device, precision, threads."""

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, compiled if the config says so. Parameter names stay."""

    def autocast(self) -> AbstractContextManager:
        """The precision of forward passes."""

    def put(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the device."""

    def memory(self) -> int | None:
        """Peak bytes used on the device, if it can tell."""
