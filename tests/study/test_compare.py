"""`run.py compare` says what runs differ in and draws their curves."""

import json
import shutil

import pytest

from modelzoo.config.errors import UserError
from modelzoo.study.compare import compare_runs


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
