"""What a run prints and where it works: sums, reasons, speeds, TensorBoard's names, moved folders, quoted commands."""

import json
import os
import re
import shlex
import signal
import types
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

import data_preprocessing
import modelzoo
from modelzoo import cli
from modelzoo.backends import peaks
from modelzoo.backends.local import Local
from modelzoo.backends.peaks import Peak
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import dump
from modelzoo.config.sections.device import Backend, Precision
from modelzoo.distributed import Ranks
from modelzoo.sparsity.ledger import Ledger
from modelzoo.tasks import pretrain
from modelzoo.train_state import Step, Timed
from modelzoo.training import console
from modelzoo.training.build import Options
from modelzoo.training.launch import checks, records
from modelzoo.training.runs.folder import RunFolder
from tests.study.conftest import RIGL, tiny_config
from tests.support import examples, make_run, write_manifest, write_shard

NAME = "it's a run"
WARM_UP = {
    "SequentialLR": {
        "schedulers": [
            {"LinearLR": {"initial_learning_rate": 0.0, "end_learning_rate": 0.01, "total_iters": 4}},
            {"ConstantLR": {"learning_rate": 0.01}},
        ]
    }
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("screens")
    for split, n in (("train", 60), ("val", 8)):
        write_shard(root / split / "a.h5", examples(n, msl=12))
        write_manifest(root / split, n_examples=n, msl=12)
    return root


@pytest.fixture
def trained(data, tmp_path, capfd):
    """A run of RigL in a folder with a difficult name, its rate warmed up from 0; its folder and what it printed."""
    folder = tmp_path / NAME
    fields = {"optimizer": {"AdamW": {}}, "schedulers": [WARM_UP], "loggers": ["JSONLLogger", "TensorBoardLogger"]}
    checkpoint = {"steps": 6, "checkpoint_root": str(folder / "kept")}
    whole = tiny_config(data, folder, sparsity=RIGL, checkpoint=checkpoint, **fields)
    pretrain.train(whole, Options(target="CPU", model_dir=str(folder), mode="train_and_eval"), evaluate=True)
    out, err = capfd.readouterr()
    return folder, out, err


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("step ")]


def test_a_run_is_shown_summed_and_explained_and_its_commands_can_be_pasted(trained, capfd):
    folder, out, err = trained
    first, last = lines_of(err)
    assert "lr 0 (warm-up begins at 0)" in first and "lr 1.00e-02" in last
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    churn = sum(r["churn"] for r in log if r["kind"] == "train")
    assert churn > 0 and last.endswith(f"churn {churn:,}")
    assert re.search(r"^speed +\S+ tokens/s after the first step$", out, re.M)  # short: no product is measured
    assert re.search(r"^memory +\S+ \S+ at most$", out, re.M)

    (command,) = re.findall(r"^next +python run.py (.*)$", out, re.M)
    assert cli.main([*shlex.split(command)]) == 0
    assert (folder / "eval.json").exists()
    (logdir,) = re.findall(r"tensorboard --logdir (.*)$", out, re.M)
    events = EventMultiplexer().AddRunsFromDirectory(shlex.split(logdir)[0]).Reload()
    assert list(events.Runs()) == [NAME]
    tags = sorted(events.Runs()[NAME]["tensors"] or events.Runs()[NAME]["scalars"])
    assert tags[:2] == ["loss/train", "loss/validation"] and {"masks/churn", "speed/tokens_per_second"} <= set(tags)


