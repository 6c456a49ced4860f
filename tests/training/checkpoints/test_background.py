"""Checkpoints written while training goes on are those of a run that waits for each: bytes, logs, errors and kills."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelzoo import host
from modelzoo.data import feed
from modelzoo.data.hdf5 import Shards
from modelzoo.training.checkpoints import background, checkpoint, saving
from modelzoo.training.checkpoints.background import GivenUp, HostCopy, Writer, explain_shortage
from modelzoo.training.checkpoints.snapshot import snapshot
from modelzoo.training.logs.writing import Logs
from tests.commands import start
from tests.faults.commands import tree
from tests.support import batch, examples, make_run, train_step, write_shard
from tests.training.test_promises import run, write_config
from tests.training.test_ways_out import fail_at

STEPS, REPO = 8, Path(__file__).resolve().parents[3]
MODE = "train_and_eval"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shard(tmp_path_factory.mktemp("data") / "a.h5", examples(19, seed=1)).parent


@pytest.fixture(scope="module")
def params(data, tmp_path_factory) -> Path:
    saves = {"steps": 2, "keep": 3, "save_initial_checkpoint": True}
    loop = {"max_steps": STEPS, "eval_frequency": 3}
    return write_config(tmp_path_factory.mktemp("config") / "c.yaml", data, loop=loop, checkpoint=saves)


@pytest.fixture(scope="module")
def whole(params, tmp_path_factory) -> dict[str, str]:
    """The bytes of a run that waits for each of its checkpoints, since memory has no room for a copy."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as m:
        no_room(m)
        m.chdir(folder.parent)
        assert run(params, Path("run"), mode=MODE) == 0
    found = tree(folder)
    assert {int(n.split("/")[1][5:]) for n in found if n.startswith("checkpoints/")} == {4, 6, 8}
    return found


@pytest.fixture(autouse=True)
def here(tmp_path):
    with contextlib.chdir(tmp_path):  # configs and messages name the folder as the command does
        yield
    assert not [t for t in threading.enumerate() if t.name == "write checkpoint"]


def no_room(monkeypatch) -> None:
    monkeypatch.setattr(host, "total_memory", lambda: 100_000)  # the weights fit, and little else


def in_background() -> bool:
    return threading.current_thread() is not threading.main_thread()


def count_steps(monkeypatch) -> list[int]:
    """The steps that were logged so far."""
    steps, plain = [0], Logs.write

    def write(self, step, *args):
        steps.append(step)
        return plain(self, step, *args)

    monkeypatch.setattr(Logs, "write", write)
    return steps


def delay_saves(monkeypatch, then=None) -> list[tuple[int, int, int]]:
    """Writing in the background begins when the step after is logged, and `then(step)` is called.

    Returns:
        Of each write: the checkpoint's step, and the last step that was logged when it began and when it ended.
    """
    found, logged, plain, under_way = [], count_steps(monkeypatch), saving.save, []

    def save(root, step, *args):
        assert not under_way, "two at once"
        under_way.append(step)
        try:
            if in_background():
                until = time.monotonic() + 60
                while logged[-1] <= step and time.monotonic() < until:
                    time.sleep(0.001)
                if then is not None:
                    then(step)
            begin = logged[-1]
            path = plain(root, step, *args)
            found.append((step, begin, logged[-1]))
            return path
        finally:
            under_way.clear()

    monkeypatch.setattr(saving, "save", save)
    return found


def error_line(capsys) -> str:
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


def test_checkpoints_hold_their_step_though_it_is_written_later(params, whole, monkeypatch, capsys):
    """Weights, masks, moments and counters move on before a byte is written. `keep` removes what it would."""
    found = delay_saves(monkeypatch)
    assert run(params, Path("run"), mode=MODE) == 0
    assert tree(Path("run")) == whole
    assert [step for step, _, _ in found] == [0, 2, 4, 6, 8]
    assert [begin > step for step, begin, _ in found] == [False, True, True, True, False]
    assert "training waits" not in capsys.readouterr().err


