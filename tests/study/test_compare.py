"""`run.py compare` says what runs differ in and draws their curves."""

import json
import re
import shutil

import pytest

from modelzoo.config.errors import UserError
from modelzoo.study.reports.compare import compare_runs


def test_compare_says_and_draws_it(runs, tmp_path, capsys):
    compare_runs([str(runs / n) for n in ("dense-seed1", "s75-seed1")], str(tmp_path / "c.svg"))
    printed = capsys.readouterr().out
    assert "init.sparsity.0.sparsity.value" in printed and "s75-seed1: validation loss less dense-seed1's: " in printed
    assert printed.count(" at 12") == 1 and (tmp_path / "c.svg").stat().st_size > 1000


def test_runs_that_took_no_step_are_not_compared(runs, tmp_path):
    for name in ("dense-seed1", "s75-seed1"):
        (tmp_path / name).mkdir()
        shutil.copy(runs / name / "config.yaml", tmp_path / name)
        for log in ("metrics.jsonl", "timing.jsonl"):
            (tmp_path / name / log).touch()
    with pytest.raises(UserError, match=r"compare: no step is in the log of .*, so there is nothing to compare"):
        compare_runs([str(tmp_path / n) for n in ("dense-seed1", "s75-seed1")], str(tmp_path / "c.svg"))
    assert not (tmp_path / "c.svg").exists()


def test_a_fine_tuned_run_has_its_best_score(runs, tmp_path, capsys):
    tuned = tmp_path / "tuned-seed1"
    shutil.copytree(runs / "dense-seed1", tuned)
    scores = [(4, 0.5), (8, float("nan")), (12, 0.75), (16, 0.75)]
    with open(tuned / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": s, "kind": "dev", "accuracy": a}) + "\n" for s, a in scores)
    compare_runs([str(runs / "dense-seed1"), str(tuned)], str(tmp_path / "c.svg"))
    table = capsys.readouterr().out.splitlines()
    assert table[0].endswith("best on dev") and table[1].endswith("  -")
    assert table[2].endswith("accuracy 0.7500 at step 12")
    assert [r["step"] for r in json.loads((tmp_path / "c.json").read_text())[1]["dev"]] == [4, 8, 12, 16]


def test_losses_of_other_tokens_are_named(runs, tmp_path, capsys):
    other = tmp_path / "other-seed1"
    shutil.copytree(runs / "s75-seed1", other)
    config = (other / "config.yaml").read_text()
    assert config.count("eval_steps: null") == 1
    (other / "config.yaml").write_text(config.replace("eval_steps: null", "eval_steps: 1"))
    log = [json.loads(x) for x in (other / "metrics.jsonl").read_text().splitlines()]
    kept = [r for r in log if r["kind"] != "validation" or r["step"] < 12]  # training went on after its last validation
    (other / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    compare_runs([str(other), str(runs / "dense-seed1")], str(tmp_path / "c.svg"))
    printed = capsys.readouterr().out
    assert (
        "note       of another validation data than other-seed1's: these losses may not be of the same tokens"
        in printed
    )
    assert f"{next(r['loss'] for r in kept if r['kind'] == 'validation' and r['step'] == 8):.4f} at step 8" in printed
    ratio = [float(x) for x in re.findall(r"\(([0-9.]+)x (?:fewer|more)\)", printed)]
    assert printed.count("x more)") == 1 and ratio[0] == 1.0 and ratio[1] > 1
    compare_runs([str(runs / n) for n in ("dense-seed1", "s75-seed1")], str(tmp_path / "c.svg"))
    assert "not be of the same tokens" not in capsys.readouterr().out


def test_a_training_loss_that_is_no_mean_over_tokens_is_not_drawn_as_one(runs, tmp_path):
    other = tmp_path / "sum-seed1"
    shutil.copytree(runs / "dense-seed1", other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("loss_scaling: num_tokens", "loss_scaling: batch_size"))
    compare_runs([str(runs / "dense-seed1"), str(other)], str(tmp_path / "c.svg"))
    assert "no training loss of sum-seed1" in (tmp_path / "c.svg").read_text()
