"""What a run does with its batches that nobody would ask for is noted, by a plan and by the run; else nothing is."""

import pytest

from modelzoo import host
from modelzoo.cli import main
from modelzoo.config.loading.yaml12 import dump
from modelzoo.config.trainer import Config
from modelzoo.planning.batches import note_batches
from tests.support import TINY, examples, write_shard

NOTES = (
    "repeat examples", "repeats examples", "mixture: ",
    "times in data_dir", "has no effect next to", "neither optimizer.lr nor schedulers",
    "in file order", "validated on", "nats per token",
    "training needs none", "which the model needs too", "This DataLoader",
)  # fmt: skip


@pytest.mark.parametrize(
    "loader,init,words",
    [
        ({}, {}, []),
        ({"batch_size": 9}, {}, ["batches of 9 repeat examples: an epoch has 8"]),
        (
            {"num_samples": 3},
            {},
            [
                "batches of 4 repeat examples: an epoch has 3",
                "num_samples 3: of 8 examples the first ones in file order alone are ever taken",
            ],
        ),
        (
            {"num_samples": 7, "batch_size": 2},
            {},
            ["num_samples 7: of 8 examples the first ones in file order alone are ever taken"],
        ),
        ({"shuffle": False}, {}, ["shuffle: false: of 8 examples the run takes the first 4 in file order"]),
        ({"shuffle": False, "batch_size": 8}, {}, []),
        (
            {"data_dir": None, "mixture": [{"data_dir": d, "weight": 2} for d in "de"], "shuffle": False},
            {},
            ["shuffle: false: an epoch takes the sets of the mixture one after another, in file order"],
        ),
        ({"num_samples": 9}, {}, ["num_samples 9 repeats examples: the data has 8"]),
        (
            {"data_dir": None, "mixture": [{"data_dir": "d", "weight": 3}, {"data_dir": "e", "weight": 1}]},
            {},
            [
                "an epoch takes 12 of the 8 examples of d, some of",
                "an epoch takes 4 of the 8 examples of e; the next one goes on from there",
            ],
        ),
        ({"data_dir": None, "mixture": [{"data_dir": d, "weight": 2} for d in "de"]}, {}, []),
        ({"data_dir": ["d", "d"]}, {}, ["d is named 2 times in data_dir: its examples come 2 times an epoch"]),
        ({"micro_batch_size": 1}, {"grad_accum_steps": 2}, ["micro_batch_size 1 has no effect next to loop.grad"]),
        ({"micro_batch_size": 2}, {"grad_accum_steps": 2}, []),
        ({"num_workers": 2}, {}, ["num_workers 2: there are 1 cores here, which the model needs too"]),
        ({}, {"tokenizer": "none.json"}, ["trainer.init.tokenizer none.json is not there: training needs none, texts"]),
        ({}, {"tokenizer": "d"}, ["trainer.init.tokenizer d holds none: training needs none, texts and exports do"]),
        (
            {},
            {"loss_scaling": "batch_size"},
            ["loss_scaling: batch_size: the training loss that is shown is a sum over"],
        ),
        ({}, {"lr": None}, ["neither optimizer.lr nor schedulers give one; it is 0.001 throughout"]),
    ],
)
def test_plan_and_train_note_the_same(tmp_path, monkeypatch, capsys, loader, init, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(host, "available_cores", lambda: 1)
    for folder in "de":
        write_shard(tmp_path / folder / "a.h5", examples(8))
    sections = {
        "model": {**TINY, "vocab_size": 37, "loss_scaling": init.get("loss_scaling", "num_tokens")},
        "optimizer": {"AdamW": {"lr": init.get("lr", 1e-3)}},
        "precision": {"enabled": False}, "loop": {"max_steps": 1, "grad_accum_steps": init.get("grad_accum_steps", 1)},
        "tokenizer": init.get("tokenizer"),
    }  # fmt: skip
    fit = {"train_dataloader": {"data_dir": "d", "batch_size": 4, "shuffle": True, **loader}}
    (tmp_path / "c.yaml").write_text(dump({"trainer": {"init": sections, "fit": fit}}), encoding="utf-8")
    for mode in ("plan", "train"):
        assert main(["CPU", "-p", "c.yaml", "-m", mode, "-o", "run"]) == 0
        text = "".join(capsys.readouterr())
        found = [line for line in text.splitlines() if any(note in line for note in NOTES)]
        assert len(found) == len(words) and all(w in line for w, line in zip(words, found, strict=True)), text


@pytest.mark.parametrize("steps,batches", [(None, None), (3, None), (1000, "3 batches of 3")])
def test_more_validation_batches_than_there_are_is_noted_where_a_validation_is_due(
    tmp_path, monkeypatch, capsys, steps, batches
):
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "d" / "a.h5", examples(8))
    init = {
        "model": {**TINY, "vocab_size": 37}, "optimizer": {"AdamW": {"lr": 1e-3}}, "precision": {"enabled": False},
        "loop": {"max_steps": 1, "eval_frequency": 1, "eval_steps": steps},
    }  # fmt: skip
    loader = {"data_dir": "d", "batch_size": 3}
    fit = {"train_dataloader": {"data_dir": "d", "batch_size": 4}, "val_dataloader": loader}
    (tmp_path / "c.yaml").write_text(dump({"trainer": {"init": init, "fit": fit}}), encoding="utf-8")
    words = f"eval_steps {steps:,}: d has {batches}, so each validation takes the whole set" if batches else None
    for mode, validates in (("plan", True), ("train_and_eval", True), ("eval", True), ("train", False)):
        assert main(["CPU", "-p", "c.yaml", "-m", mode, "-o", "run" if validates else "alone"]) == 0
        found = [line for line in "".join(capsys.readouterr()).splitlines() if "eval_steps" in line]
        assert len(found) == (batches is not None and validates) and all(words in line for line in found)


def test_validation_on_the_training_data_is_noted(tmp_path):
    write_shard(tmp_path / "d" / "a.h5", examples(8))
    (tmp_path / "link").symlink_to(tmp_path / "d")
    for val, noted in (("link", True), ("e", False)):
        loaders = {"train": tmp_path / "d", "val": tmp_path / val}
        fit = {f"{k}_dataloader": {"data_dir": str(d), "batch_size": 4, "shuffle": True} for k, d in loaders.items()}
        init = {"model": {**TINY, "vocab_size": 37}, "loop": {"max_steps": 1}}
        notes = note_batches(Config.model_validate({"trainer": {"init": init, "fit": fit}}))
        assert [n for n in notes if f"{tmp_path / val} is trained on and validated on" in n] == notes and noted == bool(
            notes
        )
