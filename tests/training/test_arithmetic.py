"""A config that asks for 16 bits, on processors that multiply them and others: every way to run agrees and says so."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelzoo import version
from modelzoo.backends.arithmetic import decide_arithmetic
from modelzoo.backends.select import Choice
from modelzoo.cli import main
from modelzoo.config.loading import yaml12
from modelzoo.config.loading.load import dump
from modelzoo.config.sections.device import Precision
from modelzoo.kernels import processor
from modelzoo.planning import plan
from modelzoo.tasks import bench
from modelzoo.training.build import build_run
from modelzoo.training.checkpoints import checkpoint, saving
from modelzoo.training.checkpoints.restore import restore
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.support import TINY, batch, config, examples, local, make_run, train_step, write_shard

LACKING = "bfloat16 was asked for; this processor (AVX2) does not multiply it, so float32 here"
OFF, INSIST = "trainer.init.precision.enabled=false", "trainer.init.precision.emulate=true"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shard(folder / "a.h5", examples(16, msl=8))
    return folder


@pytest.fixture
def run(data, tmp_path):
    """Run a mode on a tiny bfloat16 config: `run(mode, folder, *flags)`."""
    wide = {**TINY, "hidden_size": 64, "filter_size": 64}
    init = {
        "model": wide, "optimizer": {"AdamW": {"lr": 1e-2}}, "loop": {"max_steps": 6, "eval_frequency": 3},
        "precision": {"max_gradient_norm": 1.0}, "sparsity": {"sparsity": 0.5, "init_method": "topk"},
        "checkpoint": {"steps": 2, "keep": None}, "loggers": ["ProgressLogger"],
    }  # fmt: skip
    loader = {"data_dir": str(data), "batch_size": 4}
    fit = {"train_dataloader": loader, "val_dataloader": loader}
    (tmp_path / "c.yaml").write_text(yaml12.dump({"trainer": {"init": init, "fit": fit}}))

    def call(mode: str, folder: str, *flags: str) -> Path:
        sets = [word for flag in flags for word in (("--set", flag) if flag.startswith("trainer.") else (flag,))]
        written = [] if mode == "bench" else ["-o", tmp_path / folder]
        argv = ["CPU", "-p", tmp_path / "c.yaml", "-m", mode, *written, *sets]
        assert main([str(a) for a in argv]) == 0
        return tmp_path / folder

    return call


def launches(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "launches.jsonl").read_text().splitlines()]


def results(folder: Path) -> tuple[bytes, dict]:
    """The log's bytes and the last weights."""
    return (folder / "metrics.jsonl").read_bytes(), load_file(folder / "checkpoints/step_6/model.safetensors")


def same(a, b) -> bool:
    return a[0] == b[0] and all(torch.equal(a[1][name], b[1][name]) for name in b[1])


@pytest.mark.parametrize("name", ["plain", "neon", "avx2", "avx512"])
def test_without_bf16_a_run_is_the_float32_run_to_the_bit(run, act_as, name, capsys):
    act_as(name)
    followed = run("train_and_eval", "followed")
    err = capsys.readouterr().err
    title = processor.TITLES[name]
    assert f"threads, {title}), float32\n" in err and err.count(f"this processor ({title}) does not multiply it") == 1
    launch = launches(followed)[0]
    assert launch["version"] == version.describe()
    assert (launch["class"], launch["dtype"]) == (name, "float32") and launch["device"].endswith(", float32")
    assert any("bfloat16 was asked for" in note for note in launch["notes"])
    whole = run("train_and_eval", "whole", OFF)
    assert "was asked for" not in capsys.readouterr().err
    assert launches(whole)[0]["notes"] == [] and same(results(followed), results(whole))


def test_insisting_is_what_a_processor_with_bf16_computes(run, act_as, capsys):
    act_as("amx")
    native = run("train_and_eval", "native")
    assert "AMX), bfloat16\n" in capsys.readouterr().err and launches(native)[0]["notes"] == []
    act_as("avx2")
    insisted = run("train_and_eval", "insisted", INSIST)
    assert "bfloat16 is emulated, as trainer.init.precision.emulate asks" in capsys.readouterr().err
    assert (launches(insisted)[0]["class"], launches(insisted)[0]["dtype"]) == ("avx2", "bfloat16")
    assert same(results(insisted), results(native))
    assert not same(results(insisted), results(run("train_and_eval", "float32")))


