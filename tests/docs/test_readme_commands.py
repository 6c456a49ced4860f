"""A stranger reads README: its commands one after another in an empty folder, on an invented corpus."""

import json
import shlex

import pytest

from data_preprocessing import cli as data_cli
from modelzoo import cli
from modelzoo.evaluation.official.pubmedqa_folds import split_pqal
from tests.commands import fork_runs_of_studies
from tests.docs.pages import REPO, commands

STEPS = "trainer.init.loop.max_steps=1000"  # a key is given once
FEW = (
    "--set trainer.init.loop.max_steps=4 --set trainer.init.loop.eval_frequency=2 --set trainer.init.loop.eval_steps=1"
)
FEWER = {"6000": "400", "100": "4"}  # documents and steps of the tutorial
SHORTER = {  # more words for commands that would take minutes, by what they begin with
    "run.py -p configs/quickstart": FEW,
    "run.py GPU -p configs/quickstart": FEW,
    "run.py -p configs/finetune": "--set trainer.init.loop.max_steps=2 --set trainer.init.loop.eval_frequency=2 "
    "--set trainer.finetune.seeds=[1] --set trainer.init.checkpoint.steps=2",
    "run.py -p configs/study": "--set study.budget.flops=6e10",
}


def prepare(folder) -> None:
    """What README's reader has from elsewhere: the demo's data, and a clone of PubMedQA's repository."""
    documents = ["--documents", "400"]
    assert data_cli.main(["synthetic", "--output", "pubmed/xml", *documents]) == 0
    shards = ["--tokenizer", "train", "--vocab_size", "4096", "--msl", "128"]
    assert data_cli.main(["pubmed", "--input", "pubmed/xml", "--output", "demo/data", *shards]) == 0
    answers = {str(i): ["yes", "no", "maybe"][i % 9 % 3] for i in range(200)}
    test, _ = split_pqal(answers)
    questions = {
        i: {"QUESTION": "q?", "CONTEXTS": ["c"], "LONG_ANSWER": "l", "final_decision": a} for i, a in answers.items()
    }
    clone = folder / "pubmedqa" / "data"
    clone.mkdir(parents=True)
    (clone / "ori_pqal.json").write_text(json.dumps(questions), encoding="utf-8")
    (clone / "test_ground_truth.json").write_text(json.dumps({i: answers[i] for i in test}), encoding="utf-8")


@pytest.mark.slow
def test_readme_works_line_by_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fork_runs_of_studies(monkeypatch)
    prepare(tmp_path)
    ran = []
    for command in commands(REPO / "README.md"):
        words = shlex.split(command.text, comments=True)
        if words[0] == "make" or "download" in words:  # of a clone and of the net
            continue
        assert words[0] == "python"
        line = " ".join(words[1:])
        words += shlex.split(next((more for start, more in SHORTER.items() if line.startswith(start)), ""))
        words = ["CPU" if w == "GPU" else w for w in words if w != STEPS]
        words = [w for w, after in zip(words, [*words[1:], ""]) if not (w == after == "--set")]
        code = data_cli.main(words[3:]) if words[1] == "-m" else cli.main(words[2:])
        errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
        if "configs/mediswift" in line:  # whose data nobody has here: a plan says so
            assert code == 2 and all("no such data folder" in e for e in errors)
            continue
        assert not code, (command.text, errors)
        ran.append(line)
    assert len(ran) > 12
    assert {"s75", "dense", "rigl75", "pubmedqa"} <= {p.name for p in (tmp_path / "runs").iterdir()}
    assert json.loads((tmp_path / "runs" / "s75" / "evaluation" / "results.json").read_text(encoding="utf-8"))
    for made in ("comparison.svg", "report.html", "exported/s75/model.safetensors"):
        assert (tmp_path / made).stat().st_size > 1000


@pytest.mark.slow
def test_the_tutorial_works_line_by_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fork_runs_of_studies(monkeypatch)
    ran = []
    for command in commands(REPO / "docs" / "tutorial.md"):
        words = shlex.split(command.text, comments=True)
        if words[0] == "make":
            continue
        line = " ".join(words[1:])
        words = [FEWER.get(w, w) for w in words]
        words += shlex.split(next((more for start, more in SHORTER.items() if line.startswith(start)), ""))
        code = data_cli.main(words[3:]) if words[1] == "-m" else cli.main(words[2:])
        errors = capsys.readouterr().err
        if "sparsty" in line:  # the mistake that the page makes
            assert code == 2 and "unknown key 'trainer.init.sparsty'; did you mean 'sparsity'?" in errors
            continue
        assert not code, (command.text, errors)
        ran.append(line)
    assert len(ran) > 8 and (tmp_path / "demo" / "exported" / "model.safetensors").stat().st_size > 1000
