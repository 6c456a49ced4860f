"""Fixtures for all tests: the real data, where it is."""

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

# Toy models are too small for two threads, and test workers share the cores: set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# A slow example is no failure on a shared machine, and the same code always meets the same examples: what fails was
# changed. HYPOTHESIS_PROFILE=explore looks for new ones.
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("steady", derandomize=True, **QUIET)
settings.register_profile("explore", max_examples=1000, **QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

REPO = Path(__file__).resolve().parents[1]

# Commands in tests start as from a terminal, however the tests were started: in the background, or by nohup, SIGINT and
# SIGHUP are ignored, and so they would be in every process that a test starts.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if threading.current_thread() is threading.main_thread() and signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that no worker still has one when the others have ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def act_as(monkeypatch):
    """Let runs take this machine's processor for one of another class, stronger or weaker; kernels stay its own."""
    from modelzoo.backends import arithmetic, local
    from modelzoo.kernels import processor

    def act(name: str) -> None:
        with monkeypatch.context() as m:
            m.setattr(processor, "native_class", lambda: name)
            m.delenv(processor.SWITCH, raising=False)
            found = {f.__name__: f() for f in (processor.processor_class, processor.title, processor.multiplies_bf16)}
        stand_in = SimpleNamespace(**{name: lambda value=value: value for name, value in found.items()})
        for module in (arithmetic, local):
            monkeypatch.setattr(module, "processor", stand_in)

    return act


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository that holds real data and reference files; skips where it is missing."""
    path = Path(os.environ.get("MEDISWIFT_SHARED", REPO.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}")
    return path


@pytest.fixture(scope="session")
def shared_data(shared: Path) -> Path:
    return shared / "data"
