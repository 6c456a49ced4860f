"""`report --scale`: what calls record, and what follows for more documents, held to the same sums by hand."""

import json
import math
import os

import pytest

from data_preprocessing import cli
from data_preprocessing.config import Job
from data_preprocessing.inspection import scale
from data_preprocessing.jobs.plan import make_plan
from data_preprocessing.jobs.run import How, run_job
from data_preprocessing.steps import costs, store


@pytest.fixture(scope="module")
def out(tmp_path_factory, corpus, tokenizer):
    out = tmp_path_factory.mktemp("scale") / "out"
    job = Job(
        source="pubmed", input=(str(corpus),), output=str(out), tokenizer={"path": str(tokenizer)}, msl=64,
        unit_megabytes=0.01, buckets=3, filters={"near_duplicates": 0.8},
    )  # fmt: skip
    run_job(make_plan(job), How())
    return out


def size(folder, *suffixes):
    return sum(p.stat().st_size for p in folder.iterdir() if p.name.endswith(suffixes))


def test_what_was_measured_is_what_lies_there(out, corpus, capsys):
    assert cli.main(["report", str(out), "--scale"]) == 0
    shown, found = capsys.readouterr().out, json.loads((out / "scale.json").read_text())
    steps = found["steps"]
    assert steps["extract"]["bytes_in"] == size(corpus, ".gz")
    written = size(out / "train", ".h5") + size(out / "val", ".h5") + size(out / "documents", ".gz")
    assert steps["encode"]["bytes_out"] == written
    assert {s: c["calls"] for s, c in steps.items()} == {
        "extract": found["units"], "keys": 3, "texts": 3, "near": 3, "groups": 1, "drops": 3, "tokenizer": 1,
        "encode": found["units"], "finish": 1,
    }  # fmt: skip
    assert all(c["measured"] == c["calls"] and c["cpu_seconds"] >= c["longest_seconds"] >= 0 for c in steps.values())
    assert found["machines"] == {costs.describe_machine(): sum(c["calls"] for c in steps.values())}
    (estimate,) = found["estimates"]
    assert estimate["documents"] == 38_000_000 and estimate["tokens"] == 38e6 / found["records"] * found["tokens"]
    assert "38,000,000 PubMed citations, extrapolated:" in shown and "on 512 cores" in shown
    page = (out / "scale.html").read_text()
    assert "on 512 cores" in page and costs.describe_machine() in page and "<script" not in page
    assert cli.main(["report", str(out), "--scale", "--documents", "1000", "5"]) == 0
    assert [e["documents"] for e in json.loads((out / "scale.json").read_text())["estimates"]] == [1000, 5]


def cost(calls, cpu, longest, bytes_out=0):
    return {"calls": calls, "cpu_seconds": cpu, "longest_seconds": longest, "bytes_in": 10, "bytes_out": bytes_out}


def test_an_estimate_is_the_sum_by_hand():
    """1,000 records in 10 units; 100,000 are 1,000 units of the same length."""
    steps = {
        "extract": cost(10, 20.0, 3.0, 700), "keys": cost(8, 4.0, 0.5, 5), "tokenizer": cost(1, 9.0, 9.0),
        "encode": cost(10, 10.0, 1.0, 50), "finish": cost(1, 0.5, 0.5),
    }  # fmt: skip
    found = {"records": 1000, "tokens": 7, "text_bytes": 2e6, "trains_tokenizer_on": 10, "steps": steps}
    e = scale.estimate(found, "", 100_000)
    keys = 4 * 100 * math.log(1e5) / math.log(1e3)
    wanted = {  # CPU seconds, and seconds on 512 cores
        "extract": (2000, 2000 / 512), "keys": (keys, keys / 8), "tokenizer": (45, 45), "encode": (1000, 1000 / 512),
        "finish": (50, 50),
    }  # fmt: skip
    assert {s: (c["cpu_seconds"], c["seconds"]["512"]) for s, c in e["steps"].items()} == {
        s: pytest.approx(pair) for s, pair in wanted.items()
    }
    total = sum(cpu for cpu, _ in wanted.values())
    assert e["seconds"]["1"] == pytest.approx(total) and e["serial_share"] == pytest.approx(95 / total)
    assert (e["input_bytes"], e["work_bytes"], e["output_bytes"], e["tokens"]) == (1000, 70_500, 5000, 700)
    assert set(e["limits"]) == {"keys", "tokenizer", "finish"} and "buckets=512" in e["limits"]["keys"]
    found["trains_tokenizer_on"] = None
    steps["extract"]["longest_seconds"] = 300.0
    e = scale.estimate(found, "", 100_000)
    assert e["steps"]["tokenizer"]["cpu_seconds"] == 9 and "5:00" in e["limits"]["extract"]


def test_jobs_without_figures_are_refused_in_one_line(out, tmp_path, capsys):
    for name in ("report.json", "job.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    assert cli.main(["report", str(tmp_path), "--scale"]) == 2
    assert "work: no call recorded what it cost" in capsys.readouterr().err
    job = json.loads((out / "job.json").read_text())
    for change in ({"inputs": {}}, {"inputs": None}, {"config": {}}, {"tokenizer_sha256": 7}):
        (tmp_path / "job.json").write_text(json.dumps(job | change))
        assert cli.main(["report", str(tmp_path), "--scale"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {tmp_path}/job.json: ") and said.count("\n") == 1


def test_a_marker_that_has_no_figures_counts_as_the_others(out, tmp_path):
    value = store.read_marker(str(out / "work"), "extract", 0)
    before = scale.measure(str(out))["steps"]["extract"]
    marker = out / "work" / "extract" / "00000.json"
    data = marker.read_bytes()
    try:
        for wrong in (None, {}, {"cpu_seconds": "7"}, {"machine": 1}):
            store.mark_done(
                str(out / "work"), "extract", 0, value, None if wrong is None else lambda _, wrong=wrong: wrong
            )
            found = scale.measure(str(out))["steps"]["extract"]
            assert (found["measured"], found["calls"]) == (before["calls"] - 1, before["calls"])
    finally:
        marker.write_bytes(data)
    assert os.path.getsize(marker) == len(data)
