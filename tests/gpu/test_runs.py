"""Whole runs on a GPU: resuming is exact, a lack of memory costs no checkpoint, what they leave is read anywhere."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from modelzoo.cli import main
from modelzoo.config.loading.yaml12 import dump
from modelzoo.evaluation.inference import exported
from modelzoo.evaluation.inference.decoding import decode_greedily
from modelzoo.evaluation.inference.likelihoods import compute_likelihoods, score_continuations
from modelzoo.generation.load import load_model
from modelzoo.generation.settings import Settings
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints.snapshot import snapshot
from tests.evaluation_world import words  # noqa: F401 - a fixture
from tests.finetuning import test_finetune
from tests.generation.conftest import write_run
from tests.generation.test_write import PROMPTS, write
from tests.gpu.device import CPU, DEVICE, GPU, SMALL, TARGET, make_run
from tests.support import examples, write_manifest, write_shard

pytestmark = pytest.mark.gpu

REPO = Path(__file__).resolve().parents[2]
UPDATE = {"freq": 3, "stop": 10}
RIGL = {"algorithm": "rigl", "sparsity": 0.5, "update": UPDATE}
BFLOAT16 = {"enabled": True, "emulate": True, "max_gradient_norm": 1.0}
CASES = {
    "dense": {"precision": {"enabled": False, "max_gradient_norm": 1.0}},
    "masked": {"sparsity": RIGL, "precision": BFLOAT16},
    "packed": {"sparsity": {**RIGL, "block": [32, 32], "storage": "packed"}, "precision": BFLOAT16},
    "compiled": {
        "sparsity": {**RIGL, "block": [32, 32], "storage": "packed"}, "precision": BFLOAT16,
        "backend": {"deterministic": True, "torch_compile": GPU},
    },
    "packed columns": {"sparsity": {**RIGL, "algorithm": "set", "block": [32, 1], "storage": "packed"}},
    "float16": {
        "sparsity": {"sparsity": 0.5},
        "precision": {
            "enabled": True, "emulate": True, "fp16_type": "float16", "loss_scaling_factor": "dynamic",
            "steps_per_increase": 2, "initial_loss_scale": 2.0**22,
        },
    },
}  # fmt: skip
BEGUN, STEPS = 5, 11


def write_config(folder: Path, **init) -> Path:
    """A run with dropout, shuffling over epochs and accumulation, in the deterministic mode."""
    write_shard(folder / "data" / "a.h5", examples(19, msl=24))
    sections = {
        "model": {**SMALL, "dropout_rate": 0.1, "attention_dropout_rate": 0.1},
        "optimizer": {"AdamW": {"lr": 1e-3}},
        "loop": {"max_steps": STEPS, "grad_accum_steps": 2},
        "backend": {"deterministic": True, "torch_compile": False},
        "checkpoint": {"steps": 4, "keep": None},
        "loggers": ["ProgressLogger"],
        **init,
    }
    fit = {"train_dataloader": {"data_dir": str(folder / "data"), "batch_size": 4, "shuffle": True}}
    (folder / "c.yaml").write_text(dump({"trainer": {"init": sections, "fit": fit}}))
    return folder / "c.yaml"


def train(params: Path, folder: Path, *more) -> int:
    return main([TARGET, "-p", str(params), "-m", "train", "-o", str(folder), *map(str, more)])


def assert_same(ours: Path, theirs: Path) -> None:
    """The bytes of the logs and of the last checkpoint's tensors."""
    assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    for name in ("model", "optimizer"):
        a, b = (p / "checkpoints" / f"step_{STEPS}" / f"{name}.safetensors" for p in (ours, theirs))
        assert a.read_bytes() == b.read_bytes(), name


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(case, tmp_path):
    """Bit for bit, with steps on the way that are not read and a mask update on either side."""
    params = write_config(tmp_path, **CASES[case])
    assert train(params, tmp_path / "whole") == 0
    assert train(params, tmp_path / "part", "--max_steps", BEGUN) == 0
    assert train(params, tmp_path / "part") == 0
    assert_same(tmp_path / "part", tmp_path / "whole")