def test_a_moved_run_works_where_it_is(trained, tmp_path, capfd, monkeypatch):
    folder, *_ = trained
    before = (folder / "metrics.jsonl").read_bytes()
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other" / "moved run"
    folder.rename(moved)
    monkeypatch.chdir(tmp_path / "other")
    assert cli.main(["-p", "moved run/config.yaml", "-m", "eval"]) == 0
    said = capfd.readouterr()
    assert f"names {folder}; the run is taken where it is, in moved run" in said.err
    assert (moved / "eval.json").exists() and not folder.exists()
    assert cli.main(["-p", "moved run/config.yaml", "-m", "train", "--max_steps", "14"]) == 0
    said = capfd.readouterr()
    assert "at step 12" in said.err and (moved / "kept" / "step_14").is_dir() and not folder.exists()
    assert (moved / "metrics.jsonl").read_bytes().startswith(before)
    assert os.listdir(moved / "tensorboard") == [NAME]  # the same curves go on
    assert cli.main(["export", "moved run", "out.mdl"]) == 0
    assert cli.main(["report", "moved run", "-o", "r.html"]) == 0 and "Masks over time" in Path("r.html").read_text()
    elsewhere = cli.main(["-p", str(moved / "config.yaml"), "-m", "eval", "-o", str(tmp_path / "new")])
    assert elsewhere == 2  # -o wins


def test_missing_data_is_looked_up_from_a_named_place(trained, tmp_path, capfd, monkeypatch):
    folder, *_ = trained
    monkeypatch.chdir(tmp_path)
    key = "trainer.fit.val_dataloader.0.data_dir"
    assert cli.main(["-p", str(folder / "config.yaml"), "-m", "eval", "--set", f"{key}=data/val"]) == 2
    assert f"data/val: no such data folder in {tmp_path}; " in capfd.readouterr().err


def test_a_config_that_is_no_runs_own_says_where_it_works(data, tmp_path):
    from modelzoo.training.runs.folder import find_model_dir

    whole = tiny_config(data, tmp_path / "asked")
    (tmp_path / "config.yaml").write_text(dump(whole, "one"))
    find = lambda asked=None, overrides=(): find_model_dir(
        str(tmp_path / "config.yaml"), asked, overrides, whole.trainer.init
    )
    assert find() == str(tmp_path / "asked")
    (tmp_path / "launches.jsonl").write_text("{}\n")
    assert find() == str(tmp_path)
    assert find("o") == "o" and find(overrides=["trainer.init.model_dir=x"]) == str(tmp_path / "asked")


def test_speed_and_mfu_leave_the_first_step_out(tmp_path):
    run, tally = make_run(), console.Tally(0)
    step = Step(1.0, 1.0, 0.1, 100, 0, False)
    for seconds, flops in ((50.0, 10**12), (1.0, 3 * 10**12), (3.0, 9 * 10**12)):
        tally.add(Timed(step, seconds, 0.0, 100), Ledger(flops, 2 * flops))
    assert tally.steady == (200 / 4.0, 8e12 / 4.0, 16e12 / 4.0)
    peak = Peak(8e12, "X's peak")
    text = console.describe_run(run, 3 * 2**30, tally, RunFolder(str(tmp_path)), None, 9, "train", None, peak)
    assert "speed      50 tokens/s after the first step\n" in text and "memory     3.00 GiB" in text
    counted = "MFU        25.0% of X's peak\n           FLOPs of live weights, as counted"
    assert f"{counted}; 50.0% if weights that are off counted too\n" in text
    tally.ledger = tuple(Ledger(of.sparse, of.sparse) for of in tally.ledger)  # dense
    assert "\n".join(console.describe_cost(tally, None, peak)[1:]) == counted


def test_a_cpus_product_is_measured_after_a_long_run_and_draws_nothing_of_the_runs(monkeypatch):
    backend = Local(torch.device("cpu"), Backend(), Precision(enabled=False))
    assert peaks.find_peak(backend, peaks.WORTH - 1) is None
    before = torch.get_rng_state()
    found = peaks.find_peak(backend, peaks.WORTH)
    assert found is not None and found.flops > 0 and torch.equal(torch.get_rng_state(), before)
    assert f"plain float32 products reach here with {torch.get_num_threads()} thread" in found.what

    class Two(Ranks):
        size = 2
        gather = staticmethod(lambda value: [value, 2 * value])
        first_does = staticmethod(lambda action: action())
        __init__ = object.__init__

    monkeypatch.setattr(peaks, "measure_products", lambda dtype: 1e9)
    backend.ranks = Two()
    found = peaks.find_peak(backend)
    assert found is not None and found.flops == 3e9 and "3 GFLOP/s" in found.what and "with 2 x " in found.what


