"""Workers that fail, die or are interrupted: one line, nobody left behind, and the same command goes on."""

import errno
import multiprocessing
import operator
import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing.context import SpawnProcess

import pytest

from data_preprocessing.jobs import engine
from modelzoo.config.errors import UserError


def calls_with(function, *arguments):
    """Enough calls for two workers, of which the last one is `function(*arguments)`."""
    return engine.run(apply, [(operator.add, 1, k) for k in range(4)] + [(function, *arguments)], 2)


def apply(function, *arguments):
    return function(*arguments)


def fail(error):
    raise error


def fail_unpicklably():
    class Local(Exception):
        pass

    raise Local("of no module")


def test_every_answer_comes_once_and_workers_end():
    calls = [(k, 10) for k in range(20)]
    assert dict(engine.run(operator.mul, calls, 3)) == {(k, 10): 10 * k for k in range(20)}
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("error", [UserError("x.xml: bad"), OSError(errno.ENOSPC, "full", "x.h5"), MemoryError("much")])
def test_what_a_call_raises_comes_back_as_it_was(error):
    with pytest.raises(type(error)) as found:
        list(calls_with(fail, error))
    assert str(found.value) == str(error) and multiprocessing.active_children() == []


@pytest.mark.parametrize("call,kind", [
    ((fail, ZeroDivisionError("no")), ZeroDivisionError),
    ((fail_unpicklably,), RuntimeError),
    ((sys.exit, 0), RuntimeError),
])  # fmt: skip
def test_a_fault_in_a_worker_keeps_its_traceback(call, kind):
    with pytest.raises(kind) as found:
        list(calls_with(*call))
    (note,) = found.value.__notes__
    assert note.startswith("in a worker process:\nTraceback") and "in apply" in note


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_worker_that_dies_is_named_and_not_waited_for(name):
    with pytest.raises(UserError, match=f"a worker process was killed by {name}.* at {int(getattr(signal, name))};"):
        list(engine.run(signal.raise_signal, [(0,), (getattr(signal, name),), (0,)], 2))
    assert multiprocessing.active_children() == []
    with pytest.raises(UserError, match="a worker process ended with code 3 at the third"):
        list(engine.run(os._exit, [(3,), (3,)], 2, describe=lambda call: "the third"))


def test_a_caller_that_stops_early_leaves_no_worker():
    answers = engine.run(time.sleep, [(0,), (60,), (60,)], 2)
    next(answers)
    assert len(multiprocessing.active_children()) == 2
    answers.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_workers_that_cannot_be_started_are_reported(allowed, monkeypatch, capsys):
    real, started = SpawnProcess.start, []

    def start(self):
        if len(started) == allowed:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(self)
        real(self)

    monkeypatch.setattr(SpawnProcess, "start", start)
    calls = [(k, 10) for k in range(6)]
    assert dict(engine.run(operator.mul, calls, 3)) == {(k, 10): 10 * k for k in range(6)}
    how = "2 work" if allowed == 2 else "one process does the work"
    said = f"3 workers cannot be started here ([Errno {errno.EAGAIN}] Resource temporarily unavailable): {how}\n"
    assert capsys.readouterr().err == said and multiprocessing.active_children() == []


PARENT = """
import multiprocessing, sys, time
from data_preprocessing.jobs import engine
answers = engine.run(time.sleep, [(0,), (0,), (600,), (600,)], 2)
next(answers), next(answers)
print(*(p.pid for p in multiprocessing.active_children()), flush=True)
next(answers)
"""


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="asks /proc")
def test_workers_of_a_killed_parent_end(repo):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=repo, stdout=subprocess.PIPE, text=True)
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2 and not any(map(gone, children))
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while not all(map(gone, children)):
        assert time.monotonic() < end, "workers live on"
        time.sleep(0.05)
    parent.stdout.close()


def flags(corpus, tokenizer, out, workers):
    return [
        *(sys.executable, "-m", "data_preprocessing", "pubmed", "--input", corpus, "--output", out, "--quiet"),
        *("--tokenizer", tokenizer, "--msl", 64, "--val_fraction", 0.2, "--workers", workers),
        *("--set", "unit_megabytes=0.01", "--set", "buckets=3", "--set", "shard_tokens=3840"),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus, tokenizer, hash_tree, repo):
    out = tmp_path_factory.mktemp("whole") / "out"
    subprocess.run([*map(str, flags(corpus, tokenizer, out, 1))], cwd=repo, check=True, stdout=subprocess.DEVNULL)
    return hash_tree(out)


# What a terminal sends goes to all processes of the group; what a scheduler sends, to the first.
INTERRUPTS = {
    "Ctrl-C, one process": (os.killpg, [signal.SIGINT], 1),
    "Ctrl-C, twice": (os.killpg, [signal.SIGINT, signal.SIGINT], 2),
    "SIGTERM": (os.kill, [signal.SIGTERM], 2),
    "SIGTERM to all, then Ctrl-C": (os.killpg, [signal.SIGTERM, signal.SIGINT], 1),
    "the terminal is gone": (os.killpg, [signal.SIGHUP], 2),
}


@pytest.mark.parametrize("send,numbers,workers", INTERRUPTS.values(), ids=INTERRUPTS)
def test_an_interrupted_job_ends_in_one_line_and_goes_on(
    send, numbers, workers, tmp_path, corpus, tokenizer, hash_tree, whole, repo, request
):
    out, command = tmp_path / "out", [*map(str, flags(corpus, tokenizer, tmp_path / "out", workers))]
    process = subprocess.Popen(command, cwd=repo, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wanted = 1 + list(INTERRUPTS).index(request.node.callspec.id)  # another moment each
    end = time.monotonic() + 60
    while len(list(out.glob("work/*/*.json"))) < wanted and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    for number in numbers:
        send(process.pid, number)
        time.sleep(0.02)
    said = process.communicate(timeout=30)[1]
    assert (process.returncode, said) == (130, "\nstopped; the same command goes on from here\n")
    end = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        while time.monotonic() < end:
            os.killpg(process.pid, 0)
            time.sleep(0.02)
    again = [*map(str, flags(corpus, tokenizer, out, 1))]
    done = subprocess.run(again, cwd=repo, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and hash_tree(out) == whole
    assert [p.name for p in out.rglob(".*") if p.name != ".lock"] == []


def test_errors_travel_whole():
    error = pickle.loads(pickle.dumps(engine._prepare_error(KeyError("x"))))
    assert isinstance(error, KeyError) and "in a worker process" in error.__notes__[0]
