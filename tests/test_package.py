"""What is installed: the configs, found from any folder, and the version, which commands, runs and papers cite."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from data_preprocessing import cli as data_cli
from modelzoo import cli, version
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import find_config, load, packaged_configs
from modelzoo.config.trainer import Config
from modelzoo.evaluation.forms.load import load_task
from modelzoo.study.matrix import matrix
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.support import make_run

REPO = Path(__file__).resolve().parents[1]
CONFIGS = REPO / "configs"
NAMES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml"))


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """A working directory with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- configs from any folder


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_config_goes_by_two_names(name, empty):
    for spelling in (name, f"configs/{name}", f"./configs/{name}"):
        assert os.path.samefile(find_config(spelling), CONFIGS / name)


def test_the_file_in_the_working_directory_comes_first_and_in_silence(empty, capsys):
    (empty / "configs/quickstart").mkdir(parents=True)
    own = empty / "configs/quickstart/s75.yaml"
    shutil.copy(CONFIGS / "quickstart/base.yaml", own)
    assert find_config("configs/quickstart/s75.yaml") == "configs/quickstart/s75.yaml"
    assert load("configs/quickstart/s75.yaml", Config) == load(own, Config)
    assert capsys.readouterr().err == ""


def test_a_packaged_config_is_said_to_be_one(empty, capsys):
    name = f"{os.curdir}/quickstart/dense.yaml"  # spelt as no other test does: a file is spoken of once a process
    assert load(name, Config) == load(CONFIGS / "quickstart/dense.yaml", Config)
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line and os.path.join(packaged_configs(), "quickstart", "dense.yaml") in line


def test_paths_that_leave_the_configs_name_nothing_packaged(empty):
    assert (CONFIGS / "../pyproject.toml").exists()
    for path in ("../pyproject.toml", "configs/../../pyproject.toml", str(empty / "quickstart/s75.yaml")):
        assert find_config(path) == path


def test_extends_takes_a_packaged_parent(empty):
    (empty / "mine.yaml").write_text("extends: configs/quickstart/s75.yaml\ntrainer: {init: {seed: 99}}\n")
    found, parent = load("mine.yaml", Config), load(CONFIGS / "quickstart/s75.yaml", Config)
    assert found.trainer.init == parent.trainer.init.model_copy(update={"seed": 99})


def test_tasks_templates_and_studies_are_found(empty):
    task = load_task("configs/eval/pubmedqa.yaml")
    assert load_task("pubmedqa").template == task.template
    text = yaml.safe_load((CONFIGS / "eval/pubmedqa.yaml").read_text()) | {"template": "prompt/pubmedqa/plain.yaml"}
    (empty / "own.yaml").write_text(yaml.safe_dump(text))
    assert load_task("own.yaml").template == task.template
    assert load_task("own.yaml", template="configs/prompt/yesno/plain.yaml").template != task.template
    (empty / "study.yaml").write_text((CONFIGS / "study/mini.yaml").read_text().replace("../demo/", "demo/"))
    assert (
        matrix.read_matrix("study.yaml", [], None).cells
        == matrix.read_matrix("configs/study/mini.yaml", [], None).cells
    )


def test_a_mistyped_name_suggests_a_packaged_one(empty):
    with pytest.raises(
        UserError, match=r"quickstart/s57.yaml: no such config file; did you mean quickstart/s75.yaml\?"
    ):
        load("quickstart/s57.yaml", Config)
    with pytest.raises(UserError, match=r"did you mean pubmedqa\?"):
        load_task("pubmedqq")


# --- the wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What `pip install` of this tree puts into an environment."""
    work = tmp_path_factory.mktemp("wheel")
    kept = ("modelzoo", "data_preprocessing", "configs")
    for name in kept:
        shutil.copytree(REPO / name, work / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(REPO / name, work / "tree" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "."]
    subprocess.run([*command, "-w", work], cwd=work / "tree", check=True, timeout=300)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work / "site")
    return work / "site"


def test_the_wheel_holds_every_config_the_kernels_types_and_licence(installed):
    there = installed / "modelzoo" / "configs"
    assert sorted(p.relative_to(there).as_posix() for p in there.rglob("*.yaml")) == NAMES
    assert all((there / n).read_bytes() == (CONFIGS / n).read_bytes() for n in NAMES)
    sources = "modelzoo/kernels/compiled/csrc"
    assert {p.name for p in (installed / sources).iterdir()} == {p.name for p in (REPO / sources).iterdir()}
    assert all((installed / package / "py.typed").exists() for package in ("modelzoo", "data_preprocessing"))
    (licence,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_bytes() == (REPO / "LICENSE").read_bytes()


def test_an_installed_package_plans_from_an_empty_folder(installed, empty):
    def run(*words: str) -> subprocess.CompletedProcess:
        code = "import sys; from modelzoo.cli import main; sys.exit(main())"
        env = {**os.environ, "PYTHONPATH": str(installed)}
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, timeout=120)

    done = run("-p", "configs/mediswift/xl_s75.yaml", "-m", "plan")
    assert done.returncode == 2 and "2.494x" in done.stdout and "no such data folder" in done.stderr
    assert str(installed / "modelzoo/configs/mediswift/xl_s75.yaml") in done.stderr
    assert run("--version").stdout == f"mediswift-trainer {version.VERSION}\n"


# --- the version


def test_one_version_everywhere():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert citation["version"] == version.VERSION
    assert f"## {version.VERSION}" in (REPO / "CHANGELOG.md").read_text()
    assert citation["references"][0]["url"].endswith("2403.00952")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The module as it would stand in a repository of its own, and git there."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    monkeypatch.setattr(version, "__file__", str(tmp_path / "modelzoo" / "version.py"))

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    return git


def describe() -> str:
    return version.describe.__wrapped__()


def test_a_checkout_is_described_by_commit_and_changes(checkout, tmp_path, monkeypatch):
    commit = checkout("rev-parse", "--short", "HEAD")
    assert describe() == f"{version.VERSION} (git {commit})"
    (tmp_path / "file").write_text("2")
    assert describe() == f"{version.VERSION} (git {commit}-dirty)"
    monkeypatch.setenv("GIT_DIR", str(REPO / "nowhere"))  # as in a hook of another repository
    assert describe() == f"{version.VERSION} (git {commit}-dirty)"


@pytest.mark.parametrize("fault", ["missing", "refuses"])
def test_a_checkout_that_git_does_not_describe_says_so(checkout, tmp_path, monkeypatch, fault):
    (tmp_path / "bin").mkdir()
    if fault == "refuses":
        (tmp_path / "bin/git").write_text(
            "#!/bin/sh\necho fatal: detected dubious ownership in repository >&2; exit 128\n"
        )
        (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert describe() == f"{version.VERSION} (git does not describe it)"


def test_what_is_no_checkout_has_its_version_alone(checkout, tmp_path, monkeypatch):
    inside = tmp_path / "venv/lib/site-packages/modelzoo/version.py"  # an environment inside somebody's repository
    monkeypatch.setattr(version, "__file__", str(inside))
    assert describe() == version.VERSION


@pytest.mark.parametrize("main", [cli.main, data_cli.main])
def test_the_flag_prints_it(main, capsys):
    with pytest.raises(SystemExit) as e:
        main(["--version"])
    assert not e.value.code
    assert capsys.readouterr().out == f"mediswift-trainer {version.describe()}\n"


def test_checkpoints_record_it():
    _, saved = snapshot(make_run(), "data")
    assert json.loads(json.dumps(saved))["version"] == version.describe()