def test_another_process_goes_on_with_the_same_bits(tmp_path):
    """It sets by itself what repeatable products ask of the environment, before anything is multiplied."""
    params = write_config(tmp_path, **CASES["packed"])
    env = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    command = [sys.executable, str(REPO / "run.py"), TARGET, "-p", str(params), "-m", "train"]
    done = subprocess.run([*command, "-o", str(tmp_path / "whole")], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert train(params, tmp_path / "part", "--max_steps", BEGUN) == 0
    assert train(params, tmp_path / "part") == 0
    assert_same(tmp_path / "part", tmp_path / "whole")


def test_reading_seldom_changes_nothing(tmp_path):
    """A log record each step, or one in five with the steps between left on the device: the same weights."""
    params = write_config(tmp_path, **CASES["masked"])
    assert train(params, tmp_path / "often") == 0
    assert train(params, tmp_path / "seldom", "--set", "trainer.init.logging.log_steps=5") == 0
    name = f"checkpoints/step_{STEPS}/model.safetensors"
    assert (tmp_path / "often" / name).read_bytes() == (tmp_path / "seldom" / name).read_bytes()
    often, seldom = (
        {x["step"]: x["loss"] for x in map(json.loads, (tmp_path / n / "metrics.jsonl").read_text().splitlines())}
        for n in ("often", "seldom")
    )
    assert seldom == {step: often[step] for step in (5, 10, 11)}


@pytest.mark.skipif(not GPU, reason="a CPU's memory cannot be bounded for a part of a process")
def test_a_lack_of_memory_is_one_line_and_leaves_the_checkpoint(tmp_path, capsys):
    """Room for the model and no more: the line names the keys to lower, and the run goes on where there is room."""
    model = {**SMALL, "hidden_size": 256, "filter_size": 1024, "num_hidden_layers": 8, "max_position_embeddings": 512}
    backend = {"torch_compile": False}
    params = write_config(tmp_path, model=model, loop={"max_steps": 6}, backend=backend, checkpoint={"steps": 2})
    write_shard(tmp_path / "data" / "a.h5", examples(64, msl=512))
    text = params.read_text().replace("batch_size: 4", "batch_size: 32")
    params.write_text(text)
    assert "batch_size: 32" in text
    assert train(params, tmp_path / "run", "--max_steps", 2) == 0
    kept = (tmp_path / "run/checkpoints/step_2/model.safetensors").read_bytes()
    gc.collect()
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + (256 << 20)
    capsys.readouterr()
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
    try:
        assert train(params, tmp_path / "run") == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert line.startswith("error: step 3: not enough memory on this GPU")
    assert "lower trainer.fit.train_dataloader.micro_batch_size to 16 (now 32 of 32 rows at once)" in line
    assert "activation_checkpointing: layer" in line and "the last checkpoint is where the run resumes" in line
    assert (tmp_path / "run/checkpoints/step_2/model.safetensors").read_bytes() == kept
    torch.cuda.empty_cache()
    assert train(params, tmp_path / "run") == 0
    assert (tmp_path / "run/checkpoints/step_6").is_dir()


WRITTEN = {
    "learned": {},
    "rotary": {"model": {"position_embedding_type": "rotary", "rotary_dim": 4}},
    "alibi": {"model": {"position_embedding_type": "alibi"}},
    "packed": {
        "model": {"hidden_size": 64, "filter_size": 128},
        "sparsity": {"sparsity": 0.75, "block": [32, 32], "storage": "packed"},
    },
    "soft prompt": {"soft_prompt": {"tokens": 3, "place": "prefix"}},
    "lora": {"lora": {"r": 2, "alpha": 8, "target_modules": ["*proj_q*", "*linear_layer"]}},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_greedy_texts_are_the_cpus(name, words, tmp_path):  # noqa: F811
    """Token by token, in float32, in one batch whose rows differ in length; the scores of a text are the CPU's, too."""
    folder = write_run(tmp_path / "run", words, **WRITTEN[name])
    here, there = (load_model(str(folder), target=t) for t in ("CPU", TARGET))
    assert next(there.model.parameters()).device.type == DEVICE.type
    settings = Settings(20, repetition_penalty=1.5)
    assert [t.ids for t in write(here, PROMPTS, settings)] == [t.ids for t in write(there, PROMPTS, settings)]
    pairs = [([7, 8, 9 + i], [10, 11, 12][: i + 1]) for i in range(3)]
    prompts, answers = [[5, 6, 7], [3] * 9], [[[1, 2], [1, 3]], [[4], [5], [6]]]
    scores = [score_continuations(m.model, m.backend, pairs, 2) for m in (here, there)]
    assert [g for _, g in scores[0]] == [g for _, g in scores[1]]
    assert [x for x, _ in scores[1]] == pytest.approx([x for x, _ in scores[0]], rel=1e-4)
    likely = [compute_likelihoods(m.model, m.backend, prompts, answers, 2) for m in (here, there)]
    for a, b in zip(*likely, strict=True):
        assert b.log_p == pytest.approx(a.log_p, rel=1e-4)
    written = [decode_greedily(m.model, m.backend, prompts, 5, lambda ids: len(ids) > 3) for m in (here, there)]
    assert written[0] == written[1]


def test_validation_is_the_cpus(tmp_path):
    """Loss and accuracy of one checkpoint, by `-m eval` on both."""
    params = write_config(tmp_path, **CASES["dense"])
    assert train(params, tmp_path / "run", "--max_steps", 2) == 0
    found = []
    for target in ("CPU", TARGET):
        folder = shutil.copytree(tmp_path / "run", tmp_path / f"eval{len(found)}")
        val = ["--set", f"trainer.fit.val_dataloader=[{{data_dir: {tmp_path / 'data'}, batch_size: 4}}]"]
        assert main([target, "-p", str(params), "-m", "eval", "-o", str(folder), *val]) == 0
        found += json.loads((folder / "eval.json").read_text())
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-4)
    assert found[1]["accuracy"] == pytest.approx(found[0]["accuracy"], abs=0.01)


def test_an_export_of_a_run_on_the_device_loads(words, tmp_path):  # noqa: F811
    """Trained here, exported, read by transformers, and its logits compared with our model's on the device."""
    pytest.importorskip("transformers")
    model = {**SMALL, "vocab_size": 320}
    params = write_config(tmp_path, model=model, sparsity=RIGL, precision={"enabled": False})
    write_shard(tmp_path / "data" / "a.h5", examples(19, msl=24, vocab=270))
    write_manifest(tmp_path / "data", eos_id=0, msl=24)
    (tmp_path / "data/tokenizer.json").write_text(words)
    assert train(params, tmp_path / "run") == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    weights = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    assert all(x.device.type == "cpu" for x in weights.values())
    theirs = exported.load_exported(str(tmp_path / "out"), DEVICE).eval()
    ours = load_model(str(tmp_path / "run"), target=TARGET)
    ids = torch.randint(0, 270, (3, 17), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.no_grad():
        a, b = (m.model.logits(m.model.hidden(ids)) for m in (theirs, ours.model))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masks", ["keep", {"open": {"steps": 4, "freq": 2}}], ids=str)
def test_fine_tuning_is_the_cpus(masks, tmp_path):
    """The losses of a few steps from one sparse checkpoint, whose masks stay or open on the way, and the dev scores."""
    test_finetune.write_task(tmp_path / "toy", 8)
    start = make_run(CPU, model=test_finetune.MODEL, sparsity=0.75)
    saving.save(str(tmp_path / "s75/checkpoints"), 0, *snapshot(start, "d"), None)
    test_finetune.byte_tokenizer().save(str(tmp_path / "s75/tokenizer.json"))
    section, init = {"masks": masks, "batch_size": 8}, {"loop": {"max_steps": 6, "eval_frequency": 3}}
    init["backend"] = {"torch_compile": False}
    params, found = test_finetune.write_config(tmp_path, tmp_path / "c.yaml", section, **init), []
    for number, target in enumerate(("CPU", TARGET)):
        out = tmp_path / f"ft{number}"
        argv = [target, "-p", params, "-m", "finetune", "-o", out, "--checkpoint_path", tmp_path / "s75"]
        assert main([*map(str, argv)]) == 0
        (log,) = out.rglob("metrics.jsonl")
        found.append([x["loss"] for x in map(json.loads, log.read_text().splitlines()) if "loss" in x])
    assert len(found[0]) >= 6 and found[1] == pytest.approx(found[0], rel=1e-3)
