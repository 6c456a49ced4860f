"""`-m score` end to end: our checkpoint, its export and the harness agree; what is printed and written."""

import json
import shutil

import pytest
from safetensors.numpy import load_file

from modelzoo.cli import main
from modelzoo.lock import lock_folder
from modelzoo.progress import format_amount


def evaluate(world, out, *more, tasks=None) -> int:
    named = tasks or world / "task.yaml"
    argv = ["CPU", "-p", world / "run/config.yaml", "-m", "score", "-o", out, "--tasks", named, *more]
    return main([str(a) for a in argv])


def results(out) -> dict:
    return json.loads((out / "evaluation/results.json").read_text())["tasks"]


@pytest.fixture(scope="module")
def ours(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("ours")
    assert evaluate(world, out, "--checkpoint_path", world / "run") == 0
    return out


@pytest.fixture(scope="module")
def export(world, tmp_path_factory):
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("out") / "exported"
    assert main(["export", str(world / "run"), str(out)]) == 0
    return out


def test_the_export_scores_as_the_checkpoint_does(world, ours, export, tmp_path):
    assert evaluate(world, tmp_path, "--checkpoint_path", export) == 0
    a, b = results(ours)["task"][0], results(tmp_path)["task"][0]
    assert a["metrics"] == pytest.approx(b["metrics"], abs=1e-4)
    mine, theirs = (json.loads((f / "evaluation/task_test.json").read_text()) for f in (ours, tmp_path))
    for x, y in zip(mine, theirs, strict=True):
        assert x["prediction"] == y["prediction"] and x["id"] == y["id"]
        assert x["log_p"] == pytest.approx(y["log_p"], abs=1e-4)


def test_reports_baseline_intervals_and_what_is_next(world, tmp_path, capsys):
    assert evaluate(world, tmp_path, "--checkpoint_path", world / "run", "--split", "dev") == 0
    printed = capsys.readouterr().out
    golds = [json.loads(line)["label"] for line in (world / "tasks/dev.jsonl").read_text().splitlines()]
    found = results(tmp_path)["task"][0]
    assert found["baseline"]["accuracy"] == pytest.approx(golds.count("yes") / len(golds))
    low, high = found["intervals"]["accuracy"]
    assert 0 <= low <= found["metrics"]["accuracy"] <= high <= 1
    assert found["n"] == len(golds) and found["split"] == "dev" and found["sparsity"] > 0.4
    state = load_file(sorted((world / "run").glob("checkpoints/step_*/model.safetensors"))[-1])
    masks = [x for name, x in state.items() if name.endswith("_mask")]
    assert found["parameters"] == sum(x.size for n, x in state.items() if not n.endswith("_mask"))
    assert found["live"] == found["parameters"] - sum(int((~x).sum()) for x in masks)
    assert f"({format_amount(found['live'])} of {format_amount(found['parameters'])} weights live)" in printed
    for line in ("best constant answer", "wrote", "next", "bootstrap", "test sets kept out"):
        assert line in printed


def test_examples_without_label_or_text_are_counted_in_results_and_table(world, tmp_path, capsys):
    shutil.copytree(world / "tasks", tmp_path / "tasks")
    (tmp_path / "tasks/train.jsonl").unlink()
    rows = [json.loads(line) for line in (world / "tasks/dev.jsonl").read_text().splitlines()]
    rows[1]["label"] = rows[3]["label"] = None
    rows[2]["context"] = ""
    (tmp_path / "tasks/dev.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    ask = ("--checkpoint_path", world / "run", "--split", "dev", "--data_dir", tmp_path / "tasks")
    assert evaluate(world, tmp_path / "out", *ask) == 0
    printed, (found,) = capsys.readouterr().out, results(tmp_path / "out")["task"]
    assert found["n"] == len(rows) - 2 and found["counts"]["examples"] == len(rows) and found["baseline"] is None
    assert found["remarks"] == {
        "without a label: not scored": {"count": 2, "first": rows[1]["id"]},
        "with an empty {context}: taken as they are": {"count": 1, "first": rows[2]["id"]},
    }
    assert f"  2 without a label: not scored (first: {rows[1]['id']})\n" in printed
    assert "train.jsonl: no such file" in printed and "no constant answer to compare with: " in printed


@pytest.mark.parametrize("flag", ["--data_dir", "--split"])
def test_flags_that_the_harness_does_not_take_are_refused(world, tmp_path, capsys, flag):
    assert evaluate(world, tmp_path, "--checkpoint_path", world / "run", flag, "dev", tasks="lm_eval:pubmedqa") == 2
    assert f"error: {flag} does nothing with lm_eval:pubmedqa: the harness has its own data" in capsys.readouterr().err


def test_scores_follow_the_processors_arithmetic(world, ours, tmp_path, act_as, capsys):
    """The model's run was float32; asked for bfloat16, its scores are the same where that is not multiplied."""
    ask = ("--checkpoint_path", world / "run", "--set", "trainer.init.precision.enabled=true")
    for name, dtype in (("avx2", "float32"), ("amx", "bfloat16")):
        act_as(name)
        assert evaluate(world, tmp_path / name, *ask) == 0
        err = capsys.readouterr().err
        assert f"), {dtype}\n" in err and ("bfloat16 was asked for" in err) == (dtype == "float32")
        assert "until step" not in err and results(tmp_path / name)["task"][0]["dtype"] == dtype
    mine, same, other = (
        [r["log_p"] for r in json.loads((f / "evaluation/task_test.json").read_text())]
        for f in (ours, tmp_path / "avx2", tmp_path / "amx")
    )
    assert mine == same != other


def test_scores_of_another_task_stay_and_undefined_ones_are_left_out(world, tmp_path, capsys):
    """Against golds that are all alike a correlation is undefined: so named in the table, absent from the numbers."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test.csv").write_text("id,a,score\n1,aspirin,2\n2,fever,2\n3,none,2\n")
    (tmp_path / "t.yaml").write_text('source: "{a}"\nlabels: {"0": "no", "4": "yes"}\n')
    (tmp_path / "alike.yaml").write_text(
        f"form: similarity\ntemplate: t.yaml\ndata_dir: {tmp_path / 'data'}\ntest: test.csv\n"
        'label_field: score\nscale: {"0": 0.0, "4": 4.0}\n'
    )
    for name in (world / "task.yaml", tmp_path / "alike.yaml"):
        assert evaluate(world, tmp_path, "--checkpoint_path", world / "run", tasks=name) == 0
    found = results(tmp_path)
    assert set(found) == {"task", "alike"}
    assert found["alike"][0]["metrics"] == {} and found["alike"][0]["n"] == 3
    assert "undefined" in capsys.readouterr().out


def test_two_processes_do_not_score_into_one_file(world, tmp_path, capsys):
    """Each would write the tasks that it had read, and the first one's would be lost; next to a run it may go on."""
    with lock_folder(str(tmp_path / "evaluation")):
        assert evaluate(world, tmp_path, "--checkpoint_path", world / "run") == 75
    assert "another process is writing it" in capsys.readouterr().err
    with lock_folder(str(tmp_path)):
        assert evaluate(world, tmp_path, "--checkpoint_path", world / "run") == 0


def test_several_checkpoints_are_seeds_of_one_experiment(world, tmp_path, capsys):
    both = f"{world / 'run'},{world / 'run/checkpoints/step_3'}"
    assert evaluate(world, tmp_path, "--checkpoint_path", both) == 0
    assert len(results(tmp_path)["task"]) == 2
    assert "mean of 2 checkpoints" in capsys.readouterr().out
    assert (tmp_path / "evaluation/task_test_1.json").exists()


def test_a_missing_test_set_is_said_and_dev_is_scored(world, tmp_path, capsys):
    shutil.copytree(world / "tasks", tmp_path / "tasks")
    (tmp_path / "tasks/test.jsonl").unlink()
    more = ("--checkpoint_path", world / "run", "--data_dir", tmp_path / "tasks")
    assert evaluate(world, tmp_path, *more) == 0
    assert "no test scores" in capsys.readouterr().out
    assert results(tmp_path)["task"][0]["split"] == "dev"
    assert evaluate(world, tmp_path, *more, "--split", "test") == 2
    assert "test.jsonl: no such file" in capsys.readouterr().err


def test_decontamination_of_the_training_data_is_carried_along(world, tmp_path, capsys):
    try:
        (world / "data/job.json").write_text(
            json.dumps({"config": {"filters": {"decontaminate": ["ab" * 32], "decontaminate_ngram": 13}}})
        )
        (world / "data/manifest.json").write_text(json.dumps({"reasons": {"benchmark_pmid": 4}, "eos_id": 0}))
        assert evaluate(world, tmp_path, "--checkpoint_path", world / "run") == 0
    finally:
        (world / "data/job.json").unlink()
        (world / "data/manifest.json").unlink()
    found = results(tmp_path)["task"][0]["decontamination"]
    assert found == {"test_sets": ["ab" * 32], "ngram": 13, "dropped": {"benchmark_pmid": 4, "benchmark_overlap": 0}}
    assert "4 documents left out by id" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tasks", "message"),
    [("pubmedqq", "did you mean pubmedqa"), ("gone.yaml", "no such config file"), (",", "--tasks: missing")],
)
def test_unknown_tasks_are_one_line(world, tmp_path, capsys, tasks, message):
    assert evaluate(world, tmp_path, tasks=tasks) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "evaluation").exists()


