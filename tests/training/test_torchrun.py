"""torchrun itself: it starts a lost rank's whole group anew, and ranks end with a checkpoint when it is killed."""

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests import ranks
from tests.training import kill_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or importlib.util.find_spec("torch.distributed.run") is None, reason="torchrun on Linux"
    ),
]


def await_checkpoint(process, run: Path) -> None:
    while not kill_ranks.find_step(run):
        assert process.poll() is None, Path(f"{run}.txt").read_text()
        time.sleep(0.01)


def test_torchrun_starts_the_ranks_anew_and_they_go_on(tmp_path):
    config = kill_ranks.write_config(tmp_path)
    process = kill_ranks.start("torchrun", config, tmp_path / "run", "--max-restarts", "3")
    await_checkpoint(process, tmp_path / "run")
    victim = kill_ranks.find_ranks(process.pid)[1]
    os.kill(victim, signal.SIGKILL)
    ranks.run_ranks(ranks.words(config, tmp_path / "whole"), 2)
    assert process.wait(300) == 0, (tmp_path / "run.txt").read_text()
    assert len((tmp_path / "run/launches.jsonl").read_text().splitlines()) == 2
    assert kill_ranks.read_run(tmp_path / "run") == kill_ranks.read_run(tmp_path / "whole")


def test_ranks_end_with_a_checkpoint_when_their_launcher_is_killed(tmp_path):
    process = kill_ranks.start("torchrun", kill_ranks.write_config(tmp_path, 100_000), tmp_path / "run")
    await_checkpoint(process, tmp_path / "run")
    found = kill_ranks.find_ranks(process.pid)
    process.kill()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in found.values()):
        assert time.monotonic() < until
        time.sleep(0.01)
    text = (tmp_path / "run.txt").read_text()
    assert len(found) == 2 and "it resumes exactly at step" in text, text
