"""A folder of another kind than a command takes is answered in one line, which says what it is and what takes it."""

import shutil

import pytest

from data_preprocessing.cli import main as prepare
from modelzoo.cli import main
from modelzoo.config.loading.yaml12 import dump
from modelzoo.folders import describe_folder
from tests.support import TINY, examples, write_shard

RUN = "it is a run: compare, report, export, generate"
BELOW = "it holds the run {folder}/"
EXPORT = "it is an exported model: generate and -m score take it, `run.py import export RUN` makes it a run"
KINDS = {  # folder: its files, and what it is called
    "run": (["config.yaml", "checkpoints/step_2/state.json"], RUN),
    "run/checkpoints/step_2": ([], "it is a checkpoint, of the run run"),
    "run/evaluation": (["results.json", "toy_dev.json"], "it holds scores of run, which is the run"),
    "run/checkpoints": (["step_2/model.safetensors"], "it is a part of the run run"),
    "run/tensorboard": (["events.out.tfevents.1"], "it is a part of the run run"),
    "tuned": (["results.json", "fold_0/seed_1/config.yaml", "fold_0/seed_1/best/step_2/state.json"], BELOW),
    "study": (["report.html", "runs/s75/config.yaml", "runs/s75/launches.jsonl"], BELOW),
    "export": (["config.json", "model.safetensors", "tokenizer.json"], EXPORT),
    "data": (["a.h5", "manifest.json", "tokenizer.json"], "it holds training data, which trainer.fit.train_dataloader"),
    "job": (["job.json", "train/a.h5"], "data_dir takes: job/train"),
    "job/train": ([], "it holds training data of the output job, which trainer.fit.train_dataloader.data_dir takes"),
    "job/work": (["extract/0.json"], "it is a part of the output job"),
    "tokenizer": (["tokenizer.json"], "it holds a tokenizer: trainer.init.tokenizer and --tokenizer take it"),
    "empty": ([], "it is empty"),
    "other": (["notes.txt"], ""),
}
ALL = tuple(KINDS)
RUNS = ("run", "run/checkpoints/step_2", "run/checkpoints")
DATA = ("data", "job", "job/train")
COMMANDS = {  # a command, and the kinds that it takes
    "compare {F} -o c.svg": ("run",),
    "report {F} -o r.html": ("run",),
    "export {F} hf": RUNS,
    "push {F} --repo a/b --license mit": ("export",),
    "prompt {F}": RUNS,
    "generate {F} --prompt x": (*RUNS, "export"),
    "import {F} imported": ("export",),
    "prune {F} pruned --method magnitude --sparsity 0.5": (*RUNS, "export"),
    "-p {F} -m plan": (),
    "CPU -p {F} -m study": (),
    "CPU -p c.yaml -m train --checkpoint_path {F} --load_checkpoint_states model -o out": RUNS,
    "CPU -p c.yaml -m eval --checkpoint_path {F} -o out": RUNS,
    "CPU -p c.yaml -m eval -o {F}": ("run", "run/checkpoints/step_2"),
    "CPU -p c.yaml -m finetune --set trainer.finetune.task=t.yaml --checkpoint_path {F} -o out": RUNS,
    "CPU -p c.yaml -m score --tasks t.yaml --checkpoint_path {F} -o out": (*RUNS, "export"),
    "CPU -p c.yaml -m train --set trainer.fit.train_dataloader.data_dir={F} -o out": DATA,
    "inspect {F}": DATA,
    "verify {F}": DATA,
    "report {F}": ("job",),
    "report {F} --scale": ("job",),
    "pack --input {F} --output out --msl 8 --eos_id 0 --vocab_size 9": DATA,
}
PREPARING = list(COMMANDS)[-5:]  # of data_preprocessing; the others are run.py's


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for folder, (files, _) in KINDS.items():
        for name in files or ["."]:
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=True) if name == "." else path.touch()
    write_shard(root / "shards" / "a.h5", examples(8))
    init = {"model": {**TINY, "vocab_size": 37}, "optimizer": {"AdamW": {"lr": 1e-3}}, "loop": {"max_steps": 1}}
    loader = {"data_dir": "shards", "batch_size": 4}
    fit = {"train_dataloader": loader, "val_dataloader": loader}
    (root / "c.yaml").write_text(dump({"trainer": {"init": init, "fit": fit}}), encoding="utf-8")
    (root / "dev.tsv").write_text("id\tquestion\tlabel\n1\tx\ty\n", encoding="utf-8")
    (root / "template.yaml").write_text('source: "{question}"\ntarget: " {label}"\nlabels: {y: y, n: n}\n')
    (root / "t.yaml").write_text("form: classification\ndata_dir: .\ntemplate: template.yaml\ndev: dev.tsv\n")
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_of_another_kind_is_named_for_what_it_is(world, command, monkeypatch, capsys):
    monkeypatch.chdir(world)
    run = prepare if command in PREPARING else main
    for folder in ALL:
        if folder in COMMANDS[command]:
            continue
        assert run(command.format(F=folder).split()) == 2
        found = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        assert len(found) == 1 and f"error: {folder}" in found[0], found
        config = command.startswith(("-p {F}", "CPU -p {F}")) and folder in ("run", "tuned", "study")
        words = "; did you mean {folder}/" if config else KINDS[folder][1]
        assert words.format(folder=folder) in found[0], found


def test_a_run_that_begins_in_a_folder_of_another_kind_notes_it(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    for folder in ("export", "empty", "new"):
        if folder != "new":
            shutil.copytree(folder, tmp_path / folder)
        assert main(["CPU", "-p", "c.yaml", "-m", "train", "-o", str(tmp_path / folder)]) == 0
        printed = capsys.readouterr().err
        assert (f"{tmp_path / folder}: it is an exported model" in printed) == (folder == "export")
        assert ("; the run is written next to it" in printed) == (folder == "export")
    assert describe_folder(str(tmp_path / "new")).startswith(RUN)