def test_the_harness_without_its_package_says_how_to_get_it(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert evaluate(world, tmp_path, "--checkpoint_path", world / "run", tasks="lm_eval:arc_easy") == 2
    assert "pip install" in capsys.readouterr().err


def test_the_harness_gives_our_task_our_score(world, ours, export, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `eval`)")
    more = ("--checkpoint_path", world / "run", "--split", "test")
    assert evaluate(world, tmp_path, *more, tasks=f"lm_eval:{world / 'task.yaml'}") == 0
    (found,) = results(tmp_path)[f"lm_eval:{world / 'task.yaml'}"]
    # Ours takes the tokens that all labels share out of the sum, which shifts all alike.
    assert found["metrics"]["acc,none"] == pytest.approx(results(ours)["task"][0]["metrics"]["accuracy"], abs=1e-4)
    assert (
        evaluate(world, tmp_path, *more[2:], "--checkpoint_path", export, tasks=f"lm_eval:{world / 'task.yaml'}") == 0
    )
    (theirs,) = results(tmp_path)[f"lm_eval:{world / 'task.yaml'}"]
    assert theirs["metrics"]["acc,none"] == pytest.approx(found["metrics"]["acc,none"], abs=1e-4)


def test_a_fine_tuned_run_with_a_soft_prompt_scores_as_it_said(world, tmp_path):
    """The prompt's vectors and their place come from the run's config."""
    text = (world / "c.yaml").read_text()
    section = f"  finetune: {{task: {world / 'task.yaml'}, masks: lift, batch_size: 8, eval_batch_size: 4}}\n"
    prompt = "    soft_prompt: {tokens: 3, place: before_target, train: all}\n    loop: {max_steps: 3}\n"
    head = text.split("    sparsity:")[0]
    (tmp_path / "f.yaml").write_text(head + prompt + section)
    argv = [
        "CPU",
        "-p",
        tmp_path / "f.yaml",
        "-m",
        "finetune",
        "-o",
        tmp_path / "tuned",
        "--checkpoint_path",
        world / "run",
    ]
    assert main([str(a) for a in argv]) == 0
    (run,) = (tmp_path / "tuned").glob("fold_*/seed_*")
    reported = json.loads((run / "result.json").read_text())["scores"]["test"]["metrics"]
    argv = ["CPU", "-p", run / "config.yaml", "-m", "score", "-o", tmp_path, "--tasks", world / "task.yaml"]
    assert main([str(a) for a in [*argv, "--checkpoint_path", run]]) == 0
    (found,) = results(tmp_path)["task"]
    assert found["metrics"] == pytest.approx(reported)
    mine = json.loads((tmp_path / "evaluation/task_test.json").read_text())
    theirs = json.loads((run / "predictions.json").read_text())["test"]
    for a, b in zip(mine, theirs, strict=True):
        assert a["log_p"] == pytest.approx(b["log_p"], abs=1e-5)