def test_eval_plan_bench_and_the_dry_run_say_so(run, act_as, capsys, monkeypatch):
    act_as("avx2")
    folder = str(run("train", "run"))
    capsys.readouterr()
    run("eval", "run")
    out, err = capsys.readouterr()
    assert "AVX2), float32" in err and LACKING in err
    run("plan", "run")
    assert f"\narithmetic float32 on this CPU: {LACKING}" in capsys.readouterr().out
    run("train", "dry", "--validate_only")
    out, err = capsys.readouterr()
    assert LACKING in err and "AVX2), float32" in out
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "FEWEST", 2)
    monkeypatch.setattr(bench, "PATTERNS", ({"storage": "masked"},))
    run("bench", "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("AVX2), float32") and LACKING in lines[1]
    config_file = f"{folder}/config.yaml"
    assert main(["CPU", "-p", config_file, "-m", "plan", "--set", INSIST]) == 0
    assert "arithmetic bfloat16 on this CPU: bfloat16 is emulated" in capsys.readouterr().out


def test_the_memory_estimate_follows(act_as):
    def activations(target="CPU", **precision):
        made = config(precision=precision)
        return plan.make_plan(made, target).bytes["activations (estimate)"]

    act_as("amx")
    half, whole = activations(), activations(enabled=False)
    assert half < whole == activations(enabled=False, emulate=True)
    act_as("avx512")
    assert activations() == activations("auto") == whole and activations(emulate=True) == half
    gpu = activations("GPU")  # whose fused attention keeps no scores, as plain products do, nor its output twice
    assert gpu < activations("CSX") < half and gpu < activations("GPU", enabled=False) < whole


# --- resuming in another arithmetic -----------------------------------------------------------------------------------


def changes(folder: Path) -> list[list[str]]:
    """Of each launch, the notes on a change of arithmetic."""
    return [[n for n in launch["notes"] if n.startswith("arithmetic")] for launch in launches(folder)]


def test_a_resumed_run_says_that_its_arithmetic_changes(run, act_as, capsys):
    act_as("avx512_bf16")
    folder = run("train", "run", "--max_steps", "2")
    assert "arithmetic" not in capsys.readouterr().err
    act_as("avx2")
    run("train", "run", "--max_steps", "4")
    lines = capsys.readouterr().err.splitlines()
    line = "arithmetic bfloat16 until step 2, float32 from here: this processor (AVX2) does not multiply bfloat16"
    assert lines.count(line) == 1
    run("train", "run", "--max_steps", "6")
    assert "until step" not in capsys.readouterr().err
    act_as("amx")
    run("train", "run", "--max_steps", "8")
    back = (
        "arithmetic float32 until step 6, bfloat16 from here: this processor (AVX-512 with bf16 and AMX) multiplies it"
    )
    assert back in capsys.readouterr().err.splitlines()
    run("train", "run", "--max_steps", "10", OFF)
    off = "arithmetic bfloat16 until step 8, float32 from here: trainer.init.precision.enabled is false"
    assert off in capsys.readouterr().err.splitlines()
    assert changes(folder) == [[], [line], [], [back], [off]]


def test_what_does_not_go_on_with_the_run_says_nothing_of_it(run, act_as, capsys):
    """Evaluation in other arithmetic, a finished run, and a new run from its weights."""
    act_as("avx512_bf16")
    folder = run("train", "run")
    act_as("avx2")
    run("eval", "run")
    run("train", "run")
    last = ("--checkpoint_path", str(folder / "checkpoints/step_6"))
    new = run("train", "new", *last, "--load_checkpoint_states", "model,sparsity")
    assert "until step" not in capsys.readouterr().err and changes(new) == [[]]
    continued = run("train", "continued", *last, "--max_steps", "7")
    assert "arithmetic bfloat16 until step 6" in capsys.readouterr().err and len(changes(continued)[0]) == 1


def test_a_checkpoint_from_before_this_was_recorded_resumes(run, act_as, capsys):
    act_as("avx512_bf16")
    folder = run("train", "run", "--max_steps", "2")
    files, saved = checkpoint.load(str(folder / "checkpoints/step_2"))
    del saved["dtype"], saved["loss_scale"]["dynamic"]
    saving.save(str(folder / "checkpoints"), 2, files, saved, None)
    act_as("avx2")
    run("train", "run", "--max_steps", "4")
    assert "until step" not in capsys.readouterr().err and launches(folder)[1]["from_step"] == 2


# --- float16 in place of bfloat16 -------------------------------------------------------------------------------------


