"""A study end to end on toys: equal FLOPs, finished runs passed over, killed ones gone on with, failures named."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12
from modelzoo.config.loading.load import dump
from modelzoo.lock import lock_folder
from modelzoo.models.gpt import GPTModel
from modelzoo.models.shapes import list_parameters
from modelzoo.optim.groups import param_groups
from modelzoo.optim.lr import learning_rate
from modelzoo.study.execution import run as study
from modelzoo.study.matrix import matrix as grid
from tests import commands
from tests.study.conftest import RIGL, tiny_config

STEP = 48 * (6 * 2 * (4 * 16 * 16 + 2 * 16 * 32) + 12 * 2 * 12 * 16 + 6 * 16 * 37)  # dense FLOPs of a toy step


@pytest.fixture
def base(data, tmp_path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(dump(tiny_config(data, tmp_path / "unused", optimizer={"AdamW": {}})))
    return path


@pytest.fixture
def forked(monkeypatch):
    commands.fork_runs_of_studies(monkeypatch)


def write(base: Path, **keys) -> str:
    path = base.parent / "study.yaml"
    keys.setdefault("axes", {"method": {"dense": {}, "s75": {"trainer.init.sparsity": 0.75}}})
    whole = {
        "base": base.name, "output": str(base.parent / "out"), "budget": {"flops": 10.0 * STEP},
        "learning_rate": {"peak": 0.01}, **keys,
    }  # fmt: skip
    path.write_text(yaml12.dump({"study": whole}))
    return str(path)


def records(folder: Path, kind: str) -> list[dict]:
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["kind"] == kind]


def test_runs_meet_at_equal_flops(base):
    rigl = {**RIGL, "update": {"freq": "25%", "stop": "90%"}}
    path = write(base, axes={"method": {"dense": {}, "s75": {"trainer.init.sparsity": 0.75}, "rigl": {
        "trainer.init.sparsity": rigl}}})  # fmt: skip
    cells = {c.label: c for c in grid.read_matrix(path, [], None).cells}
    assert cells["dense"].steps == 10 and cells["s75"].steps > cells["rigl"].steps > 10
    for cell in cells.values():
        assert abs(cell.flops - 10 * STEP) < 0.5 * STEP
    assert cells["rigl"].config.trainer.init.sparsity[0].update.freq == round(0.25 * cells["rigl"].steps)


def test_matrices_have_rates_of_their_own(base):
    path = write(base, learning_rate={"peak": [1e-3, 4e-3], "others": 2e-2})
    for cell in grid.read_matrix(path, [], None).cells:
        init = cell.config.trainer.init
        model = GPTModel(init.model)
        groups = param_groups(model, {n: s.kind for n, s in list_parameters(init.model).items()}, 0.0, init.model)
        peak = max(learning_rate(init.schedulers[0].value, step) for step in range(cell.steps + 1))
        rates = {name: peak * group["lr_scale"] for group in groups for name in group["names"]}
        matrices = {name for name, p in model.named_parameters() if p.ndim == 2 and "decoder" in name}
        assert 0 < len(matrices) < len(rates)
        assert rates == {name: pytest.approx(cell.peak if name in matrices else 2e-2) for name in rates}
    group = {"param_filter_patterns": "*embedding*weight", "scale": 2.0}
    both = {"method": {"x": {"trainer.init.model.lr_adjustment_groups.embedding": group}}}
    with pytest.raises(UserError, match=r"in x: .*lr_adjustment_groups.*: learning_rate\.others sets it"):
        grid.read_matrix(write(base, axes=both, learning_rate={"peak": 1e-3, "others": 2e-2}), [], None)


def test_other_budgets(base):
    by = lambda **budget: [c.steps for c in grid.read_matrix(write(base, budget=budget), [], None).cells]
    assert by(steps=7) == [7, 7]
    assert by(tokens=5 * 48) == [5, 5]


def test_mistakes_name_the_file_and_the_setting(base):
    path = write(base, axes={"method": {"bad": {"trainer.init.sparsty": 0.5}}})
    with pytest.raises(UserError, match=r"study\.yaml: in bad: .*unknown key.*did you mean 'sparsity'"):
        grid.read_matrix(path, [], None)
    for keys, said in (
        ({"budget.days": 5}, r"study\.yaml: in bad: budget\.days=5: unknown key 'budget\.days'; known keys: flops"),
        ({"budget": {"days": 5}}, r"study\.yaml: in bad: budget\.days=5: unknown key 'budget\.days'"),
        ({"budget.steps": "x"}, r"study\.yaml: in bad: budget\.steps='x': budget\.steps: takes an integer, got 'x'$"),
        ({"learning_rate.peak": -1}, r"in bad: .*peak.*: must be above 0, got -1"),
        ({"budget": "null"}, r"axes\.method\.bad: 'budget' is no key; write .* budget\.\.\. or"),
    ):
        with pytest.raises(UserError, match=said):
            grid.read_matrix(write(base, axes={"method": {"bad": keys}}), [], None)


def test_every_setting_belongs_to_exactly_one_share(base, monkeypatch):
    taken = []
    monkeypatch.setattr(study, "_run", lambda matrix, cell, options, progress: taken.append(cell.name) or True)
    monkeypatch.setattr(study, "_close", lambda *rest: None)
    path = write(base, axes={"a": dict.fromkeys("xyz"), "b": dict.fromkeys("uv")}, seeds=[1, 2])
    for i in range(4):
        study.run_study(path, [], None, study.Options("CPU", (i, 4)))
    assert sorted(taken) == sorted(c.name for c in grid.read_matrix(path, [], None).cells)


def test_a_run_that_another_process_is_at_is_passed_over(base, forked, capsys):
    path, run = write(base, axes={"method": {"dense": {}}}), base.parent / "out" / "runs" / "dense-seed1"
    with lock_folder(str(run)):
        study.run_study(path, [], None, study.Options("CPU"))
        assert os.listdir(run) == [".lock"]
    printed = capsys.readouterr()
    assert "busy       another process is at dense-seed1" in printed.err and "open       1 runs" in printed.out


def test_a_run_whose_last_validation_was_not_made_is_not_finished(base, forked, capsys):
    path, run = write(base, axes={"method": {"dense": {}}}), base.parent / "out" / "runs" / "dense-seed1"
    study.run_study(path, [], None, study.Options("CPU"))
    state, wanted = run / "checkpoints" / "step_10" / "state.json", records(run, "validation")
    cell = grid.read_matrix(path, [], None).cells[0]
    assert wanted and study.files(grid.read_matrix(path, [], None), cell).is_finished
    assert "has no validation loss" not in capsys.readouterr().err
    log = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("".join(x for x in log.splitlines(True) if '"validation"' not in x))
    with pytest.raises(UserError, match=r"none of these runs was validated \(.*dense-seed1\); train with"):
        study.run_study(path, [], None, study.Options("CPU"))
    assert f"{run / 'metrics.jsonl'}: has no validation loss of the last step, 10" in capsys.readouterr().err
    (run / "metrics.jsonl").write_text(log)
    for text in (json.dumps({**json.loads(state.read_text()), "unassessed": True}), "{", "[]"):
        state.write_text(text)
        assert not study.files(grid.read_matrix(path, [], None), cell).is_finished


def test_the_best_rate_is_finite_and_lowest(base):
    path = write(base, learning_rate={"peak": [1e-3, 1e-2, 1e-1]}, axes={"method": {"dense": {}}})
    matrix = grid.read_matrix(path, [], None)
    assert study.best_peak(matrix, matrix.settings[0]) == 1e-3  # none has ended
    for cell, loss in zip(matrix.settings[0], ("3.0", "2.5", "NaN"), strict=True):
        folder = Path(study.files(matrix, cell).folder)
        folder.mkdir(parents=True)
        record = f'{{"step": {cell.steps}, "kind": "validation", "loss": {loss}}}'
        (folder / "metrics.jsonl").write_text(record + "\n")
    assert study.best_peak(matrix, matrix.settings[0]) == 1e-2


@pytest.mark.slow
def test_a_study_from_file_to_report_and_again(base, forked, capsys):
    path = write(base, seeds=[1, 2], axes={"method": {
        "dense": {}, "broken": {"trainer.fit.train_dataloader.data_dir": str(base.parent / "missing")}}})  # fmt: skip
    with pytest.raises(UserError, match="2 of 4 runs failed: broken-seed1, broken-seed2"):
        study.run_study(path, [], None, study.Options("CPU"))
    printed = capsys.readouterr()
    assert "FAILED     broken-seed1 (exit code 2): error: " in printed.err and "missing" in printed.err
    out = base.parent / "out"
    for seed in (1, 2):
        last = records(out / "runs" / f"dense-seed{seed}", "train")[-1]
        assert (last["step"], last["flops"]) == (10, 10 * STEP)
    assert (out / "report.html").exists() and "report     " in printed.out
    before = (out / "runs" / "dense-seed1" / "timing.jsonl").read_bytes()
    (base.parent / "missing").symlink_to(tiny_config(base.parent, base).trainer.fit.train_dataloader.data_dir[0])
    with pytest.raises(UserError, match="2 of 4 runs failed"):
        study.run_study(path, [], None, study.Options("CPU"))
    assert "finished   dense-seed1" in capsys.readouterr().err
    assert (out / "runs" / "dense-seed1" / "timing.jsonl").read_bytes() == before


@pytest.mark.slow
def test_the_best_rate_of_the_first_seed_trains_the_others(base, forked):
    path = write(base, seeds=[1, 2], learning_rate={"peak": [1e-7, 1e-2]}, axes={"method": {"dense": {}}})
    study.run_study(path, [], None, study.Options("CPU"))
    runs = sorted(p.name for p in (base.parent / "out" / "runs").iterdir())
    assert runs == ["dense-lr0.01-seed1", "dense-lr0.01-seed2", "dense-lr1e-07-seed1"]
    assert "Learning rates tried" in (base.parent / "out" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_interrupted_it_saves_and_goes_on_where_it_was(base, request, number, code, monkeypatch):
    """The log of a study that was stopped in the middle of a run equals that of one that was not.

    Its run ends with it, even if the study is killed.
    """
    begin = "from modelzoo.cli import main; "
    assert begin in study.RUN
    monkeypatch.setattr(study, "RUN", study.RUN.replace(begin, f"from tests.study.held import hold; hold(30); {begin}"))
    keys = {"budget": {"steps": 60}, "axes": {"method": {"rigl": {"trainer.init.sparsity": RIGL}}},
            "common": {"trainer.init.loop.eval_frequency": 60,
                       "trainer.init.checkpoint": {"steps": 20, "keep": 1}}}  # fmt: skip
    path, out = write(base, **keys), base.parent / "out"
    log = out / "runs" / "rigl-seed1" / "metrics.jsonl"
    env = {**os.environ, "PYTHONPATH": os.getcwd()}  # its run is an interpreter of its own, as a user's is
    with open(base.parent / "printed", "w+") as printed:
        child = commands.start(["CPU", "-p", path, "-m", "study"], printed, env)
        while child.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 20):
            time.sleep(0.005)
        child.send_signal(number)
        assert child.wait() == code, (base.parent / "printed").read_text()
    text = out / "logs" / "rigl-seed1.txt"
    until = time.monotonic() + 300  # a run that no signal reaches would wait for ever
    while "it resumes exactly" not in text.read_text():
        assert time.monotonic() < until, "the run of a killed study goes on"
        time.sleep(0.05)
    stopped = records(log.parent, "train")[-1]["step"]
    assert 20 < stopped < 60 and (log.parent / "checkpoints" / f"step_{stopped}").is_dir()
    request.getfixturevalue("forked")
    study.run_study(path, [], None, study.Options("CPU"))
    study.run_study(path, [], str(base.parent / "whole"), study.Options("CPU"))
    assert log.read_bytes() == (base.parent / "whole" / "runs" / "rigl-seed1" / "metrics.jsonl").read_bytes()


def test_a_changed_study_does_not_mix_with_the_old(base, forked):
    path = write(base, axes={"method": {"dense": {}}})
    study.run_study(path, [], None, study.Options("CPU"))
    with pytest.raises(UserError, match="began with another config"):
        study.run_study(path, ["study.learning_rate.peak=0.02"], None, study.Options("CPU"))


@pytest.mark.slow
def test_ray_runs_the_same_matrix(base, capfd):
    """Each setting in a Ray task: the same runs with the same losses as one after the other here."""
    ray = pytest.importorskip("ray")
    path = write(base, axes={"method": {"dense": {}, "s75": {"trainer.init.sparsity": 0.75}}})
    try:
        study.run_study(path, [], None, study.Options("CPU", engine="ray"))
    finally:
        ray.shutdown()
    assert "2/2 settings" in capfd.readouterr().err
    study.run_study(path, ['study.cells=[{"method": "s75"}]'], str(base.parent / "here"), study.Options("CPU"))
    logs = [base.parent / place / "runs" / "s75-seed1" / "metrics.jsonl" for place in ("out", "here")]
    assert logs[0].read_bytes() == logs[1].read_bytes()
