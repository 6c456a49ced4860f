"""What the how-to pages show works as shown."""

import re
import subprocess
import sys
import textwrap

import torch
import yaml

from modelzoo.config.loading import yaml12
from modelzoo.config.study import StudyFile
from modelzoo.config.task import Task, Template
from modelzoo.sparsity import algorithms
from tests.docs.pages import REPO
from tests.support import batch, make_run, train_step


def blocks(page: str, language: str) -> list[str]:
    text = (REPO / "docs" / "howto" / page).read_text()
    return [textwrap.dedent(b) for b in re.findall(rf"```{language}\n(.*?)\n *```", text, re.S)]


def test_the_algorithm_of_the_page_keeps_the_rules(monkeypatch):
    (code,) = blocks("add_algorithm.md", "python")
    space = dict(vars(algorithms))
    exec(code, space)
    monkeypatch.setitem(algorithms.ALGORITHMS, "rigl", space["NoisyRigL"])
    rigl = {"algorithm": "rigl", "sparsity": 0.75, "update": {"freq": 2}}
    run, plain = make_run(sparsity=rigl), None
    monkeypatch.setitem(algorithms.ALGORITHMS, "rigl", algorithms.RigL)
    plain = make_run(sparsity=rigl)
    for step in range(6):
        churn = [train_step(r, batch(step), 1).churn for r in (run, plain)]
        assert (churn[0] > 0) == (step % 2 == 1)
        for p in run.sparsity.parameters:
            assert int(p.mask.sum()) == p.weight.numel() // 4
            assert torch.equal(p.weight, p.weight.masked_fill(~p.mask, 0.0))
    masks = [torch.cat([p.mask.flatten() for p in r.sparsity.parameters]) for r in (run, plain)]
    assert not torch.equal(*masks)  # it does grow elsewhere than RigL


def test_the_study_of_the_page_is_one():
    (text,) = blocks("run_study.md", "yaml")
    study = StudyFile.model_validate(yaml12.parse(text, "page").data).study
    assert [tuple(s.values()) for s in study.settings()] == [
        ("small", "dense"), ("large", "dense"), ("large", "rigl75"),
    ]  # fmt: skip


def test_the_task_and_the_template_of_the_page_are_the_files():
    task, template = (yaml12.parse(b, "page").data for b in blocks("add_task.md", "yaml"))
    on_disk = yaml.safe_load((REPO / "configs" / "eval" / "yesno.yaml").read_text())
    assert task == on_disk and Task.model_validate(task)
    path = (REPO / "configs" / "eval" / on_disk["template"]).resolve()
    assert template == yaml.safe_load(path.read_text()) and Template.model_validate(template)


def test_the_drawing_is_the_codes_and_the_nine_files_are_there():
    page = (REPO / "docs" / "how_it_works.md").read_text(encoding="utf-8")
    assert subprocess.run([sys.executable, REPO / "scripts" / "drawing.py", "--check"], check=False).returncode == 0
    named = set(re.findall(r"`(\w+/\w+\.py)`", page)) - {"scripts/drawing.py"}
    assert len(re.findall(r"^\d\. \*\*`", page, re.M)) == 9
    assert [f for f in named if not (REPO / "modelzoo" / f).exists() and not (REPO / f).exists()] == []