def test_packed_weights_hold_their_step_too(data, monkeypatch):
    block = {"algorithm": "rigl", "sparsity": 0.5, "storage": "packed", "block": [4, 4], "update": {"freq": 2}}
    found = {}
    for name in ("waits", "goes on"):
        os.makedirs(name)
        params = write_config(Path("c.yaml").absolute(), data, sparsity=block, loop={"max_steps": STEPS})
        with pytest.MonkeyPatch.context() as m:
            m.chdir(name)
            no_room(m) if name == "waits" else delay_saves(m)
            assert run(params, Path("run")) == 0
        found[name] = tree(Path(name, "run"))
    assert found["waits"] == found["goes on"]


def test_saves_in_quick_succession_wait_for_each_other(data, monkeypatch):
    """A checkpoint each step, and each is slower than a step: never two at once, each of its own step."""
    trees = []
    for name in ("waits", "goes on"):
        os.makedirs(name)
        params = write_config(
            Path("c.yaml").absolute(), data, loop={"max_steps": 5}, checkpoint={"steps": 1, "keep": 2}
        )
        with pytest.MonkeyPatch.context() as m:
            m.chdir(name)
            found = delay_saves(m, lambda step: time.sleep(0.05))
            if name == "waits":
                no_room(m)
            assert run(params, Path("run")) == 0
        assert [step for step, _, _ in found] == [1, 2, 3, 4, 5]
        trees.append(tree(Path(name, "run")))
    assert trees[0] == trees[1] and checkpoint.steps("waits/run/checkpoints") == [4, 5]


def test_memory_and_the_key_decide(params, whole, monkeypatch, capsys):
    """Deterministic, and reported once. The key alone changes nothing but the config in the checkpoint."""
    no_room(monkeypatch)
    assert run(params, Path("run"), mode=MODE) == 0
    line = r"^note +training waits while a checkpoint is written: a copy of \S+ \w+ next to the \S+ \w+ held is too"
    assert len(re.findall(line, capsys.readouterr().err, re.M)) == 1
    monkeypatch.undo()
    threads = []
    monkeypatch.setattr(threading.Thread, "start", lambda self: threads.append(self.name))
    assert run(params, Path("off"), "--set", "trainer.init.checkpoint.background=false", mode=MODE) == 0
    assert "write checkpoint" not in threads and "training waits" not in capsys.readouterr().err
    weights = "checkpoints/step_8/model.safetensors"
    assert tree(Path("off"))[weights] == whole[weights]


