"""The ways to install and run: their files have the form, name what is there, and do what they say as far as tried."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[1]
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT"}


def read(name: str) -> str:
    return (REPO / name).read_text(encoding="utf-8")


def test_the_conda_file_has_the_tested_versions():
    found = yaml.safe_load(read("environment.yml"))
    python, pip = found["dependencies"][0], found["dependencies"][-1]["pip"]
    assert f'python_requires=">={python.removeprefix("python=")}"' in read("setup.py")
    assert pip == ["--constraint constraints.txt", "--editable ."] and (REPO / "constraints.txt").exists()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_container_is_ten_lines_of_known_instructions(kind):
    lines = read(f"docker/{kind}.Dockerfile").splitlines()
    assert len(lines) <= 10 and {line.split()[0] for line in lines if not line.startswith("#")} <= INSTRUCTIONS
    assert lines[-1] == 'ENTRYPOINT ["mediswift"]'
    assert f"--require-hashes -r locks/torch-{kind}.txt -r locks/default.txt " in lines[-2]
    assert ("whl/cpu" in "".join(lines)) == (kind == "cpu")
    assert '"mediswift=modelzoo.cli:main"' in read("setup.py")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("code,requeued", [(0, False), (143, True), (2, False)])
def test_a_run_is_requeued_when_its_time_is_up_and_only_then(tmp_path, code, requeued):
    for name, text in (
        ("srun", f'echo "srun $*" >> {tmp_path}/log; exit {code}'),
        ("scontrol", f'echo "$*" >> {tmp_path}/log'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", REPO / "scripts/slurm/train.sbatch", "c.yaml", "my run"], env=env, check=False)
    log = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert log[0] == "srun mediswift GPU -p c.yaml -m train_and_eval -o my run"
    assert log[1:] == (["requeue 17"] if requeued else []) and done.returncode == (0 if code == 143 else code)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("script", sorted((REPO / "scripts/slurm").iterdir()), ids=lambda p: p.name)
def test_scripts_for_slurm_are_scripts_and_want_their_words(script):
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    done = subprocess.run(["bash", script], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode != 0 and "name a config" in done.stderr
    options = re.findall(r"^#SBATCH (.*)", script.read_text(encoding="utf-8"), re.M)
    assert options and all(word.startswith("--") for line in options for word in line.split())


ROOMS = ("backends", "kernels", "models", "optim", "sparsity", "train_state", "training", "finetuning", "interop")
COMPUTING = ("torch", "safetensors", "tests.support", "tests.commands", *(f"modelzoo.{room}" for room in ROOMS))


def test_what_is_not_run_again_on_other_arithmetic_imports_nothing_that_computes():
    (stems, more), *_ = re.findall(r"^EXACT := \$\(patsubst %,tests/test_%.py,([^)]*)\)(.*)$", read("Makefile"), re.M)
    found = [f"tests/test_{stem}.py" for stem in stems.replace("\\", "").split()] + more.split()
    assert len(found) > 15
    for path in map(REPO.joinpath, found):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            for name in [f"{module}.{n}" if module else n for n in names]:
                assert not name.startswith(COMPUTING), f"{path.name} imports {name}"