def on_an_old_gpu(**precision):
    """A backend and a run as on a GPU without bfloat16, with its float16 emulated here."""
    backend, whole = local(), config(precision=precision)
    backend.arithmetic = decide_arithmetic("GPU", whole.trainer.init.precision, False, "this GPU")
    backend.dtype = getattr(torch, backend.arithmetic.dtype)
    return backend, build_run(whole, Choice(backend, "GPU", None))


def test_float16_in_place_of_bfloat16_trains_with_a_dynamic_scale():
    (backend, run), whole = on_an_old_gpu(), make_run()
    assert backend.dtype == torch.float16 and run.loss_scale.dynamic
    for step in range(12):
        half = backend.train_step(run, batch(step), 2)
        if not half.skipped:
            assert half.loss == pytest.approx(train_step(whole, batch(step), 2).loss, rel=0.01)
    assert run.skipped < 6 and run.loss_scale.scale == 2.0 ** (16 - run.skipped)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_run_from_bfloat16_begins_with_a_fresh_scale(tmp_path, recorded):
    """The 1 that a run without a scale saves is no scale that overflows have found."""
    before = make_run()
    train_step(before, batch(), 1)
    files, saved = snapshot(before, "f")
    if not recorded:
        del saved["dtype"], saved["loss_scale"]["dynamic"]
    run = on_an_old_gpu()[1]
    restore(run, "x", files, saved, "f")
    assert run.loss_scale.scale == 2.0**16
    run.loss_scale.scale, run.loss_scale.good_steps = 1.0, 0  # which a dynamic scale may come to
    again = on_an_old_gpu()[1]
    restore(again, "x", *snapshot(run, "f"), "f")
    assert again.loss_scale == run.loss_scale


# --- packed kernels, studies, tasks -----------------------------------------------------------------------------------


def test_packed_weights_multiply_in_the_runs_arithmetic(monkeypatch):
    monkeypatch.setenv(processor.SWITCH, "plain")
    model = {**TINY, "hidden_size": 64, "filter_size": 128}
    section = {"sparsity": 0.5, "block": [32, 32], "storage": "packed"}
    precisions = ({}, {"enabled": False}, {"emulate": True})
    followed, whole, insisted = (make_run(model=model, sparsity=section, precision=p) for p in precisions)
    assert followed.sparsity.notes == whole.sparsity.notes and "in float32 on cpu" in whole.sparsity.notes[0]
    assert "in bfloat16 on cpu" in insisted.sparsity.notes[0]
    for step in range(5):
        losses = [train_step(r, batch(step), 1).loss for r in (followed, whole, insisted)]
        assert losses[0] == losses[1] != losses[2] == pytest.approx(losses[1], rel=0.01)


def test_a_study_and_its_children_compute_alike(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(processor.SWITCH, "plain")  # which every machine can act as, in children too
    loaders = {k: {"data_dir": str(data), "batch_size": 4} for k in ("train_dataloader", "val_dataloader")}
    base = config(precision={}, optimizer={"AdamW": {}}).model_dump(mode="json", by_alias=True)
    base["trainer"]["fit"] = loaders
    base = type(config()).model_validate(base)
    (tmp_path / "base.yaml").write_text(dump(base))
    study = {"base": "base.yaml", "output": str(tmp_path / "out"), "budget": {"steps": 2},
             "learning_rate": {"peak": 0.01}, "axes": {"size": {"tiny": {}}}}  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml12.dump({"study": study}))
    assert main(["CPU", "-p", str(tmp_path / "study.yaml"), "-m", "study"]) == 0
    assert "arithmetic float32 on this CPU: bfloat16 was asked for" in capsys.readouterr().out
    (child,) = (tmp_path / "out/runs").iterdir()
    assert (launches(child)[0]["class"], launches(child)[0]["dtype"]) == ("plain", "float32")
    assert ", float32" in (tmp_path / "out/report.html").read_text()


def test_the_insisting_key_is_idle_where_float32_is_asked_for(capsys, tmp_path):
    init = {"model": TINY, "loop": {"max_steps": 1}, "precision": {"enabled": False, "emulate": True}}
    (tmp_path / "c.yaml").write_text(yaml12.dump({"trainer": {"init": init}}))
    assert main(["-p", str(tmp_path / "c.yaml"), "-m", "plan"]) == 0
    assert "trainer.init.precision.emulate: enabled: false computes in float32" in capsys.readouterr().out


def test_the_default_asks_for_nothing_slow():
    assert Precision().emulate is False