@pytest.mark.parametrize("what", ["memory", "threads"])
def test_without_memory_or_threads_training_waits(what, params, whole, monkeypatch, capsys):
    plain = threading.Thread.start

    def fail(*args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def start_thread(self):
        fail() if self.name == "write checkpoint" else plain(self)

    if what == "memory":
        monkeypatch.setattr(HostCopy, "take", fail)
    else:
        monkeypatch.setattr(threading.Thread, "start", start_thread)
    assert run(params, Path("run"), mode=MODE) == 0
    assert tree(Path("run")) == whole
    assert capsys.readouterr().err.count("training waits") == (what == "memory")


def test_what_counts_as_room():
    """Against sums by hand: 4 bytes each of weight, gradient and two moments, and torch's count of steps."""
    made = make_run()
    files, _ = snapshot(made, "f")
    n, parameters = sum(p.numel() for p in made.model.parameters()), len(list(made.model.parameters()))
    copy = 12 * n + 4 * parameters
    for ranks in (1, 2):
        need = copy + ranks * (copy + 4 * n)
        limit = need * 4 // 3
        for total, fits in ((limit + 2, True), (limit - 2, False), (None, True)):
            with pytest.MonkeyPatch.context() as m:
                m.setattr(host, "total_memory", lambda total=total: total)
                assert (explain_shortage(files, made, ranks) is None) == fits


def test_a_copy_is_apart_from_the_run_and_its_memory_is_used_again():
    made, copies = make_run(sparsity={"algorithm": "rigl", "sparsity": 0.5, "update": {"freq": 1}}), HostCopy()
    train_step(made, batch())
    addresses = []
    for _ in range(2):
        live = snapshot(made, "f")[0]
        wanted = {(s, n): x.clone() for s, part in live.items() for n, x in part.items()}
        copied = copies.take(live)
        train_step(made, batch(1))
        copies.wait()
        found = {(s, n): x for s, part in copied.items() for n, x in part.items()}
        assert found.keys() == wanted.keys()
        assert all(torch.equal(x, wanted[k]) and x.dtype == wanted[k].dtype for k, x in found.items())
        addresses.append({k: x.data_ptr() for k, x in found.items()})
    assert addresses[0] == addresses[1]
    other = copies.take({"model": {"w": torch.arange(6).view(2, 3).t()}})
    assert other["model"]["w"].tolist() == [[0, 3], [1, 4], [2, 5]] and other["model"]["w"].is_contiguous()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine")
def test_a_gpu_goes_on_while_its_copy_is_under_way():
    x, copies = torch.zeros(1 << 26, device="cuda"), HostCopy()
    for value in (1.0, 2.0):
        x.fill_(value)
        copied = copies.take({"model": {"x": x}})["model"]["x"]
        x.fill_(-1.0)
        copies.wait()
        assert copied.is_pinned() and bool((copied == value).all())


# --- ways out ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_as_one_that_waits(params, whole, monkeypatch, capsys):
    """The same line and exit code; the step that was being written is not there, and the run goes on from before."""
    outcomes = []
    for name in ("waits", "goes on"):
        os.makedirs(name)
        with pytest.MonkeyPatch.context() as m:
            m.chdir(name)
            no_room(m) if name == "waits" else delay_saves(m)
            fail_at(m, safetensors.torch, "save_file", 9, OSError(errno.ENOSPC, "No space left on device"))
            assert run(params, Path("run"), mode=MODE) == 2
            outcomes.append(error_line(capsys))
            assert sorted(os.listdir("run/checkpoints")) == ["step_0", "step_2"]
            logged = [json.loads(x)["step"] for x in Path("run/metrics.jsonl").read_text().splitlines()]
            assert (max(logged) == 4) == (name == "waits") and max(logged) < STEPS
        with pytest.MonkeyPatch.context() as m:
            m.chdir(name)
            assert run(params, Path("run"), mode=MODE) == 0
        assert tree(Path(name, "run")) == whole
    assert outcomes[0] == outcomes[1]
    assert "run/checkpoints/step_4: checkpoint not written: the disk is full; the last good one is" in outcomes[0]


def test_another_error_waits_for_the_checkpoint_and_saves_its_own_step(params, whole, monkeypatch, capsys):
    delay_saves(monkeypatch, lambda step: time.sleep(0.2))
    fail_at(monkeypatch, Shards, "batch", 8, OSError(errno.EIO, "Input/output error", "a.h5"))
    assert run(params, Path("run"), mode=MODE) == 2
    assert "a.h5: Input/output error" in (line := error_line(capsys)) and "step 7 is saved in" in line
    assert checkpoint.whole("run/checkpoints")[0] == [f"run/checkpoints/step_{n}" for n in (4, 6, 7)]
    monkeypatch.undo()
    assert run(params, Path("run"), mode=MODE) == 0
    assert same_end(whole)


def same_end(whole: dict[str, str]) -> bool:
    """Whether log and last checkpoint are those of the run that was never stopped."""
    found = tree(Path("run"))
    last = [n for n in whole if n.startswith(f"checkpoints/step_{STEPS}/") or n == "metrics.jsonl"]
    return len(last) > 3 and all(found[n] == whole[n] for n in last)


def test_a_signal_during_a_write_keeps_both_steps(params, whole, monkeypatch):
    delay_saves(monkeypatch, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None)
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        run(params, Path("run"), mode=MODE)
    whole_ones = checkpoint.whole("run/checkpoints")[0]
    assert "run/checkpoints/step_4" in whole_ones and len(whole_ones) == 3
    assert 4 < checkpoint.steps("run/checkpoints")[-1] < STEPS
    monkeypatch.undo()
    assert run(params, Path("run"), mode=MODE) == 0
    assert same_end(whole)


INTERRUPTED = """
import os, sys, threading
import safetensors.torch
from modelzoo import cli
plain = safetensors.torch.save_file
def save_file(tensors, path):  # for ever, and inside the library at nearly every moment
    while plain(tensors, path) or "step_4" in str(path):
        open("writing", "w").close()
safetensors.torch.save_file = save_file
sys.exit(cli.main())
"""


def test_ctrl_c_twice_ends_at_once_and_leaves_the_checkpoint_before(params, whole):
    """In an interpreter of its own: its end must not tear the writing thread apart, which would be an abort."""
    steps = ["--set", f"trainer.init.loop={{max_steps: {STEPS * 10**4}, eval_frequency: 3}}"]
    words = ["CPU", "-p", params, "-m", MODE, "-o", "run"]
    command = [sys.executable, "-c", INTERRUPTED, *words, *steps]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    with open("printed", "w+") as printed:
        process = subprocess.Popen(map(str, command), stderr=printed, stdout=printed, env=environment)
        try:
            while not os.path.exists("writing"):
                assert process.poll() is None, Path("printed").read_text()
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            until = time.monotonic() + 60
            while "SIGINT: stopping" not in Path("printed").read_text() and time.monotonic() < until:
                time.sleep(0.02)
            assert process.poll() is None  # it waits for the write, which has no end
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:  # else it would write for ever
            process.kill()
            process.wait()
    assert "stopped; " in (text := Path("printed").read_text()) and "FATAL" not in text and "Traceback" not in text
    assert checkpoint.newest("run/checkpoints") == ("run/checkpoints/step_2", [])
    assert run(params, Path("run"), mode=MODE) == 0
    assert same_end(whole)


def test_what_was_given_up_does_not_take_its_place(monkeypatch):
    """Another process may have the folder by then."""
    begun, go = threading.Event(), threading.Event()
    writer, made = Writer(True, print), make_run()
    files, found = snapshot(made, "f")

    def write(files, placing):
        begun.set()
        go.wait(60)
        return saving.save("root", 5, files, found, None, placing), 5

    assert writer.start(files, made, 1, write) and begun.wait(60)
    monkeypatch.setattr(background.atexit, "register", lambda action: None)  # it would end the tests
    writer.give_up()
    go.set()
    with pytest.raises(GivenUp):
        writer.finish()
    assert checkpoint.steps("root") == [] and os.listdir("root")  # what is left is removed by the next run
    saving.clean("root")
    assert os.listdir("root") == []


# --- kills and forks --------------------------------------------------------------------------------------------------


def kill_in_background(monkeypatch, number: int) -> None:
    """SIGKILL at the `number`-th of these calls from the writing thread."""
    calls = []
    for owner, name in ((safetensors.torch, "save_file"), (os, "makedirs"), (os, "fsync"), (os, "rename")):
        plain = getattr(owner, name)

        def wrapped(*args, plain=plain, **kwargs):
            if in_background():
                calls.append(1)
                if len(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.skipif(sys.platform != "linux", reason="the command is a fork of this process")
def test_a_kill_at_any_moment_of_a_write_leaves_a_whole_checkpoint(params, whole):
    """Two folders made, two files, their syncs, the renames, for each of three checkpoints; then the same bytes."""
    ends = set()
    for number in (1, 4, 9, 10, 11, 14, 20, 22):
        folder = Path(f"kill_{number}")
        folder.mkdir()
        with pytest.MonkeyPatch.context() as m:
            m.chdir(folder)
            delay_saves(m)
            kill_in_background(m, number)
            ends.add(start(["CPU", "-p", params, "-m", MODE, "-o", "run"]).wait())
        newest, damaged = checkpoint.newest(str(folder / "run/checkpoints"))
        assert newest is not None and damaged == []
        with contextlib.chdir(folder):
            assert run(params, Path("run"), mode=MODE) == 0
            assert same_end(whole)
        assert not [n for n in os.listdir(folder / "run/checkpoints") if n.startswith(".")]
    assert ends == {-signal.SIGKILL}


def test_nothing_forks_while_a_checkpoint_is_written(params, monkeypatch):
    """Workers are started after the checkpoint of step 0 is there, and before any other."""
    running, plain = [], feed._start

    def start_workers(loader):
        running.append([t.name for t in threading.enumerate()])
        return plain(loader)

    monkeypatch.setattr(feed, "_start", start_workers)
    delay_saves(monkeypatch, lambda step: time.sleep(0.05))
    assert run(params, Path("run"), mode=MODE) == 0
    assert len(running) == 1 and "write checkpoint" not in running[0]
