"""benchmarks/gpu.py on a CPU: a contestant costs its own figures alone, and what was measured is on disk at once."""

import argparse
import json
import weakref

import pytest

ARGS = {
    "steps": 2,
    "rounds": 3,
    "batch": 2,
    "length": 4,
    "device": "cpu",
    "only": None,
    "nanogpt": None,
    "part": "dense",
}


class Work:
    """A contestant of no weight."""

    def __init__(self, fails_at: int | None = None):
        self.left = fails_at

    def __call__(self):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise RuntimeError("out of\nmemory")


@pytest.fixture
def turns(bench, monkeypatch):
    monkeypatch.setattr(bench.gpu_turns, "product", lambda args: (lambda: None, 1.0))
    return bench.gpu_turns


def test_a_contestant_that_fails_costs_itself_alone(turns, bench, tmp_path, capsys):
    path, made, begun = tmp_path / "dense-XL.json", [], []

    def make(fails_at=None):
        begun.append(json.loads(path.read_text()))
        assert all(ref() is None for ref in made[1:])  # all but the base are gone before the next is built
        work = Work(fails_at)
        made.append(weakref.ref(work))
        return work

    def absent():
        raise ImportError("no such peer")

    makers = {"dense": make, "absent": absent, "poor": lambda: make(5), "poorest": lambda: make(1), "quick": make}
    record = turns.Record(str(path), card="a card", torch="2", part="dense", model="XL", size="small", base="dense")
    turns.compete(argparse.Namespace(**ARGS), makers, "dense", record)
    assert [f["under_way"] for f in begun] == ["dense", "poor", "poorest", "quick"]
    assert "dense" in begun[1]["contestants"]  # and so on: each is written when it is measured
    found = json.loads(path.read_text())
    assert list(found["contestants"]) == ["dense", "quick"] and found["under_way"] is None
    assert found["contestants"]["dense"]["ratio"] == 1.0 and found["contestants"]["quick"]["ratio"] > 0
    assert found["failed"] == {"absent": "ImportError: no such peer", "poor": "RuntimeError: out of memory",
                               "poorest": "RuntimeError: out of memory"}  # fmt: skip
    (tmp_path / "tests.txt").write_text("..F\n======= 1 failed, 30 passed, 2 skipped in 61.20s (0:01:01) =======\n")
    page = bench.gpu_page.write_section(tmp_path)
    assert page.startswith("## a card\n") and "Tests: 1 failed, 30 passed, 2 skipped." in page
    assert "| quick | " in page and "poor: not measured, RuntimeError: out of memory" in page
    assert "**sparse**: not run." in page


def test_without_its_base_the_others_are_measured(turns, tmp_path):
    path = tmp_path / "sparse.json"
    record = turns.Record(str(path), card="a card", torch="2", part="sparse", model="XL", size="small", base="dense")
    turns.compete(argparse.Namespace(**ARGS), {"dense": lambda: Work(1), "quick": Work}, "dense", record)
    (found,) = json.loads(path.read_text())["contestants"].values()
    assert "ratio" not in found and found["milliseconds"] > 0


def test_what_was_stopped_is_on_the_page(bench, tmp_path):
    facts = {"card": "a card", "torch": "2", "part": "dense", "model": "XL", "size": "small", "base": "dense"}
    record = bench.gpu_turns.Record(str(tmp_path / "nanogpt-XL.json"), **facts)
    record.begin("slow to build")
    (tmp_path / "tests.txt").write_text("tests/gpu/test_feed.py ..\n")
    page = bench.gpu_page.write_section(tmp_path)
    assert "slow to build: not measured, stopped on the way" in page and "Tests: not run to the end." in page


def test_peers_are_chosen_by_what_is_there(bench):
    gpu, args = bench.gpu, argparse.Namespace(**ARGS)
    assert gpu.choose_names(args) == ["ours, without CUDA graphs", "Hugging Face"]
    args.nanogpt = "clone"
    assert gpu.WHOLE not in gpu.choose_names(args) and len(gpu.choose_names(args)) == 4
    args.only = [gpu.WHOLE]
    assert gpu.choose_names(args) == [gpu.WHOLE]
    args.part = "sparse"
    with pytest.raises(gpu.UserError, match="--part sparse has "):
        gpu.choose_names(args)