def test_a_runs_speed_is_kept_and_its_page_has_the_share(trained, tmp_path, capfd):
    folder, *_ = trained
    kept = json.loads((folder / "speed.json").read_text())
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    flops, dense = ([r[key] for r in log if r["kind"] == "train"] for key in ("flops", "dense_flops"))
    seconds = sum(t["seconds"] for t in timing if t["kind"] == "train") - timing[0]["seconds"]
    assert kept["step"] == 12 and kept["peak"] is None and kept["memory_bytes"] > 2**20
    assert kept["flops_per_second"] == pytest.approx((flops[-1] - flops[0]) / seconds)
    assert kept["dense_flops_per_second"] == pytest.approx((dense[-1] - dense[0]) / seconds)

    peak = {"peak_flops_per_second": 8 * kept["flops_per_second"], "peak": "what X does"}
    (folder / "speed.json").write_text(json.dumps(kept | peak))
    page = str(tmp_path / "r.html")
    assert cli.main(["report", str(folder), "-o", page]) == 0
    assert "MFU 12.5%" in Path(page).read_text() and "as counted, over what X does." in Path(page).read_text()
    (folder / "speed.json").write_text('{"step": "x"}')
    capfd.readouterr()
    assert cli.main(["report", str(folder), "-o", page]) == 0 and "MFU" not in Path(page).read_text()
    assert f"{folder}/speed.json: step" in capfd.readouterr().err


def test_a_speed_that_cannot_be_kept_ends_no_run(tmp_path, capsys):
    tally, folder = console.Tally(0), RunFolder(str(tmp_path / "gone"))
    for seconds in (1.0, 2.0):
        tally.add(Timed(Step(1.0, 1.0, 0.1, 100, 0, False), seconds, 0.0, 100), Ledger(1, 1))
    records.record_speed(folder, 2, tally, None, None)
    assert "speed.json cannot be written" in capsys.readouterr().err and not (tmp_path / "gone").exists()


@pytest.mark.parametrize(("name", "tera"), [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121),
    ("NVIDIA L40S", 362), ("Tesla T4", 65), ("NVIDIA GeForce RTX 4090", None), ("AMD Instinct MI300X", None),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
])  # fmt: skip
def test_a_peak_is_known_by_the_devices_name_or_left_out(name, tera):
    found = peaks.look_up(name, 2)
    assert found is None if tera is None else found is not None and found.flops == 2e12 * tera


def test_names_in_printed_commands_are_quoted():
    """Every text that prints a command: what is put into it goes through shlex."""
    command = re.compile(
        r"(?:python run\.py|python -m data_preprocessing|llama-cli|--logdir|next +open) ?[^{}]*"
        r"\{(?!shlex\.|command|mode\.example|example)"
    )
    files = [path for package in (modelzoo, data_preprocessing) for path in Path(package.__path__[0]).rglob("*.py")]
    bare = [
        f"{path}: {line.strip()}" for path in files for line in path.read_text().split("\n") if command.search(line)
    ]
    assert len(files) > 200 and not bare


@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_a_signal_ended_asks_no_other_rank(first, tmp_path):
    """Another rank may be gone by then; rank 0 still says what was removed."""
    ranks = types.SimpleNamespace(first=first, first_does=lambda _: pytest.fail("waits for the others"))
    if first:
        with pytest.raises(UserError, match=r"config\.yaml, launches\.jsonl.* were removed during the run"):
            checks.check_written(ranks, RunFolder(str(tmp_path)), None, signal.SIGTERM)
    else:
        checks.check_written(ranks, RunFolder(str(tmp_path)), None, signal.SIGTERM)
