"""What a used folder does with the next command: it goes on, refuses, or moves aside. It loses nothing."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelzoo import cli
from modelzoo.config.loading.load import load
from modelzoo.config.loading.yaml12 import dump
from modelzoo.config.trainer import Config
from modelzoo.lock import NAME, Busy, lock_folder
from modelzoo.training.logs.launches import read_launches
from modelzoo.training.runs.folder import RunFolder
from tests.commands import kill, start
from tests.support import examples, write_shard

RIGL = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 2}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shard(tmp_path_factory.mktemp("data") / "a.h5", examples(19, seed=1)).parent


@pytest.fixture
def params(data, tmp_path) -> Path:
    return write_config(tmp_path / "config.yaml", data)


def write_config(path: Path, data: Path, **init) -> Path:
    model = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "filter_size": 32, "vocab_size": 37,
        "max_position_embeddings": 8, "dropout_rate": 0.0, "attention_dropout_rate": 0.0,
    }  # fmt: skip
    sections = {
        "model": model, "optimizer": {"AdamW": {"lr": 1e-2}}, "precision": {"enabled": False}, "sparsity": RIGL,
        "loop": {"max_steps": 4}, "checkpoint": {"steps": 2}, "loggers": ["ProgressLogger"], **init,
    }  # fmt: skip
    loader = {"data_dir": str(data), "batch_size": 4}
    fit = {"train_dataloader": loader, "val_dataloader": [loader]}
    path.write_text(dump({"trainer": {"init": sections, "fit": fit}}))
    return path


def run(params: Path, folder: Path, *more, mode: str = "train") -> int:
    return cli.main(["CPU", "-p", str(params), "-m", mode, "-o", str(folder), *map(str, more)])


def files(folder: Path) -> dict[str, bytes]:
    """All that a run has written, by name; timing is another matter."""
    kept = (
        p
        for p in folder.rglob("*")
        if p.is_file() and p.name not in (NAME, "timing.jsonl", "speed.json", "launches.jsonl")
    )
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept}


def log(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_same_command_with_a_start_goes_on(params, tmp_path, capsys):
    """A run begun from another's checkpoint and stopped goes on from its own newest, not from that one again."""
    assert run(params, tmp_path / "base") == 0
    begin = ["--checkpoint_path", tmp_path / "base", "--load_checkpoint_states", "model"]
    assert run(params, tmp_path / "whole", *begin, "--max_steps", 6) == 0
    assert run(params, tmp_path / "part", *begin, "--max_steps", 3) == 0
    capsys.readouterr()
    assert run(params, tmp_path / "part", *begin, "--max_steps", 6) == 0
    printed = capsys.readouterr().err
    assert "resumed    " in printed and "at step 3" in printed and "--restart would start again" in printed
    assert log(tmp_path / "part") == log(tmp_path / "whole") == [1, 2, 3, 4, 5, 6]
    weights = [
        safetensors.torch.load_file(tmp_path / n / "checkpoints/step_6/model.safetensors") for n in ("part", "whole")
    ]
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())


