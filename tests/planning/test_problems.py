"""A plan ends on the lines on which the run would end, and on none where it would go on."""

import json
from pathlib import Path

import pytest

from modelzoo import host
from modelzoo.cli import main
from modelzoo.config.loading.yaml12 import dump
from tests.support import TINY, examples, write_manifest, write_shard


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Calls a mode on a tiny config with changes; returns the exit code and the lines of errors."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        write_shard(tmp_path / "data" / part / "a.h5", examples(8, msl=12))
        write_manifest(tmp_path / "data" / part, vocab_size=37, msl=12, n_examples=8)

    (tmp_path / "data" / "empty").mkdir()
    write_manifest(tmp_path / "data" / "empty", n_examples=0)
    write_shard(tmp_path / "data" / "long" / "b.h5", examples(8, msl=8))

    def call(mode: str, init=None, model=None, data="data/train"):
        sections = {
            "model": {**TINY, "vocab_size": 37, **(model or {})}, "optimizer": {"AdamW": {"lr": 1e-3}},
            "precision": {"enabled": False}, "loop": {"max_steps": 1}, **(init or {}),
        }  # fmt: skip
        named = data if isinstance(data, dict) else {"data_dir": data}
        fit = {"train_dataloader": {"data_dir": "data/train", "batch_size": 4, **named}}
        fit["val_dataloader"] = {"data_dir": "data/val", "batch_size": 4}
        (tmp_path / "c.yaml").write_text(dump({"trainer": {"init": sections, "fit": fit}}), encoding="utf-8")
        code = main(["CPU", "-p", "c.yaml", "-m", mode, "-o", "run"])
        found = capsys.readouterr()
        return code, [line for line in found.err.splitlines() if line.startswith("error: ")], found.out

    return call


def test_a_config_that_runs_has_no_problem(run):
    assert run("plan")[:2] == (0, []) and run("train")[:2] == (0, [])


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"data": "nowhere"}, "nowhere: no such data folder"),
        ({"data": "data"}, "data: holds no HDF5 shard (.h5, .hdf5); did you mean data/train?"),
        ({"model": {"vocab_size": 30}}, "tokens of a vocabulary of 37, but model.vocab_size is 30"),
        ({"model": {"max_position_embeddings": 8}}, "sequences of 12 tokens, but model.max_position_embeddings is 8"),
        ({"data": {"max_sequence_length": 8}}, "a.h5: sequences of 12 tokens, but max_sequence_length is 8"),
        ({"data": {"use_vsl": True}}, "a.h5: use_vsl needs attention_span and position_ids rows; pack with"),
        ({"data": {"data_dir": ["data/train", "data/long"]}}, "b.h5: [3, 8] but data/train/a.h5: [3, 12]; shards of"),
        ({"data": "data/empty"}, "data/empty: holds no example, as its manifest records: no document fell into this"),
        ({"data": {"data_dir": []}}, "trainer.fit.train_dataloader.data_dir: takes at least 1 items, got 0"),
        ({"init": {"lora": {"path": "nowhere"}}}, "nowhere: holds neither adapter_config.json nor soft_prompt.json"),
        ({"init": {"lora": {"path": "lora"}}}, "lora/adapter_config.json: is not valid JSON"),
        ({"init": {"soft_prompt": {"tokens": 2, "init": "file", "path": "soft"}}}, "soft_prompt.safetensors: missing"),
        ({"init": {"loggers": [{"WandbLogger": {"project": "p"}}]}}, "pip install 'mediswift-trainer[wandb]'"),
    ],
)
def test_plan_and_train_end_on_the_same_line(run, monkeypatch, changes, words):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    for name in ("lora/adapter_config.json", "lora/adapter_model.safetensors", "soft/soft_prompt.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{", encoding="utf-8")
    planned, trained = run("plan", **changes), run("train", **changes)
    assert planned[0] == trained[0] == 2
    assert words in planned[1][0] and words in trained[1][0]
    assert "FLOPs" in planned[2] or "takes at least" in words  # the plan itself is there, but of a config that is none


def test_a_plan_counts_the_tokens_of_shards_without_a_manifest(run, tmp_path):
    """Model Zoo's folders have none; a shard may be named alone. The model has room for longer sequences."""
    (tmp_path / "data" / "train" / "manifest.json").unlink()
    loop = {"num_epochs": 3, "max_steps": None}
    for data in ("data/train", "data/train/a.h5"):
        out = run("plan", model={"max_position_embeddings": 64}, init={"loop": loop}, data=data)[2]
        assert "steps      6 of 4 x 12 tokens: 288 tokens" in out and "at 12 tokens of context" in out


def test_memory_beyond_the_machine_is_a_problem(run, monkeypatch):
    monkeypatch.setattr(host, "total_memory", lambda: 100_000)
    code, lines, _ = run("plan")
    assert code == 2 and "and this machine has 0.1 MiB; lower batch_size" in lines[0]


def test_a_rate_that_no_adam_trains_with_is_noted(run):
    code, lines, out = run("plan", init={"optimizer": {"AdamW": {"lr": 3.0}}})
    assert code == 0 and lines == [] and "learning rate: 3 at its highest; Adam moves each weight" in out
    assert "at its highest" not in run("plan")[2]


@pytest.mark.parametrize(
    "file,words",
    [("configs/study/mini.yaml", "is a study, not the config of one run; run.py -p configs/study/mini.yaml -m study"),
     ("configs/eval/medqa.yaml", "is a task, not the config of a run; run.py ... -m score --tasks")],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["plan", "train"])
def test_another_kind_of_file_is_named(file, words, mode, capsys):
    assert main(["-p", file, "-m", mode]) == 2
    assert words in capsys.readouterr().err


def test_json_has_the_figures_of_the_plan(run, capsys):
    run("plan", init={"sparsity": 0.5})
    assert main(["CPU", "plan", "c.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["masked"] == 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert found["parameters"]["total"] - found["parameters"]["live"] == found["parameters"]["masked"] // 2
    assert found["steps"] == 1 and found["tokens"] == 4 * 12 and {d["found"] for d in found["data"]} == {True}
    assert found["flops"]["as_scheduled"] < found["flops"]["dense"] and sum(found["memory"].values()) > 0


def test_a_plan_names_what_a_run_that_is_there_was_configured_with(run):
    assert run("plan")[2].endswith("run: new\n") and run("train")[0] == 0
    assert run("plan")[2].endswith("run: holds a run already, which -m train resumes\n")
    line = run("plan", init={"seed": 9, "loop": {"max_steps": 2}})[2].splitlines()[-1]
    assert line.endswith("; it was configured otherwise: seed: 1 -> 9, loop.max_steps: 1 -> 2")
