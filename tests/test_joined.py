"""Several processes evaluate, score or fine-tune: the files and tables of one process, whatever becomes of a rank."""

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from modelzoo import cli, modes
from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12
from modelzoo.config.trainer import Config
from modelzoo.evaluation.inference import likelihoods
from modelzoo.models.gpt import GPTModel
from modelzoo.processes import World
from modelzoo.share import parse_share
from tests.evaluation_world import tokenizer, words, world  # noqa: F401
from tests.ranks import Launch, run_ranks
from tests.support import TINY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks of a process with torch in it")

FINETUNE = {
    "init": {
        "optimizer": {"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.0, "lr": 5e-3}},
        "precision": {"enabled": False, "max_gradient_norm": 1.0},
        "loop": {"max_steps": 8, "eval_frequency": 2},
        "checkpoint": {"steps": 2, "keep": None},  # all: a rank that is told to end saves where it is
        "backend": {"num_threads": 1, "reduction": "exact"},
        "loggers": ["ProgressLogger"],
    },
    "finetune": {"batch_size": 8, "masks": "lift", "seeds": [1, 2], "early_stopping": {"patience": 3}},
}
FILES = ("result.json", "predictions.json", "metrics.jsonl")


@pytest.fixture
def one_process(capsys):
    """Runs a command here, alone, in a folder that is made; returns what it prints as its result."""

    def run(arguments: list, folder: Path) -> list[str]:
        folder.mkdir(exist_ok=True)
        before = os.getcwd()
        os.chdir(folder)  # result files hold paths, which must not differ
        try:
            assert cli.main([str(a) for a in arguments]) == 0, capsys.readouterr().err
        finally:
            os.chdir(before)
        return capsys.readouterr().out.splitlines()

    return run


def start(arguments: list, count: int, folder: Path, monkeypatch) -> Launch:
    folder.mkdir(exist_ok=True)
    with monkeypatch.context() as m:
        m.chdir(folder)
        return Launch(arguments, count)


def finish(launch: Launch) -> Launch:
    codes = launch.wait()
    assert not any(codes), (codes, [launch.text(r)[-2000:] for r in range(len(codes))])
    return launch


def has_printed(launch: Launch, lines: list[str]) -> bool:
    """Whether rank 0 has printed each of the lines, and the others nothing at all."""
    found = launch.text(0).splitlines()
    return all(x in found for x in lines) and not any(launch.text(r) for r in range(1, len(launch.ranks)))


@pytest.mark.parametrize("mode", ["eval", "eval_all"])
@pytest.mark.parametrize("batch_size", [3, 16])  # 16: one batch, so rank 1 has none
def test_validation_writes_the_file_of_one_process(mode, batch_size, world, one_process, tmp_path, monkeypatch):  # noqa: F811
    config = yaml.safe_load((world / "run/config.yaml").read_text())
    loader = {"data_dir": str(world / "data/train"), "batch_size": batch_size}
    config["trainer"]["fit"]["val_dataloader"] = loader
    (tmp_path / "c.yaml").write_text(yaml12.dump(config))
    command = ["CPU", "-p", tmp_path / "c.yaml", "-m", mode, "-o", ".", "--checkpoint_path", world / "run"]
    table = one_process(command, tmp_path / "one")
    launch = finish(start(command, 2, tmp_path / "two", monkeypatch))
    assert len(table) == 1 and has_printed(launch, table) and "2 x CPU" in launch.text(0)
    assert (tmp_path / "one/eval.json").read_bytes() == (tmp_path / "two/eval.json").read_bytes()


def score_command(world: Path, folder: Path) -> list:  # noqa: F811
    """One of two tasks compares likelihoods, the other writes answers; two checkpoints."""
    names = []
    for name, more in (("compared", "normalize: pmi\n"), ("written", "decoding: generation\n")):
        (folder / f"{name}.yaml").write_text((world / "task.yaml").read_text() + more)
        names.append(str(folder / f"{name}.yaml"))
    (folder / "template.yaml").write_text((world / "template.yaml").read_text())
    both = f"{world / 'run'},{world / 'run/checkpoints/step_3'}"
    return [
        *("CPU", "-p", world / "run/config.yaml", "-m", "score", "-o", ".", "--checkpoint_path", both),
        *("--tasks", ",".join(names), "--eval_batch_size", 3),
    ]


def read_scores(folder: Path) -> dict:
    """Every file under evaluation/: bytes of predictions, and of results what is not the time."""
    found = {p.name: p.read_bytes() for p in (folder / "evaluation").iterdir() if p.name != ".lock"}
    tasks = json.loads(found.pop("results.json"))["tasks"]
    for result in (r for results in tasks.values() for r in results):
        assert result.pop("time") and result.pop("command")
    return {**found, "tasks": json.dumps(tasks)}


def test_scoring_writes_the_files_of_one_process(world, one_process, tmp_path, monkeypatch):  # noqa: F811
    command = score_command(world, tmp_path)
    table = one_process(command, tmp_path / "one")
    launch = finish(start(command, 3, tmp_path / "three", monkeypatch))
    assert "mean of 2 checkpoints" in "".join(table) and has_printed(launch, table)
    expected = read_scores(tmp_path / "one")
    assert len(expected) == 5 and read_scores(tmp_path / "three") == expected


@pytest.mark.parametrize("way", ["killed", "error"])
def test_a_rank_that_fails_while_scoring_ends_all_and_writes_nothing(way, world, one_process, tmp_path, monkeypatch):  # noqa: F811
    command, logits, calls = score_command(world, tmp_path), likelihoods._logits, []

    def fail(*arguments):
        calls.append(1)
        if os.environ.get("RANK") == "1" and len(calls) > 3:
            if way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("its disk is gone")
        return logits(*arguments)

    with monkeypatch.context() as m:
        m.setattr(likelihoods, "_logits", fail)
        launch = start(command, 2, tmp_path / "run", monkeypatch)
        codes = launch.wait()
    (line,) = [x for x in launch.text(0).splitlines() if x.startswith("error: ")]
    assert codes == ([75, -signal.SIGKILL] if way == "killed" else [2, 2])
    assert ("rank 1 of 2: gone" if way == "killed" else "rank 1 of 2 has ended: its disk is gone") in line
    assert launch.text(1) == "" and not (tmp_path / "run/evaluation/results.json").exists()
    one_process(command, tmp_path / "run")
    one_process(command, tmp_path / "one")
    assert read_scores(tmp_path / "run") == read_scores(tmp_path / "one")


def finetune_command(world: Path, path: Path, **changes) -> list:  # noqa: F811
    """`changes`: sections of the config to replace keys of."""
    trainer = {k: {**v, **changes.get(k, {})} for k, v in FINETUNE.items()}
    trainer["finetune"]["task"] = str(world / "task.yaml")
    path.write_text(yaml12.dump({"trainer": trainer}))
    return ["CPU", "-p", path, "-m", "finetune", "-o", "run", "--checkpoint_path", world / "run"]


def read_runs(folder: Path, seeds=(1, 2)) -> dict[str, bytes]:
    """All that a fine-tuning leaves and that does not name times or launches, weights and moments included."""
    run = folder / "run"
    found = [run / "results.json", *run.rglob("*.safetensors")]
    found += [run / f"fold_0/seed_{s}/{n}" for s in seeds for n in FILES]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def test_fine_tuning_ends_as_with_one_process(world, one_process, tmp_path, monkeypatch):  # noqa: F811
    command = finetune_command(world, tmp_path / "c.yaml")
    table = one_process(command, tmp_path / "one")
    launch = finish(start(command, 2, tmp_path / "two", monkeypatch))
    assert any(x.startswith("test (20 examples, 2 runs)") for x in table) and has_printed(launch, table)
    expected = read_runs(tmp_path / "one")
    assert len(expected) > 10 and read_runs(tmp_path / "two") == expected
    for seed in (1, 2):
        (line,) = (tmp_path / f"two/run/fold_0/seed_{seed}/launches.jsonl").read_text().splitlines()
        assert json.loads(line)["processes"] == 2
    assert not list((tmp_path / "two").rglob(".tmp-*"))
    again = start(command, 2, tmp_path / "two", monkeypatch)
    assert has_printed(finish(again), table) and read_runs(tmp_path / "two") == expected  # nothing is done twice


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_rank_s_fine_tuning_goes_on_with_another_number(seed, world, one_process, tmp_path, monkeypatch):  # noqa: F811
    draw = random.Random(seed)
    command = finetune_command(world, tmp_path / "c.yaml")
    one_process(command, tmp_path / "whole")
    launch = start(command, 2, tmp_path / "part", monkeypatch)
    own, victim = tmp_path / f"part/run/fold_0/seed_{seed + 1}", launch.ranks[1 - seed]
    while not list(own.glob("checkpoints/step_*")) and victim.poll() is None:
        time.sleep(0.005)
    time.sleep(draw.random() * 0.2)
    victim.send_signal(signal.SIGKILL)
    launch.wait()
    finish(start(command, 4 - 3 * seed, tmp_path / "part", monkeypatch))
    part, whole = read_runs(tmp_path / "part"), read_runs(tmp_path / "whole")
    saved = {name.rpartition("/")[0] for name in part.keys() - whole.keys()}  # by the rank that was left
    assert len(saved) <= 1 and all("/checkpoints/step_" in name for name in saved)
    assert part.keys() >= whole.keys()
    assert {name: part[name] for name in whole} == whole


def test_a_run_sums_as_the_command_s_finished_ones_did(world, one_process, tmp_path, monkeypatch):  # noqa: F811
    """Nothing in the config asks for exact sums: several processes have made them so for the first run."""
    short = {"init": {**FINETUNE["init"], "backend": {"num_threads": 1}, "loop": {"max_steps": 3}}}
    command = finetune_command(world, tmp_path / "c.yaml", **short)
    finish(start([*command, "--set", "trainer.finetune.seeds=[1]"], 2, tmp_path / "part", monkeypatch))
    one_process(command, tmp_path / "part")
    one_process([*command, "--set", "trainer.init.backend.reduction=exact"], tmp_path / "exact")
    ours, theirs = (
        {n: x for n, x in read_runs(tmp_path / f).items() if n.endswith((".safetensors", "metrics.jsonl"))}
        for f in ("part", "exact")
    )
    assert len(ours) > 4 and ours == theirs


def test_one_process_alone_sums_as_its_batches_come(world, one_process, tmp_path):  # noqa: F811
    short = {"init": {**FINETUNE["init"], "backend": {}, "loop": {"max_steps": 2}}}
    one_process(finetune_command(world, tmp_path / "c.yaml", **short), tmp_path)
    for seed in (1, 2):
        run = tmp_path / f"run/fold_0/seed_{seed}"
        assert json.loads((run / "launches.jsonl").read_text())["reduction"] == "as they come"
        assert not {"slices", "threads"} & json.loads((run / "checkpoints/step_2/state.json").read_text()).keys()


def test_fine_tuning_that_is_not_finite_on_one_rank_stops_all(world, tmp_path, monkeypatch):  # noqa: F811
    forward, calls = GPTModel.forward, []

    def spoil(self, batch, denominator):
        calls.append(1)
        bad = os.environ.get("RANK") == "1" and len(calls) > 8  # four slices a step: the third step is not finite
        return forward(self, batch, denominator) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(GPTModel, "forward", spoil)
    launch = start(finetune_command(world, tmp_path / "c.yaml"), 2, tmp_path, monkeypatch)
    assert launch.wait() == [2, 2]
    (line,) = [x for x in launch.text(0).splitlines() if x.startswith("error: ")]
    assert "step 3: loss nan, gradient norm nan: not finite" in line and "step 2 is saved" in line
    assert launch.text(1) == "" and not (tmp_path / "run/fold_0/seed_1/result.json").exists()


def test_a_batch_that_ranks_cannot_share_is_refused_by_its_own_key(world, tmp_path, monkeypatch):  # noqa: F811
    launch = start(finetune_command(world, tmp_path / "c.yaml"), 3, tmp_path, monkeypatch)
    assert launch.wait() == [2] * 3
    (line,) = [x for x in launch.text(0).splitlines() if x.startswith("error: ")]
    assert line.startswith("error: trainer.finetune.batch_size 8 is not divisible by 3 processes; take one of 1, 2, 4")


@pytest.mark.parametrize("arguments,mode", [
    (["-m", "eval"], "eval"), (["-meval"], "eval"), (["--mode=score"], "score"), (["-m", "evaluate"], "score"),
    (["-m", "bench", "-o", "eval"], "bench"), (["export", "train", "eval"], None), (["-p", "x", "-m"], None),
])  # fmt: skip
def test_the_mode_is_known_before_the_command_line_is_read(arguments, mode):
    assert cli._find_mode(arguments) == mode


def test_what_ranks_do_not_share_each_does_whole_and_says_so(world, tmp_path, monkeypatch):  # noqa: F811
    launch = Launch(["export", world / "run", tmp_path / "hf", "--help"], 2)
    assert launch.wait() == [0, 0]
    note = "note       2 processes were started, and each does the whole of export"
    assert note in launch.text(0) and note not in launch.text(1)


@pytest.mark.parametrize("mode", modes.MODES)
def test_each_mode_is_shared_or_reports_that_it_is_not(mode, monkeypatch, capsys):
    """Under torchrun, by its variables; a study takes the rank for its share of the runs, a plan runs nothing."""
    for name, value in World(0, 2, 0, "127.0.0.1", 1).environment().items():
        monkeypatch.setenv(name, value)
    for dry in (False, True):
        args = argparse.Namespace(mode=mode, devices=None, validate_only=dry, compile_only=False)
        assert cli._count_processes(args, Config.model_validate({"trainer": {"init": {"model": TINY}}})) == 1
        err, what = capsys.readouterr().err, "the dry run" if dry and mode in modes.JOINED else f"-m {mode}"
        noted = err == f"note       2 processes were started, and each does the whole of {what}\n"
        assert noted if mode != "plan" and (dry or mode not in modes.JOINED) else not err
    assert ("devices" in modes.MODES[mode].flags) == (
        mode in (*modes.JOINED, "plan")
    )  # where it is no flag, it is refused
    assert parse_share(None) == (0, 2)


def test_a_plan_needs_no_other_rank(world):  # noqa: F811
    launch = run_ranks(["CPU", "-p", world / "run/config.yaml", "-m", "plan"], 2)
    assert "processes were started" not in launch.text(0)
