"""Ranks that wait for one that never comes, or is killed on the way, end soon with one line that names it."""

import datetime
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from modelzoo import host, joining
from modelzoo.config.errors import UserError
from tests import ranks
from tests.ranks import Launch, words
from tests.support import TINY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks of a process with torch in it")
AGAIN = "gone before all had joined; run the same command again"


@pytest.fixture
def command(tmp_path) -> list:
    data = ranks.write_data(tmp_path / "data", 4)
    more = {"model": TINY, "optimizer": {"SGD": {"lr": 1e-2}}, "loop": {"max_steps": 2}}
    return words(ranks.write_config(data, tmp_path / "a.yaml", {}, {}, **more), tmp_path / "run")


def errors(launch: Launch) -> list[str]:
    return [x for r in range(len(launch.ranks)) for x in launch.text(r).splitlines() if x.startswith("error")]


def die_as(rank: int):
    if os.environ.get("RANK") == str(rank):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_does_not_come_is_named_when_the_time_is_over(command, monkeypatch):
    monkeypatch.setenv(joining.PATIENCE, "1")
    launch = Launch(command, 2, size=3)
    assert launch.wait() == [75, 75]
    assert errors(launch) == ["error: rank 2 of 3: did not join within 1 s (MEDISWIFT_JOIN_TIMEOUT); was it started?"]


def test_ranks_whose_first_one_failed_do_not_wait_for_ever(command, monkeypatch):
    monkeypatch.setenv(joining.PATIENCE, "1")
    monkeypatch.setattr(joining, "REPORTS", 0.1)
    launch = Launch([["CPU", "-p", "nowhere.yaml", "-m", "train"], command], 2)
    assert launch.wait() == [2, 2]
    assert "error: rank 1: rank 1 of 2: cannot join the others at 127.0.0.1:" in launch.text(1)


def test_a_rank_that_is_killed_while_others_are_awaited_is_named_at_once(command, monkeypatch):
    look = joining._Meeting._look

    def die(self):
        if self.store is not None and self.round:
            die_as(1)
        look(self)

    monkeypatch.setattr(joining._Meeting, "_look", die)
    launch = Launch(command, 2, size=3)
    assert launch.wait() == [75, -signal.SIGKILL]
    assert errors(launch) == [f"error: rank 1 of 3: {AGAIN}"]


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_rank_that_is_killed_while_they_connect_is_named_at_once(victim, command, monkeypatch):
    connect = dist.init_process_group

    def die(*arguments, **more):
        die_as(victim)
        connect(*arguments, **more)

    monkeypatch.setattr(dist, "init_process_group", die)
    launch = Launch(command, 3)
    assert launch.wait() == [-signal.SIGKILL if r == victim else 75 for r in range(3)]
    found = errors(launch)  # with rank 0 goes the store: who has not heard of the others by then speaks for itself
    assert 1 <= len(found) <= (1 if victim else 2)
    assert all(line.endswith(f"rank {victim} of 3: {AGAIN}") for line in found)


def test_what_an_earlier_round_left_in_the_launcher_s_store_misleads_nobody(command, tmp_path, monkeypatch):
    store = dist.TCPStore("127.0.0.1", 0, None, True, datetime.timedelta(seconds=60), wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with monkeypatch.context() as m:
        connect = dist.init_process_group
        m.setattr(dist, "init_process_group", lambda *a, **more: (die_as(1), connect(*a, **more)))
        assert Launch(command, 2, port=store.port).wait() == [75, -signal.SIGKILL]
    for more in ([], ["--restart"]):
        launch = Launch([*command, *more], 2, port=store.port)
        assert launch.wait() == [0, 0], launch.text(0)


def test_a_process_that_has_ended_does_not_run_though_nobody_has_asked_for_its_code():
    pid = os.fork()
    if not pid:
        os._exit(0)
    start, until = host.process_start(pid), time.monotonic() + 20
    while host.is_alive(pid, start):
        assert time.monotonic() < until
    assert Path(f"/proc/{pid}").exists()
    os.waitpid(pid, 0)
    assert host.is_alive(os.getpid(), host.process_start(os.getpid()))


@pytest.mark.parametrize("text,seconds", [("", joining.USUAL), ("7", 7)])
def test_the_time_to_join_is_a_setting(text, seconds):
    assert joining.find_patience(text) == seconds


@pytest.mark.parametrize("text", ["0", "-1", "x", "1e9", "²", "100000"])
def test_a_time_to_join_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=r"MEDISWIFT_JOIN_TIMEOUT=.*: takes seconds from 1 to 86400"):
        joining.find_patience(text)
