"""Configs that would wait, fill the memory or never end are refused at once, in one line that names the place."""

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzoo import cli
from modelzoo.config.errors import UserError
from modelzoo.config.loading import yaml12
from modelzoo.config.loading.load import read, resolve
from modelzoo.config.loading.yaml12 import Mark, Marks
from modelzoo.config.study import StudyFile


def refused(text, tmp_path) -> str:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as e:
        read(path)
    assert "\n" not in str(e.value) and len(str(e.value)) < 1000
    return str(e.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("kind,reason", [
    ("fifo", "is not a regular file"), ("folder", "is a folder"), ("giant", "bytes; at most"),
    ("device", "is not a regular file"), ("circle", "goes round in a circle"), ("chain", "th parent by `extends:`"),
    ("none", "which is not there"), ("binary", "not UTF-8 text"), ("long", "a config has at most 1,048,576"),
])  # fmt: skip
def test_a_parent_that_is_no_config_is_refused(kind, reason, tmp_path):
    parent = tmp_path / "parent.yaml"
    if kind == "fifo":
        os.mkfifo(parent)
    elif kind == "folder":
        parent.mkdir()
    elif kind == "giant":
        with open(parent, "wb") as file:
            file.truncate(2**40)
    elif kind == "device":
        parent.symlink_to("/dev/zero")
    elif kind == "circle":
        parent.write_text("extends: a.yaml")
    elif kind == "chain":
        for i in range(60):
            (tmp_path / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml")
        parent.write_text("extends: 0.yaml")
    elif kind == "binary":
        parent.write_bytes(b"\xff\xfe")
    elif kind == "long":
        parent.write_text("#" * 2**20 + "\n")
    assert reason in refused("extends: parent.yaml", tmp_path)


@pytest.mark.parametrize("text", [
    "a: " * 3 + "x: " + "[" * 2000 + "]" * 2000,
    "".join(f"{' ' * i}a:\n" for i in range(200)),
    "- " * 500 + "x",
    "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12)),
    "a: &a {b: *a}",
    "".join(f"a{i}: &a{i} {{<<: *a{i - 1}, k{i}: 1}}\n" if i else "a0: &a0 {k: 1}\n" for i in range(900)),
    "x: !!python/object/apply:os.system ['true']",
    "x: !!binary '%%'", "x: !!timestamp 2001", "? [a]\n: b", "x: " + "9" * 5000, "\0", "a: b: c",
    "&a *a", "%YAML 9.9\n", "x: !!set {a}",
])  # fmt: skip
def test_a_text_that_expands_nests_or_runs_is_one_line(text, tmp_path):
    line = refused(text, tmp_path)
    assert line.startswith("a.yaml")


def test_merges_cost_their_size_alone():
    """Forgetting the marks that an own key replaces once went over all marks."""
    counted = Counted()
    for path, mark in ((("k", i, j), Mark("f", 1)) for i in range(300) for j in range(3)):
        counted[path] = mark
    counted.asked = 0
    assert len(counted.at_or_below(("k", 7))) == 3
    assert counted.asked < 10  # not 900


class Counted(Marks):
    """Marks that count how often they are asked for a path."""

    asked = 0

    def __contains__(self, path) -> bool:
        self.asked += 1
        return super().__contains__(path)


PATHS = st.lists(st.sampled_from("ab") | st.integers(0, 1), max_size=4).map(tuple)


@given(st.lists(st.tuples(st.sampled_from(["set", "default", "drop"]), PATHS)), PATHS)
def test_marks_below_a_path_are_those_that_begin_with_it(steps, asked):
    """Against a plain dict and a walk over all of it."""
    marks, plain = Marks(), {}
    for i, (what, path) in enumerate(steps):
        if what == "set":
            marks[path] = plain[path] = Mark("f", i)
        elif what == "default":
            assert marks.setdefault(path, Mark("f", i)) == plain.setdefault(path, Mark("f", i))
        elif path in plain:
            for below in marks.at_or_below(path):
                del marks[below]
            plain = {p: m for p, m in plain.items() if p[: len(path)] != path}
    assert dict(marks) == plain
    found = marks.at_or_below(asked)
    assert sorted(found, key=str) == sorted((p for p in plain if p[: len(asked)] == asked), key=str)


INIT = "trainer.init."
BIG = "configs/quickstart/s75.yaml"


@pytest.mark.parametrize("setting", [
    "model.num_hidden_layers=4294967296", "model.hidden_size=1000000000", "model.max_position_embeddings=1000000000",
    "model.vocab_size=2147483648", "model.filter_size=1000000000", "model.num_heads=1000000000",
    "model.position_embedding_offset=1000000000", "backend.num_threads=100000", "loop.max_steps=" + "9" * 30,
    "seed=" + "9" * 30, "loop.grad_accum_steps=1000000000", "soft_prompt={tokens: 1000000000}",
    "lora={r: 1000000000}", "sparsity={sparsity: 0.5, block: [1000000000, 1]}", "checkpoint.steps=" + "9" * 400 + "%",
    "model.hidden_size=1e300", "seed=" + "9" * 4000,
])  # fmt: skip
def test_a_size_beyond_any_use_is_refused_with_its_key(setting, capsys):
    assert cli.main(["-p", BIG, "-m", "plan", "--set", INIT + setting]) == 2
    err = capsys.readouterr().err
    key = setting.partition("=")[0]
    assert err.startswith("error: --set trainer.init.") and key in err and len(err) < 9000 and "Traceback" not in err
    assert any(words in err for words in ("must be at most", "takes an integer", "is not of type int"))


@pytest.mark.parametrize("key", ["batch_size", "num_workers", "prefetch_factor", "max_sequence_length"])
def test_a_size_of_a_loader_is_bounded(key, capsys):
    setting = f"trainer.fit.train_dataloader.{key}=1000000000"
    assert cli.main(["-p", BIG, "-m", "plan", "--set", setting]) == 2
    assert "must be at most" in capsys.readouterr().err


def test_a_study_of_too_many_runs_is_refused_before_they_are_listed(tmp_path):
    axes = {f"x{i}": {f"v{j}": {} for j in range(50)} for i in range(20)}
    path = tmp_path / "a.yaml"
    path.write_text(yaml12.dump({"study": {"base": "b.yaml", "budget": {"steps": 1}, "axes": axes}}))
    doc = resolve(path, StudyFile)
    with pytest.raises(ValueError, match="runs; at most 10,000 are taken"):
        StudyFile.model_validate(doc.data)


@pytest.mark.parametrize("steps", [10**12, sys.maxsize])
def test_a_long_run_is_planned_at_once(steps, capsys):
    cli.main(["-p", BIG, "-m", "plan", "--max_steps", str(steps)])
    assert all("no such data folder" in line for line in capsys.readouterr().err.splitlines())
