"""The table of the regrowth study says what its runs' own records say."""

import json
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import regrow_figure


def read_last(folder: Path) -> float:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [x for x in map(json.loads, lines) if x["kind"] == "validation"][-1]["loss"]


@pytest.fixture
def study(runs, tmp_path):
    """Static masks and RigL's, of two seeds and two rates; the worse rate has one seed; one run is cut short."""
    names = {
        "90-static-seed1": "s75-seed1", "90-static-seed2": "dense-seed1",
        "90-rigl-lr1e-05-seed1": "rigl-seed1", "90-rigl-lr1e-05-seed2": "dense-seed2",
        "90-rigl-lr0.02-seed1": "dense-seed1",
    }  # fmt: skip
    for name, source in names.items():
        shutil.copytree(runs / source, tmp_path / "runs" / name)
    cut = shutil.copytree(runs / "dense-seed2", tmp_path / "runs" / "90-set-seed1") / "metrics.jsonl"
    lines = cut.read_text(encoding="utf-8").splitlines(keepends=True)
    cut.write_text("".join(line for line in lines if json.loads(line)["step"] < 12), encoding="utf-8")
    return tmp_path, {name: read_last(runs / source) for name, source in names.items()}


def test_means_differences_and_rates(study, capsys):
    """Rates are read as a run's name has them; a run that is left out is named."""
    folder, losses = study
    rows = regrow_figure.collect(folder)
    assert capsys.readouterr().err == "note       without 90-set-seed1: not finished, or of another name\n"
    assert rows.keys() == {("90", "static"), ("90", "rigl")}
    rigl = rows["90", "rigl"]
    assert (rigl.peak, rigl.tried) == ("1e-05", 2) and rigl.explored is not None
    assert rigl.losses == {1: losses["90-rigl-lr1e-05-seed1"], 2: losses["90-rigl-lr1e-05-seed2"]}
    (line,) = [x for x in regrow_figure.table(rows, "90").splitlines() if x.startswith("| RigL |")]
    apart = sum(losses[f"90-rigl-lr1e-05-seed{s}"] - losses[f"90-static-seed{s}"] for s in (1, 2)) / 2
    assert f"| {apart:+.3f} (" in line and f"| {sum(rigl.losses.values()) / 2:.3f} (" in line


def test_the_picture_is_whole(study):
    text = regrow_figure.picture(regrow_figure.collect(study[0]), ["90"])
    root = ET.fromstring(text)
    assert {"static", "RigL"} <= {x.text for x in root.iter() if x.text}
