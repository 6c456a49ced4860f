"""The table of speed runs says what a run's own records say."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import speed_runs


@pytest.fixture
def run(tmp_path):
    records = []
    for step in range(1, 7):
        records.append({"step": step, "kind": "train", "tokens": 10 * step, "flops": 5.0 * step})
        if step % 2 == 0:
            records.append({"step": step, "kind": "validation", "loss": 4.0 - 0.5 * step})
    timings = [{"step": s, "kind": "train", "seconds": 0.25} for s in range(1, 7)]
    for name, lines in (("metrics", records), ("timing", timings)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("loss,wanted", [(2.0, (4, 40, 20.0, 1.0, 2.0)), (3.0, (2, 20, 10.0, 0.5, 3.0)), (0.5, None)])
def test_the_first_validation_with_the_loss_counts(run, loss, wanted):
    found = speed_runs.find_reached(run, loss)
    assert found == wanted


def test_steps_without_a_time_are_refused(run):
    (run / "timing.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match="0 of 4 steps are in timing"):
        speed_runs.find_reached(run, 2.0)
