"""benchmarks/scaling.py: a group's processes work at the same time, with the cores shared out among them."""

import argparse
from typing import ClassVar

import pytest

from modelzoo.config.errors import UserError

SHAPE = {
    "hidden": 128, "layers": 2, "heads": 2, "length": 16, "vocab": 128, "batch": 8, "dtype": "float32", "device": "cpu",
    "sparsity": 0.75, "cores": 6, "rounds": 2,
}  # fmt: skip


class Process:
    """A worker that records what it is asked."""

    made: ClassVar[list["Process"]] = []
    calls: ClassVar[list[tuple[str, str | None]]] = []

    def __init__(self, command, ready, **environment):
        self.command, self.ready, self.environment = command, ready, environment
        self.made.append(self)

    def begin(self) -> None:
        self.calls.append(("begin", self.environment.get("RANK")))

    def wait(self) -> None:
        self.calls.append(("wait", self.environment.get("RANK")))


@pytest.fixture
def processes(bench, monkeypatch):
    monkeypatch.setattr(Process, "made", [])
    monkeypatch.setattr(Process, "calls", [])
    monkeypatch.setattr(bench.scaling, "Worker", Process)
    return Process


def test_all_begin_before_any_is_waited_for(bench, processes):
    group = bench.scaling.Group(argparse.Namespace(**SHAPE), 2, "exact")
    assert not any(p.ready for p in processes.made)  # they wait for each other
    processes.calls.clear()
    group()
    assert processes.calls == [("begin", "0"), ("begin", "1"), ("wait", "0"), ("wait", "1")]


def test_cores_are_shared_out(bench, processes):
    times = bench.scaling.compete(argparse.Namespace(**SHAPE), [2, 3])
    assert list(times) == [
        "1 process", "1 process, exact", *(f"{n} processes, {how}" for n in (2, 3) for how in ("fast", "exact"))
    ]  # fmt: skip
    for p in processes.made:
        size = int(p.environment.get("WORLD_SIZE", 1))
        assert int(p.environment["OMP_NUM_THREADS"]) * size == 6
        assert p.command[p.command.index("--sparsity") + 1] == "0.75" and "--serve" in p.command
    assert len({p.environment.get("MASTER_PORT") for p in processes.made}) == 5  # none alone, one a group


@pytest.mark.parametrize(
    "text,line", [("3", "there are 2 cores"), ("x", "'x' is no number"), ("2,1", "'1' is no number"), ("", "no number")]
)
def test_numbers_that_make_no_sense_are_refused(text, line, bench):
    with pytest.raises(UserError, match=line):
        bench.scaling.list_counts(text, 2)
    assert bench.scaling.list_counts("4, 2,4", 4) == [4, 2]
