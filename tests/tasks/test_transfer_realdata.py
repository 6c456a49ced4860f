"""scripts/transfer_small.sh, shortened: real abstracts, PubMedQA and HoC, from pre-training to the table."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.realdata
@pytest.mark.slow
def test_the_documented_command_makes_the_rows_of_the_table(shared_data, tmp_path):
    for name in ("pubmed_real", "pubmedqa", "hoc"):
        (tmp_path / name).symlink_to(shared_data / name)
    (tmp_path / "pubmed_wrapped").mkdir()
    for path in sorted((shared_data / "pubmed_wrapped").glob("cohen2006_*"))[:2]:
        shutil.copy(path, tmp_path / "pubmed_wrapped")
    for name in ("modelzoo", "data_preprocessing", "scripts", "configs", "run.py"):
        (tmp_path / name).symlink_to(REPO / name)
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(REPO)}
    env |= {"WAYS": "s75 none,s75 keep", "SEEDS": "[1]", "STEPS": "2", "TUNING_STEPS": "2", "EXAMPLES": "16"}
    done = subprocess.run(
        ["bash", "scripts/transfer_small.sh", str(tmp_path)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
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
