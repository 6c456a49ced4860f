"""Tests marked `gpu` skip where there is none; each leaves torch's switches as it found them."""

import os

# Before the first product: torch asks once whether sums on the GPU can be repeatable.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from tests.gpu.device import DEVICE, GPU


@pytest.fixture(autouse=True)
def device(request):
    """The device, where the test may use it."""
    marked = request.node.get_closest_marker("gpu") is not None
    if marked and GPU and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU on this machine")
    tf32 = torch.backends.cuda.matmul.allow_tf32
    yield DEVICE
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32 = tf32
