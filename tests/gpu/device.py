"""The device that tests in this folder run on: the GPU, or as a rehearsal of the tests themselves the CPU.

MEDISWIFT_TEST_GPU=cpu python -m pytest tests/gpu
"""

import os

import torch

from modelzoo.backends.local import Local
from modelzoo.backends.select import Choice
from modelzoo.config.trainer import Config
from modelzoo.train_state import TrainState
from modelzoo.training.build import build_run
from tests.support import TINY, config

DEVICE = torch.device(os.environ.get("MEDISWIFT_TEST_GPU", "cuda"))
GPU = DEVICE.type == "cuda"
TARGET = "GPU" if GPU else "CPU"
CPU = torch.device("cpu")
SMALL = {**TINY, "hidden_size": 64, "filter_size": 128, "num_heads": 2, "max_position_embeddings": 32}


def backend_of(whole: Config, device: torch.device = DEVICE) -> Local:
    """The backend on `device` that a config asks for."""
    init = whole.trainer.init
    return Local(device, init.backend, init.precision)


def make_run(device: torch.device = DEVICE, **init) -> TrainState:
    """A run of `support.config(**init)`, of the small model unless another is given, freshly initialised.

    Its layers are not compiled: most of these tests would wait for the compiler, and one of them is about it.
    """
    whole = config(**{"model": SMALL, **init, "backend": {"torch_compile": False, **init.get("backend", {})}})
    return build_run(whole, Choice(backend_of(whole, device), "", None))


def train_step(run: TrainState, batch: dict[str, torch.Tensor], micro_batches: int = 1):
    """One step of `run`, where it is."""
    assert run.config is not None
    return backend_of(run.config, next(run.model.parameters()).device).train_step(run, batch, micro_batches)