def test_restart_begins_again_and_moves_the_old_run_aside(params, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(params, folder) == 0
    before = files(folder)
    assert run(params, folder, "--restart", "--seed", 5) == 0
    assert f"moved      the run that was here to {folder}/before_1" in capsys.readouterr().err
    assert files(folder / "before_1") == before and log(folder) == [1, 2, 3, 4]
    assert load(folder / "config.yaml", Config).trainer.init.seed == 5
    assert run(params, folder, "--seed", 5, "--max_steps", 6) == 0 and log(folder)[-1] == 6  # the new run's newest


def test_what_a_run_changes_is_said_and_its_config_is_kept(params, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(params, folder) == 0
    capsys.readouterr()
    more = [
        "--max_steps",
        6,
        "--set",
        "trainer.init.optimizer.AdamW.lr=0.001",
        "--set",
        "trainer.init.loop.grad_accum_steps=2",
    ]
    assert run(params, folder, *more) == 0
    printed = capsys.readouterr().err
    for part in ("optimizer.AdamW.lr: 0.01 -> 0.001", "loop.max_steps: 4 -> 6", "loop.grad_accum_steps: 1 -> 2"):
        assert f"changed    trainer.init.{part}\n" in printed
    was, now = (load(folder / n, Config).trainer.init.loop for n in ("config.until_4.yaml", "config.yaml"))
    assert (was.max_steps, now.max_steps) == (4, 6)
    assert "trainer.init.loop.max_steps" in read_launches(RunFolder(str(folder))).records[-1]["changes"]
    assert run(params, folder, *more) == 0  # nothing to do, and nothing is written
    assert not (folder / "config.until_6.yaml").exists()


def test_a_schedule_that_says_the_same_so_far_may_go_on(data, tmp_path):
    """A longer schedule whose level is today's contradicts nothing; one whose level is another does."""
    gmp = lambda end: {"algorithm": "gmp", "sparsity": {"type": "cubic", "init": 0.5, "final": 0.5, "end": end},
                       "update": {"freq": 2}}  # fmt: skip
    params = write_config(tmp_path / "a.yaml", data, sparsity=gmp(4))
    longer = write_config(tmp_path / "b.yaml", data, sparsity=gmp(8), loop={"max_steps": 6})
    assert run(params, tmp_path / "run") == 0 and run(longer, tmp_path / "run") == 0


def test_damaged_checkpoints_alone_start_nothing(params, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(params, folder) == 0
    for model in (folder / "checkpoints").rglob("model.safetensors"):
        model.write_bytes(model.read_bytes()[:-1])
    before = files(folder)
    capsys.readouterr()
    assert run(params, folder) == 2
    printed = capsys.readouterr().err
    assert (
        printed.count("damaged    ") == 2 and "every checkpoint here is damaged" in printed and files(folder) == before
    )
    assert run(params, folder, "--restart") == 0 and files(folder / "before_1") == before


def test_a_fresh_start_in_a_used_folder_is_refused(params, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(params, folder) == 0
    before = files(folder)
    for more in (
        ["--set", "trainer.init.checkpoint.autoload_last_checkpoint=false"],
        ["--load_checkpoint_states", "model"],
        ["--checkpoint_path", folder / "checkpoints/step_4", "--load_checkpoint_states", "model"],
    ):
        assert run(params, folder, *more) == 2
        assert "--restart" in capsys.readouterr().err and files(folder) == before


def test_a_log_without_a_checkpoint_is_the_same_runs_or_refused(params, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(params, folder, "--set", "trainer.init.checkpoint.steps=null") == 0
    for step in (folder / "checkpoints").iterdir():
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    before = (folder / "metrics.jsonl").read_bytes()
    assert run(params, folder) == 2 and "checkpoint.steps" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert run(params, folder, "--set", "trainer.init.checkpoint.steps=null") == 0
    assert f"{folder}: has a log and no checkpoint" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_an_imported_checkpoint_starts_once_and_then_goes_on(params, tmp_path):
    """The first command after `import` names the folder's own checkpoint and takes its weights; a second goes on."""
    assert run(params, tmp_path / "base", "--set", "trainer.init.sparsity=[]") == 0
    assert cli.main(["export", str(tmp_path / "base"), str(tmp_path / "hf")]) == 0
    folder = tmp_path / "run"
    assert cli.main(["import", str(tmp_path / "hf"), str(folder), "-p", str(params)]) == 0
    command = ["--checkpoint_path", folder / "checkpoints/step_0", "--load_checkpoint_states", "model"]
    assert run(folder / "config.yaml", folder, *command, "--max_steps", 3) == 0
    assert run(folder / "config.yaml", folder, *command, "--max_steps", 6) == 0 and log(folder) == [1, 2, 3, 4, 5, 6]


def test_two_processes_do_not_write_one_folder(params, tmp_path, capsys):
    folder = tmp_path / "run"
    with lock_folder(str(folder)):
        assert run(params, folder) == Busy.exit_code
        printed = capsys.readouterr().err
        assert f"{folder}: another process is writing it" in printed and str(os.getpid()) in printed
    assert run(params, folder) == 0


def no_flock(monkeypatch) -> None:
    import fcntl

    def unable(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unable)


def test_a_file_system_without_locks_keeps_others_out_too(tmp_path, monkeypatch, capsys):
    no_flock(monkeypatch)
    folder = tmp_path / "run"
    with lock_folder(str(folder)):
        assert "has no locks (Function not implemented)" in capsys.readouterr().err
        monkeypatch.setattr(os, "getpid", lambda: 1)  # another process, which lives
        with pytest.raises(Busy, match="another process"), lock_folder(str(folder)):
            pass
    with lock_folder(str(folder), shared=True):
        monkeypatch.setattr(os, "getpid", lambda: os.getppid())
        with lock_folder(str(folder), shared=True), pytest.raises(Busy), lock_folder(str(folder)):
            pass


def test_the_stand_in_of_a_dead_process_holds_nothing(tmp_path, monkeypatch):
    no_flock(monkeypatch)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, "getpid", lambda: 2**22 + 1)  # above what Linux gives out
        with lock_folder(str(tmp_path)):
            left = [p for p in tmp_path.iterdir() if p.name.startswith(f"{NAME}.")]
            kept = left[0].read_bytes()
    left[0].write_bytes(kept)  # as a kill leaves it
    with lock_folder(str(tmp_path)):
        assert not left[0].exists()


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGHUP", "SIGTERM", "SIGINT"])
def test_signals_end_a_run_with_a_checkpoint(name, data, tmp_path):
    params = write_config(tmp_path / "c.yaml", data, loop={"max_steps": 100_000}, checkpoint={})
    folder, number = tmp_path / "run", getattr(signal, name)
    with open(tmp_path / "printed", "w+") as printed:
        process = start(["CPU", "-p", params, "-m", "train_and_eval", "-o", folder], printed)
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_bytes():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == 128 + number
    printed = (tmp_path / "printed").read_text()
    assert f"{name}: stopping after this step" in printed and "-m train_and_eval -o" in printed
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [f"step_{log(folder)[-1]}"]


def test_an_ignored_hangup_stays_ignored():
    from modelzoo.training.signals import catch_interrupts

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a process
    try:
        with catch_interrupts() as seen:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)  # the first one after a warning lets the step end
        assert seen == [signal.SIGUSR1, signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt), catch_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_log_that_cannot_be_written_leaves_a_checkpoint_and_a_line(params, tmp_path, monkeypatch, capsys):
    from modelzoo.training.logs.writing import Logs

    plain = Logs.__init__

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

    def on_a_full_disk(self, *args):
        plain(self, *args)
        self._files["metrics"].file = Full(self._files["metrics"].file)

    with monkeypatch.context() as m:
        m.setattr(Logs, "__init__", on_a_full_disk)
        assert run(params, tmp_path / "run") == 2
    (printed,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "No space left" in printed and "step 1 is saved in" in printed
    assert (tmp_path / "run/checkpoints/step_1").is_dir()
    assert run(params, tmp_path / "run") == 0 and log(tmp_path / "run") == [1, 2, 3, 4]  # its record was in there


def test_a_reader_that_is_gone_ends_no_run(params, tmp_path):
    """`run.py ... 2>&1 | head -1`: the pipe closes, the run goes on to its end."""
    reading, writing = os.pipe()
    with open(writing, "w") as pipe:
        process = start(["CPU", "-p", params, "-m", "train", "-o", tmp_path / "run", "--max_steps", "40"], pipe)
        os.close(reading)
    process.wait()
    assert (tmp_path / "run/checkpoints/step_40").is_dir()
    kill(process)


@pytest.mark.parametrize("loggers,written", [(["ProgressLogger"], False), (["TensorBoardLogger"], True), ([], True)])
def test_the_summary_names_what_is_there(loggers, written, data, tmp_path, capsys):
    params = write_config(tmp_path / "c.yaml", data, loggers=loggers)
    assert run(params, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert ("tensorboard" in printed) is written is (tmp_path / "run/tensorboard").is_dir()


def test_checkpoint_path_takes_a_run_folder(params, tmp_path, capsys):
    assert run(params, tmp_path / "base") == 0
    assert run(params, tmp_path / "next", "--checkpoint_path", tmp_path / "base", "--max_steps", 5) == 0
    assert run(params, tmp_path / "x", "--checkpoint_path", tmp_path / "base", mode="eval") == 0
    assert f"resumed    {tmp_path}/base/checkpoints/step_4 at step 4" in capsys.readouterr().err
    assert log(tmp_path / "next") == [5]
