"""The benchmarks' modules, which are programs beside the packages."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

REPO = Path(__file__).resolve().parents[2]
NAMES = (
    "blocks", "figures", "forced", "gpu", "gpu_page", "gpu_turns", "harness", "linear", "page", "program", "scaling",
    "sections", "train_step",
)  # fmt: skip


@pytest.fixture
def bench(monkeypatch):
    """Their modules by name: bench.page, bench.sections, ..."""
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
