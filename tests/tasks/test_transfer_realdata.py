"""scripts/transfer_small.sh, shortened: real abstracts, PubMedQA and HoC, from pre-training to the table."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sklearn.metrics  # noqa: F401 - here once, and not again in each run that scores

from tests import commands

REPO = Path(__file__).resolve().parents[2]
SMALLER = ("num_hidden_layers=2", "hidden_size=48", "filter_size=96")  # the model that is pre-trained, and tuned then
RECORDER = """#!{python} -SE
import json, sys
with open("{log}", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.mark.realdata
@pytest.mark.slow
def test_the_documented_command_makes_the_rows_of_the_table(shared_data, tmp_path, monkeypatch):
    for name in ("pubmed_real", "pubmedqa", "hoc"):
        (tmp_path / name).symlink_to(shared_data / name)
    (tmp_path / "pubmed_wrapped").mkdir()
    for path in sorted((shared_data / "pubmed_wrapped").glob("cohen2006_*"))[:2]:
        shutil.copy(path, tmp_path / "pubmed_wrapped")
    for name in ("modelzoo", "data_preprocessing", "scripts", "configs", "run.py"):
        (tmp_path / name).symlink_to(REPO / name)
    # The script's own commands, written down first and run by forks then: eleven interpreters would import torch each.
    recorder = tmp_path / "python"
    recorder.write_text(RECORDER.format(python=sys.executable, log=tmp_path / "commands"))
    recorder.chmod(0o755)
    env = {**os.environ, "PYTHON": str(recorder), "WAYS": "s75 lift,s75 keep", "SEEDS": "[1]", "STEPS": "2"}
    env |= {"TUNING_STEPS": "2", "EXAMPLES": "16"}
    subprocess.run(["bash", "scripts/transfer_small.sh", str(tmp_path)], cwd=tmp_path, env=env, check=True)
    first, *runs, last = map(json.loads, (tmp_path / "commands").read_text().splitlines())
    assert first[:3] == ["-m", "data_preprocessing", "pubmed"] and last[0] == "scripts/transfer_table.py"
    assert len(runs) == 1 + 2 * 2 * 2 and {c[0] for c in runs} == {"run.py"}
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, *first, "--quiet"], cwd=tmp_path, env=env, check=True)
    monkeypatch.chdir(tmp_path)
    runs[0] += [part for setting in SMALLER for part in ("--set", f"trainer.init.model.{setting}")]
    for command in runs:
        with open("printed", "w") as printed:
            assert commands.start(command[1:], printed).wait() == 0, Path("printed").read_text()[-2000:]
    done = subprocess.run([sys.executable, *last], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and "pre-trained" not in line]
    assert len(rows) == 2 * (4 + 1)  # each way to fine-tune, and the best constant answer
    for path in sorted((tmp_path / "runs/transfer").glob("*/results.json")):
        (found,) = json.loads(path.read_text())
        task, _, masks, prompt = path.parent.name.split("-")
        assert found["steps"] == 2 and found["scores"]["dev"]["n"] == 16
        state = json.loads((tmp_path / found["best"] / "state.json").read_text())
        assert bool(state["sparsity"]) == (masks == "keep")
        assert ("soft_prompt" in state) == (prompt == "prompt")
        assert state["dataset"] and task in found["task"]
