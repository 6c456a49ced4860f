"""Whatever ends a run early leaves all of its work, and the resumed run equals the uninterrupted one."""

import errno
import json
import os
import pkgutil
import shutil
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelzoo import cli
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.logs import writing
from modelzoo.training.logs.writing import Logs
from tests.commands import start
from tests.support import examples, write_shard
from tests.training.test_promises import run, write_config

STEPS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shard(tmp_path_factory.mktemp("data") / "a.h5", examples(19, seed=1)).parent


@pytest.fixture
def params(data, tmp_path) -> Path:
    return write_config(tmp_path / "config.yaml", data, loop={"max_steps": STEPS, "eval_frequency": 2}, checkpoint={})


def result(folder: Path) -> tuple[bytes, dict[str, torch.Tensor]]:
    weights = safetensors.torch.load_file(folder / f"checkpoints/step_{STEPS}/model.safetensors")
    return (folder / "metrics.jsonl").read_bytes(), weights


def assert_same(ours: Path, reference: Path) -> None:
    a, b = result(ours), result(reference)
    assert a[0] == b[0]
    assert a[1].keys() == b[1].keys() and all(torch.equal(x, b[1][name]) for name, x in a[1].items())


def error_lines(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


def fail_at(monkeypatch, owner, name: str, number: int, error: Exception) -> None:
    """The `number`-th call of `owner.name` raises `error`."""
    plain, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise error
        return plain(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


CASES = {
    "data": ("modelzoo.data.hdf5.Shards.batch", 4, OSError(errno.EIO, "Input/output error", "a.h5"), 2),
    "validation": ("modelzoo.tasks.pretrain.validate", 2, OSError(errno.EIO, "Input/output error", "v.h5"), 2),
    "log": ("modelzoo.training.logs.writing.write_whole", 5, OSError(errno.ENOSPC, "No space left", "metrics"), 2),
    "fault": ("modelzoo.tasks.pretrain.validate", 3, RuntimeError("a fault"), 70),
}


@pytest.mark.parametrize("case", CASES)
def test_what_fails_between_two_steps_leaves_a_checkpoint(case, params, tmp_path, monkeypatch, capsys):
    """There are no checkpoints on the way: without one at the failure the run would begin again."""
    where, number, error, code = CASES[case]
    assert run(params, tmp_path / "whole", mode="train_and_eval") == 0
    folder = tmp_path / "part"
    with monkeypatch.context() as m:
        owner, _, name = where.rpartition(".")
        fail_at(m, pkgutil.resolve_name(owner), name, number, error)
        capsys.readouterr()
        assert run(params, folder, mode="train_and_eval") == code
    (line,) = error_lines(capsys)
    (step,) = checkpoint.steps(str(folder / "checkpoints"))
    assert 0 < step < STEPS
    if code == 2:
        assert f"step {step} is saved in {folder}/checkpoints/step_{step}" in line
    assert run(params, folder, mode="train_and_eval") == 0
    assert_same(folder, tmp_path / "whole")


def test_every_record_that_cannot_be_written_is_made_up(params, tmp_path, monkeypatch, capsys):
    """Also the one before a validation that is due: what the run has logged by then is not made anew."""
    more = ["--set", "trainer.init.loop.max_steps=2"]
    assert run(params, tmp_path / "whole", *more, mode="train_and_eval") == 0
    wanted = (tmp_path / "whole/metrics.jsonl").read_bytes()
    for number in range(1, 7):  # two steps and a validation, of each a metrics and a timing record
        folder = tmp_path / f"part{number}"
        with monkeypatch.context() as m:
            error = OSError(errno.EACCES, "Permission denied", "log")
            fail_at(m, writing, "write_whole", number, error)
            assert run(params, folder, *more, mode="train_and_eval") == 2
        assert run(params, folder, *more, mode="train_and_eval") == 0
        assert (folder / "metrics.jsonl").read_bytes() == wanted, number


def test_a_validation_that_failed_at_the_last_step_is_made_up(params, tmp_path, monkeypatch, capsys):
    assert run(params, tmp_path / "whole", mode="train_and_eval") == 0
    from modelzoo.tasks import pretrain

    with monkeypatch.context() as m:
        fail_at(m, pretrain, "validate", STEPS // 2, OSError(errno.EIO, "Input/output error", "v.h5"))
        assert run(params, tmp_path / "part", mode="train_and_eval") == 2
    assert checkpoint.steps(str(tmp_path / "part/checkpoints")) == [STEPS]
    assert run(params, tmp_path / "part", mode="train_and_eval") == 0
    assert_same(tmp_path / "part", tmp_path / "whole")


def test_a_fault_inside_a_step_saves_nothing_half_done(params, tmp_path, monkeypatch):
    """Weights may be of one step and moments of another then."""
    from modelzoo.backends import step

    with monkeypatch.context() as m:
        fail_at(m, step, "_take", 3, RuntimeError("inside"))
        assert run(params, tmp_path / "run", "--set", "trainer.init.checkpoint.steps=2") == 70
    assert checkpoint.steps(str(tmp_path / "run/checkpoints")) == [2]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_step_that_is_not_finite_leaves_the_last_good_weights(policy, params, tmp_path, monkeypatch, capsys):
    """And a resumed run repeats that step: here without the fault, so it ends as one that never had it."""
    from modelzoo.models.gpt import GPTModel

    more = ["--set", f"trainer.init.loop.on_nonfinite={policy}", "--set", "trainer.init.loop.max_skipped_steps=1"]
    assert run(params, tmp_path / "whole", *more) == 0
    plain, calls = GPTModel.forward, []

    def poisoned(self, *args):
        calls.append(1)
        found = plain(self, *args)
        return found * float("nan") if len(calls) >= 5 else found

    with monkeypatch.context() as m:
        m.setattr(GPTModel, "forward", poisoned)
        capsys.readouterr()
        assert run(params, tmp_path / "part", *more) == 2
    (line,) = error_lines(capsys)
    good = 4 if policy == "stop" else 5  # of the two skipped steps the first is within the budget
    assert f"step {good} is saved" in line and checkpoint.steps(str(tmp_path / "part/checkpoints")) == [good]
    state = checkpoint.load(str(tmp_path / f"part/checkpoints/step_{good}"))[1]
    assert state["finite"] and state["skipped"] == good - 4
    if policy == "stop":
        assert run(params, tmp_path / "part", *more) == 0
        assert_same(tmp_path / "part", tmp_path / "whole")


def test_an_error_while_saving_on_the_way_out_hides_nothing(params, tmp_path, monkeypatch, capsys):
    from modelzoo.tasks import pretrain

    fail_at(monkeypatch, pretrain, "validate", 1, OSError(errno.EIO, "Input/output error", "v.h5"))
    fail_at(monkeypatch, saving, "save", 1, saving.NotWritten("step_2: checkpoint not written"))
    assert run(params, tmp_path / "run", mode="train_and_eval") == 2
    (line,) = error_lines(capsys)
    assert "v.h5: Input/output error" in line and "step_2: checkpoint not written" in line


@pytest.mark.parametrize("name", ["SIGQUIT", "SIGXCPU"])
def test_every_signal_that_may_end_a_run_saves_it(name, data, tmp_path):
    params = write_config(tmp_path / "c.yaml", data, loop={"max_steps": 100_000}, checkpoint={})
    folder, number = tmp_path / "run", getattr(signal, name)
    with open(tmp_path / "printed", "w+") as printed:
        process = start(["CPU", "-p", params, "-m", "train", "-o", folder], printed)
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_bytes():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert f"{name}: stopping after this step" in (tmp_path / "printed").read_text()
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert checkpoint.steps(str(folder / "checkpoints")) == [last]


# --- what is removed while a run goes on ------------------------------------------------------------------------------


def remove_at(monkeypatch, number: int, action) -> None:
    """Do `action` before the `number`-th record is written."""
    plain, calls = Logs.write, []

    def wrapped(self, *args):
        calls.append(1)
        if len(calls) == number:
            action()
        return plain(self, *args)

    monkeypatch.setattr(Logs, "write", wrapped)


def test_a_log_that_is_removed_is_restored_whole(params, tmp_path, monkeypatch, capsys):
    assert run(params, tmp_path / "whole") == 0
    folder = tmp_path / "run"
    remove_at(monkeypatch, 4, (lambda: os.remove(folder / "metrics.jsonl")))
    assert run(params, folder) == 0
    assert f"restored   {folder}/metrics.jsonl: it was removed" in capsys.readouterr().err
    assert_same(folder, tmp_path / "whole")


def test_a_removed_run_folder_is_noticed(params, tmp_path, monkeypatch, capsys):
    """What can be had is written anew, what cannot is named, and the exit code says so."""
    folder = tmp_path / "run"
    remove_at(monkeypatch, 4, lambda: shutil.rmtree(folder))
    assert run(params, folder) == 2
    printed = capsys.readouterr()
    assert "config.yaml, launches.jsonl were removed during the run" in printed.err
    wrote = printed.out.split("wrote")[1].split("next")[0]
    assert "config.yaml" not in wrote and f"step_{STEPS}" in wrote
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == STEPS


def test_removed_checkpoints_are_noticed(params, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    remove_at(monkeypatch, 5, lambda: shutil.rmtree(folder / "checkpoints"))
    keys = ("--set", "trainer.init.checkpoint.steps=2", "--set", "trainer.init.checkpoint.background=false")
    assert run(params, folder, *keys) == 0  # removed while it is written, it would be one that cannot be written
    assert f"missing    {folder}/checkpoints/step_4: it was removed during the run" in capsys.readouterr().err
    assert checkpoint.steps(str(folder / "checkpoints")) == [6, STEPS]


# --- two processes ----------------------------------------------------------------------------------------------------


def test_one_root_of_checkpoints_is_one_runs(params, tmp_path, capsys):
    """Two run folders that share a root of checkpoints are one folder as far as writing goes."""
    from modelzoo.lock import lock_folder

    more = ["--set", f"trainer.init.checkpoint.checkpoint_root={tmp_path / 'root'}"]
    with lock_folder(str(tmp_path / "root")):
        assert run(params, tmp_path / "run", *more) == 75
    assert run(params, tmp_path / "run", *more) == 0
    assert run(params, tmp_path / "run", *more) == 0  # and it does not lock itself out


def test_reading_modes_do_not_wait_for_a_run(params, tmp_path):
    """`-m eval` reads checkpoints and replaces eval.json in one rename: it may go on next to a run."""
    from modelzoo.lock import lock_folder

    folder = tmp_path / "run"
    assert run(params, folder) == 0
    with lock_folder(str(folder)):
        assert run(params, folder) == 75
        assert run(params, folder, mode="eval") == 0
    assert json.loads((folder / "eval.json").read_text())[0]["step"] == STEPS
    assert cli.main(["CPU", "-p", str(params), "-m", "eval", "-o", str(folder)]) == 0


def test_what_a_kill_left_of_the_last_rotation_is_removed(params, tmp_path):
    """Also where the run has ended, and nothing is to do."""
    folder = tmp_path / "run"
    assert run(params, folder) == 0
    (folder / "checkpoints/.tmp-old_2.1").mkdir()
    (folder / "checkpoints/.tmp-old_2.1/model.safetensors").write_text("")
    assert run(params, folder) == 0
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [f"step_{STEPS}"]
