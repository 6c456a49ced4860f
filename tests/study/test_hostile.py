"""Run folders of any name and with damaged files: a report, a comparison and a study go on, or say one line."""

import csv
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from modelzoo.config.errors import UserError
from modelzoo.study.execution import run as study
from modelzoo.study.execution.progress import last_words
from modelzoo.study.reports.compare import compare_runs, read_compared
from modelzoo.study.reports.report import report_runs, write_study
from modelzoo.study.runs.names import key_of, show_name
from modelzoo.study.runs.results import masks, read_run
from tests.study.test_report import Page
from tests.study.test_run import base, forked, write  # noqa: F401 fixtures

NAMES = [
    "$x^$", "<b>", "a&b", "two\nlines", "tab\tand\x1b[31mred", "-dash", "--output", "_hidden", "\u202egnp", "日本", "é",
    "=1+1", "'quote", '"double"', "#0072b2", "a" * 200, "]]>", "token=SECRET", "\udcff", "{x}", "%s", "\\frac",
]  # fmt: skip


@pytest.fixture(scope="module")
def named(runs, tmp_path_factory):
    """One run under every name."""
    root = tmp_path_factory.mktemp("names")
    for name in NAMES:
        shutil.copytree(runs / "dense-seed1", os.path.join(root, name))
    return root


def test_a_name_is_a_name_in_every_picture_and_page(named, tmp_path, capsys):
    folders = [os.path.join(named, name) for name in NAMES]
    compare_runs(folders, str(tmp_path / "c.svg"))
    write_study(
        [(f, n) for f, n in zip(folders, map(show_name, NAMES), strict=True)], {}, str(tmp_path / "r.html"), "x"
    )
    printed = capsys.readouterr()
    assert "\x1b[31m" not in printed.out and printed.err.count("\n") < 5
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not {"b", "script"} & set(Page(page).tags)
    for path in [tmp_path / "c.svg", *(tmp_path / "r_files").glob("*.svg")]:
        words = "".join(ElementTree.fromstring(path.read_text(encoding="utf-8")).itertext())
        assert "$x^$" in words or "step" in words
    assert "SECRET" not in page + printed.out
    with open(tmp_path / "r_files" / "final_loss.csv", encoding="utf-8") as file:
        groups = [row["group"] for row in csv.DictReader(file)]
    assert len(set(groups)) == len(NAMES) and not any(g.startswith(("=", "-", "+", "@")) for g in groups)


def test_names_that_differ_have_files_that_differ():
    keys = [key_of(n.encode("utf-8", "backslashreplace").decode()) for n in [*NAMES, "a-b", "a_b", "a.b", "A_b"]]
    assert len(set(keys)) == len(keys) and all(len(k) < 80 and k.isascii() for k in keys)
    assert key_of("rigl_75") == "rigl_75" and show_name("s75-seed1") == "s75-seed1"


