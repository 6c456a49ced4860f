"""Tests marked `gpu` skip where there is none; each leaves torch's switches as it found them.

MEDISWIFT_TEST_UNTIL, a time as `date +%s` prints it, ends a run that has a limit: what would begin later is skipped. A
failure is written to the file MEDISWIFT_TEST_FAILURES at once, for a run that is killed prints no summary.
"""

import os
import sys
import time

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
    if time.time() > float(os.environ.get("MEDISWIFT_TEST_UNTIL", "inf")):
        pytest.skip("the time for tests is over")
    tf32 = torch.backends.cuda.matmul.allow_tf32
    yield DEVICE
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    if "torch._dynamo" in sys.modules:  # what was compiled for another model's sizes is in the way of the next one's
        torch._dynamo.reset()


def pytest_runtest_logreport(report):
    """Write down what fails; of several processes the one that hears of all does."""
    path = os.environ.get("MEDISWIFT_TEST_FAILURES")
    if report.failed and path and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"== {report.nodeid}\n{report.longreprtext}\n")