DAMAGES = {
    "metrics.jsonl": [b"", b"\xff\xfe\n", b"[1]\nnull\n3\n", b'{"step": "4", "kind": "train"}\n', b'{"kind": 3}\n',
                      b'{"step": 1, "kind": "validation", "loss": {}}\n', b'{"step": 1e400, "kind": "dev"}\n'],
    "timing.jsonl": [b"\xff", b"[]\n", b'{"step": 4, "kind": "train", "tokens_per_second": "x"}\n'],
    "launches.jsonl": [b"3\n", b'{"command": "run.py \'", "device": 3}\n', b'{"notes": 4}\n'],
    "config.yaml": [b"", b"\xff", b"trainer: 3\n"],
    "checkpoints/step_12/model.safetensors": [b"", b"\xff" * 100],
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_costs_no_report(runs, tmp_path, name):
    """One line that names the file, or a report without what was damaged; the other run is always in a study's."""
    shutil.copytree(runs / "s75-seed1", tmp_path / "bad")
    whole, bad = str(runs / "dense-seed1"), str(tmp_path / "bad")

    def try_it(command) -> None:
        try:
            command()
        except UserError as e:
            assert "\n" not in str(e) and Path(name).name in str(e)

    for damage in DAMAGES[name]:
        (tmp_path / "bad" / name).write_bytes(damage)
        try_it(lambda: read_compared(bad))
    try_it(lambda: report_runs([whole, bad], str(tmp_path / "r.html")))
    written = write_study([(whole, "dense"), (bad, "bad")], {}, str(tmp_path / "s.html"), "x")
    assert "report     " in written and "dense" in (tmp_path / "s.html").read_text()


def test_damaged_records_are_left_out_and_counted(runs, tmp_path, capsys):
    shutil.copytree(runs / "dense-seed1", tmp_path / "run")
    before = read_run(str(tmp_path / "run"))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('[1]\n{"step": 3, "kind": "validation", "loss": "x"}\n')
    after = read_run(str(tmp_path / "run"))
    assert after == before and (line := capsys.readouterr().err)
    assert "metrics.jsonl:" in line and "2 such lines are left out" in line


def test_a_picture_of_no_format_is_refused_before_the_work(runs, tmp_path):
    with pytest.raises(UserError, match=r"c.docx: pictures end in .svg, .png, .pdf"):
        compare_runs([str(runs / "dense-seed1")], str(tmp_path / "c.docx"))


def test_a_cell_that_cannot_begin_does_not_end_the_study(base, forked, monkeypatch, capsys):  # noqa: F811
    path, out = write(base), base.parent / "out"
    (out / "logs" / "dense-seed1.txt").mkdir(parents=True)  # its log cannot be opened
    with pytest.raises(UserError, match="1 of 2 runs failed: dense-seed1") as error:
        study.run_study(path, [], None, study.Options("CPU"))
    err = capsys.readouterr().err
    assert "FAILED     dense-seed1 (not begun): " in err and str(error.value).count("\n") == 0
    assert (out / "report.html").exists()

    def popen(*_, **__):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(Popen=popen))
    (out / "logs" / "dense-seed1.txt").rmdir()
    with pytest.raises(UserError, match="1 of 2 runs failed: dense-seed1"):
        study.run_study(path, [], None, study.Options("CPU"))
    monkeypatch.undo()


def test_a_study_answers_for_its_config_and_data_alone(base, data, forked, tmp_path, capsys):  # noqa: F811
    shutil.copytree(data, tmp_path / "data")
    base.write_text(base.read_text().replace(str(data), str(tmp_path / "data")))
    path = write(base, axes={"method": {"dense": {}}})
    out = base.parent / "out"
    study.run_study(path, [], None, study.Options("CPU"))
    study.run_study(path, [], None, study.Options("CPU"))
    with pytest.raises(UserError, match=r"began with another config .*seed|learning"):
        study.run_study(path, ["study.learning_rate.peak=0.02"], None, study.Options("CPU"))
    (out / "configs" / "dense-seed1.yaml").unlink()  # the run's own config tells all the same
    with pytest.raises(UserError, match=r"another config .*0\.01 -> 0\.02"):
        study.run_study(path, ["study.learning_rate.peak=0.02"], None, study.Options("CPU"))
    manifest = tmp_path / "data" / "train" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("{", '{"other": 1, ', 1))
    with pytest.raises(UserError, match=r"other data in .*train"):
        study.run_study(path, [], None, study.Options("CPU"))
    (out / "configs" / "dense-seed1.origin.json").write_text("{")
    study.run_study(path, [], None, study.Options("CPU"))
    assert "damaged    " in capsys.readouterr().err


def test_the_last_words_of_a_log_are_one_line_of_text(tmp_path):
    log = tmp_path / "log.txt"
    for text, found in (
        (b"", "its log is empty"),
        (b"\xff\xfe\n" * 99999 + b"error: token=SECRET \x1b[31mred\n\n", "error: token=*** [31mred"),
        (b"one\ntwo\n", "two"),
    ):  # fmt: skip
        log.write_bytes(text)
        assert last_words(str(log)) == found
    assert "cannot be read" in last_words(str(tmp_path / "gone.txt"))
    os.mkfifo(tmp_path / "pipe")
    assert "cannot be read" in last_words(str(tmp_path / "pipe"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_pipe_in_the_place_of_weights_or_a_log_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read .*not a regular file"):
        masks(str(tmp_path))
    assert study._last_step(str(tmp_path / "model.safetensors")) == 0


def test_a_report_names_what_it_leaves_out(runs, tmp_path, capsys):
    bad = Path(shutil.copytree(runs / "s75-seed1", tmp_path / "bad"))
    (bad / "checkpoints" / "step_12" / "model.safetensors").write_bytes(b"")
    written = report_runs([str(bad)], str(tmp_path / "r.html"))
    (line, *_) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"damaged    {bad}/") and line.endswith("; the report leaves out what hangs on it")
    assert "damaged" not in written
