"""Fine-tuning end to end on a toy task: it learns, keeps the best weights, stops early, resumes exactly, refuses."""

import json
import shutil
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from modelzoo.cli import main
from modelzoo.config.errors import UserError
from modelzoo.config.loading.load import load, resolve, validate
from modelzoo.config.sections.finetune import EarlyStopping
from modelzoo.config.trainer import Config
from modelzoo.evaluation.examples.example import Example
from modelzoo.evaluation.examples.sample import take_sample
from modelzoo.finetuning import job
from modelzoo.planning import plan_text, start_checkpoint
from modelzoo.training.checkpoints import saving
from modelzoo.training.checkpoints.snapshot import snapshot
from tests import commands
from tests.support import batch, make_run, train_step

REPO = Path(__file__).resolve().parents[2]
VOCABULARY = 300
MODEL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "filter_size": 64, "vocab_size": VOCABULARY,
    "max_position_embeddings": 64, "dropout_rate": 0.0, "attention_dropout_rate": 0.0,
}  # fmt: skip


def byte_tokenizer() -> Tokenizer:
    """Bytes as tokens, and an end of text: enough to spell anything."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**vocab, "<|endoftext|>": len(vocab)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def question(i: int) -> str:
    return f"is {i % 7}{'ab'[i % 2]} odd?"


def write_task(folder: Path, n: int = 32) -> Path:
    """Yes/no questions whose answer hangs on one letter: learnable by rote, and by rule."""
    folder.mkdir(exist_ok=True)
    for split, first in (("train", 0), ("dev", n)):
        rows = [
            {"id": str(i), "question": question(i), "context": "x" * (i % 5), "label": ["no", "yes"][i % 2]}
            for i in range(first, first + n)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "plain.yaml").write_text(
        'source: "{context}{question}"\ntarget: " {label}"\nlabels: {"yes": "y", "no": "n"}\n'
    )
    task = {
        "form": "classification",
        "data_dir": str(folder),
        "template": "plain.yaml",
        "train": "train.jsonl",
        "dev": "dev.jsonl",
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(task))
    return folder / "toy.yaml"


def taught():
    """A model that has learned the task both ways, by a mark before the answer: + as it is, - with answers swapped."""
    run = make_run(model=MODEL, optimizer={"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.0, "lr": 5e-3}})
    tokenizer = Tokenizer.from_str(byte_tokenizer().to_str())
    data = torch.full((64, 3, 32), tokenizer.token_to_id("<|endoftext|>"), dtype=torch.int32)
    data[:, 1] = 0
    for row, (i, mark) in zip(data, [(i, m) for i in range(32) for m in (0, 1)], strict=True):
        text = "x" * (i % 5) + question(i) + "+-"[mark] + " " + "ny"[(i + mark) % 2]
        ids = tokenizer.encode(text).ids
        row[0, : len(ids)] = torch.tensor(ids)
        row[2, : len(ids) - 1] = torch.tensor(ids[1:])
        row[1, len(ids) - 3 : len(ids)] = 1
    rows = dict(zip(("input_ids", "attention_mask", "labels"), data.unbind(1), strict=True))
    for _ in range(1500):
        if train_step(run, rows, 1).loss < 0.02:
            return run
    raise AssertionError("it did not learn both ways")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A task, and checkpoints of a sparse and a dense run with a tokenizer beside them."""
    root = tmp_path_factory.mktemp("world")
    write_task(root / "toy")
    for name in ("s75", "dense", "taught"):
        run = taught() if name == "taught" else make_run(model=MODEL, sparsity=0.75 if name == "s75" else [])
        for step in range(0 if name == "taught" else 2):
            train_step(run, batch(step, length=24, vocab=200), 1)
        saving.save(str(root / name / "checkpoints"), run.step, *snapshot(run, "d"), None)
        byte_tokenizer().save(str(root / name / "tokenizer.json"))
    return root


def write_config(world: Path, path: Path, finetune=None, **init) -> Path:
    sections = {
        "optimizer": {"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.0, "lr": 5e-3}},
        "precision": {"enabled": False, "max_gradient_norm": 1.0},
        "loop": {"max_steps": 60, "eval_frequency": 20},
        "checkpoint": {"steps": 10},
        "loggers": ["ProgressLogger"],
        **init,
    }
    section = {"task": str(world / "toy" / "toy.yaml"), "batch_size": 16, "masks": "lift", **(finetune or {})}
    path.write_text(yaml.safe_dump({"trainer": {"init": sections, "finetune": section}}))
    return path


def run_py(*args) -> int:
    return main([*map(str, args)])


def result(folder: Path, seed: int = 1) -> dict:
    return json.loads((folder / "fold_0" / f"seed_{seed}" / "result.json").read_text())


def adam(lr: float) -> dict:
    return {"optimizer": {"AdamW": {"lr": lr, "weight_decay": 0.0}}}


EVERYWHERE = {"r": 8, "alpha": 32, "target_modules": ["*linear_layer", "*dense_layer"]}
MODES = {
    "lifted": ("s75", {}, {}),
    "kept": ("s75", {"masks": "keep"}, {}),
    "opened": ("s75", {"masks": {"open": {"steps": 40, "freq": 10}}}, {}),
    "dense": ("dense", {}, {}),
    "prompt and model": ("s75", {}, {"soft_prompt": {"tokens": 3, "train": "all"}}),
    "prefix and model": ("dense", {}, {"soft_prompt": {"tokens": 3, "place": "prefix", "train": "all"}}),
    # A frozen model can only be asked for what it has learned: the prompt finds out what the mark `+` says.
    "prompt alone": ("taught", {}, {"soft_prompt": {"tokens": 2}, **adam(0.05)}),
    "lora": ("taught", {}, {"lora": EVERYWHERE, **adam(5e-3)}),
}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_learns_32_examples_by_heart(world, tmp_path, mode, capsys, monkeypatch):
    """Within 240 steps; once it knows them all there is nothing left to learn."""
    monkeypatch.setattr(job, "is_exhausted", lambda scores, early: 1.0 in scores)
    ckpt, finetune, init = MODES[mode]
    loop = {"max_steps": 240, "eval_frequency": 20}
    shutil.copytree(world / "toy", tmp_path / "toy")
    shutil.copy(tmp_path / "toy" / "train.jsonl", tmp_path / "toy" / "dev.jsonl")  # scored on what it learns
    finetune = {"data_dir": str(tmp_path / "toy"), "batch_size": 32, **finetune}
    config = write_config(world, tmp_path / "c.yaml", finetune, loop=loop, **init)
    assert run_py("CPU", "-p", config, "-m", "finetune", "--checkpoint_path", world / ckpt, "-o", tmp_path / "o") == 0
    assert result(tmp_path / "o")["scores"]["dev"]["metrics"]["accuracy"] == 1.0
    assert result(tmp_path / "o")["scores"]["dev"]["majority"]["accuracy"] == 0.5
    assert "accuracy" in capsys.readouterr().out


def test_seeds_differ_finished_runs_stay_and_the_best_weights_are_kept(world, tmp_path, capsys):
    config = write_config(world, tmp_path / "c.yaml", {"seeds": [1, 2]})
    args = ("CPU", "-p", config, "-m", "finetune", "--checkpoint_path", world / "s75", "-o", tmp_path / "o")
    assert run_py(*args) == 0
    assert capsys.readouterr().err.count(" tokens/s after the first step\n") == 2
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert [r["seed"] for r in results] == [1, 2]
    for r in results:
        scores = {d["step"]: d["accuracy"] for d in r["dev"]}
        best = max(scores.values())
        assert r["best_step"] == min(s for s, x in scores.items() if x == best)
        assert r["scores"]["dev"]["metrics"]["accuracy"] == best
        assert Path(r["best"]).name == f"step_{r['best_step']}"
    losses = [(tmp_path / f"o/fold_0/seed_{s}/metrics.jsonl").read_text() for s in (1, 2)]
    assert losses[0] != losses[1]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "o").rglob("step_*/*")}
    assert run_py(*args) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "o").rglob("step_*/*")} == before
    assert "mean of 2" in capsys.readouterr().out


def test_batches_are_noted_as_by_pre_training(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    loop = {"max_steps": 1, "eval_frequency": 1, "grad_accum_steps": 2}
    section = {"batch_size": 40, "micro_batch_size": 10, "num_dev_examples": 2}
    config = write_config(world, tmp_path / "c.yaml", section, loop=loop)
    (tmp_path / "o").mkdir()
    byte_tokenizer().save(str(tmp_path / "o" / "tokenizer.json"))
    args = ("CPU", "-p", config, "-m", "finetune", "--checkpoint_path", world / "s75", "-o", tmp_path / "o")
    assert run_py(*args) == 0
    printed = capsys.readouterr().err
    place = f"{tmp_path / 'o'}: it holds a tokenizer"
    assert place in printed and run_py(*args) == 0 and place not in capsys.readouterr().err
    assert printed.count("batches of 40 repeat examples: an epoch has 32\n") == 1
    assert "micro_batch_size 10 has no effect next to loop.grad_accum_steps" in printed


def test_examples_without_label_or_text_are_counted(world, tmp_path, capsys):
    shutil.copytree(world / "toy", tmp_path / "toy")
    rows = [json.loads(line) for line in (tmp_path / "toy/dev.jsonl").read_text().splitlines()]
    drawn = {e.id for e in take_sample([Example(str(r["id"]), {}, None) for r in rows], 8)}
    drawn_rows = [r for r in rows if str(r["id"]) in drawn]
    for i in (0, 5):
        drawn_rows[i]["label"] = None
    (tmp_path / "toy/dev.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    section = {"data_dir": str(tmp_path / "toy"), "num_examples": 99, "num_dev_examples": 8}
    config = write_config(world, tmp_path / "c.yaml", section, loop={"max_steps": 1, "eval_frequency": 1})
    assert run_py("CPU", "-p", config, "-m", "finetune", "--checkpoint_path", world / "s75", "-o", tmp_path / "o") == 0
    printed, found = capsys.readouterr().err, result(tmp_path / "o")
    assert "train      trainer.finetune.num_examples: 99 are asked for, the split has 32\n" in printed
    assert (
        f"dev        trainer.finetune.num_dev_examples: 8 of the split's {len(rows)}, drawn by their ids\n" in printed
    )
    assert f"dev        2 without a label: not scored (first: {drawn_rows[0]['id']})\n" in printed
    bare = [r["id"] for r in drawn_rows if not r["context"].strip()]
    empty = "with an empty {context}: taken as they are"
    assert found["scores"]["dev"]["n"] == 6 and found["remarks"] == {
        "train": {empty: {"count": 7, "first": "0"}},
        "dev": {
            "without a label: not scored": {"count": 2, "first": drawn_rows[0]["id"]},
            **({empty: {"count": len(bare), "first": bare[0]}} if bare else {}),
        },
    }  # fmt: skip


def test_results_of_another_config_are_not_shown_as_new(world, tmp_path, capsys):
    out = tmp_path / "o"
    command = ("CPU", "-m", "finetune", "-o", out, "--max_steps", "4")
    config = write_config(world, tmp_path / "c.yaml")
    assert run_py(*command, "-p", config, "--checkpoint_path", world / "s75") == 0
    before = (out / "results.json").read_bytes()
    others = [
        ("optimizer.AdamW.lr: 0.005 -> 0.001", ["--set", "trainer.init.optimizer.AdamW.lr=1e-3"], "s75"),
        ("trainer.finetune.checkpoint", [], "dense"),
        ("finetune.masks", ["--set", "trainer.finetune.masks=keep"], "s75"),
    ]
    capsys.readouterr()
    for message, more, start in others:
        assert run_py(*command, "-p", config, "--checkpoint_path", world / start, *more) == 2
        found = capsys.readouterr()
        assert message in found.err and "dev (" not in found.out and (out / "results.json").read_bytes() == before
    more = ["--set", "trainer.init.optimizer.AdamW.lr=1e-3", "--restart"]
    assert run_py(*command, "-p", config, "--checkpoint_path", world / "s75", *more) == 0
    assert (out / "fold_0/seed_1/before_1/result.json").exists()


def test_the_card_of_a_fine_tuned_export_tells_where_it_comes_from(world, tmp_path):
    config = write_config(world, tmp_path / "c.yaml", loop={"max_steps": 2, "eval_frequency": 2})
    out = tmp_path / "o"
    assert run_py("CPU", "-p", config, "-m", "finetune", "--checkpoint_path", world / "s75", "-o", out) == 0
    assert run_py("export", out / "fold_0" / "seed_1", tmp_path / "hf") == 0
    card, found = (tmp_path / "hf" / "README.md").read_text(), result(out)
    assert f"fine-tuned from `{found['start']}`; its masks: lift" in card
    assert "32 examples of toy (fold 0)" in card
    for metric, value in found["scores"]["dev"]["metrics"].items():
        low, high = found["scores"]["dev"]["intervals"][metric]
        base = found["scores"]["dev"]["majority"][metric]
        assert f"| toy | dev | 32 | {metric} | {value:.4f} | {low:.4f} to {high:.4f} | {base:.4f} |" in card
    assert "-m finetune --checkpoint_path" in card and "Not for clinical use" in card and "## Privacy" in card
    assert (tmp_path / "hf" / "tokenizer.json").exists()


@pytest.mark.parametrize("mode", ["lifted", "opened", "prompt and model"])
def test_a_killed_run_goes_on_exactly(world, tmp_path, mode):
    ckpt, finetune, init = MODES[mode]
    finetune = {"optimizer": "keep", **finetune} if mode == "lifted" else finetune
    config = write_config(world, tmp_path / "c.yaml", finetune, **init)
    args = ["CPU", "-p", str(config), "-m", "finetune", "--checkpoint_path", str(world / ckpt), "-o"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_py(*args, whole) == 0
    child = commands.start([*args, killed])
    step = killed / "fold_0" / "seed_1" / "checkpoints" / "step_30"
    deadline = time.monotonic() + 120
    while not step.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    commands.kill(child)
    assert run_py(*args, killed) == 0
    for name in ("metrics.jsonl", "predictions.json"):
        a, b = (f / "fold_0" / "seed_1" / name for f in (whole, killed))
        assert a.read_text() == b.read_text()
    ends = [f / "fold_0" / "seed_1" / "checkpoints" / "step_60" for f in (whole, killed)]
    for name in ("model.safetensors", "optimizer.safetensors"):
        a, b = (safetensors.torch.load_file(f / name) for f in ends)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_going_on_in_another_arithmetic_is_said_and_beginning_in_one_is_not(world, tmp_path, act_as, capsys):
    loop, precision = {"max_steps": 4, "eval_frequency": 4}, {"precision": {"max_gradient_norm": 1.0}}
    config = write_config(world, tmp_path / "c.yaml", loop=loop, checkpoint={"steps": 2}, **precision)
    args = ("CPU", "-p", config, "-m", "finetune", "--checkpoint_path", world / "s75", "-o", tmp_path / "o")
    act_as("amx")
    assert run_py(*args) == 0  # from a checkpoint that was trained in float32
    err, run = capsys.readouterr().err, tmp_path / "o/fold_0/seed_1"
    assert "AMX), bfloat16\n" in err and "until step" not in err
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints/step_4")
    act_as("avx2")
    assert run_py(*args) == 0
    err, line = capsys.readouterr().err, "arithmetic bfloat16 until step 2, float32 from here: this processor (AVX2)"
    assert err.count(line) == 1 and "bfloat16 was asked for" in err
    first, second = map(json.loads, (run / "launches.jsonl").read_text().splitlines())
    assert (first["dtype"], second["dtype"], second["class"]) == ("bfloat16", "float32", "avx2")
    assert [line in note for note in second["notes"]].count(True) == 1 and "until step" not in str(first["notes"])


def test_validate_only_takes_the_first_step_and_leaves_nothing(world, tmp_path, capsys):
    config, out = write_config(world, tmp_path / "c.yaml", loop={"max_steps": 1}), tmp_path / "o"
    args = ("CPU", "-p", config, "-m", "finetune", "--checkpoint_path", world / "s75", "-o", out)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} | {p: 0 for p in world.rglob("*")}
    assert run_py(*args, "--validate_only") == 0
    printed = capsys.readouterr()
    assert (
        "nothing was written" in printed.out and "masks lifted" in printed.err and "32 training examples" in printed.err
    )
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} | {p: 0 for p in world.rglob("*")} == before
    assert run_py(*args) == 0
    logged = (json.loads(line) for line in (out / "fold_0" / "seed_1" / "metrics.jsonl").read_text().splitlines())
    (loss,) = (r["loss"] for r in logged if r["kind"] == "train")
    assert f"loss {loss:.4f}" in printed.out  # the very step that the run takes
    assert "checkpoint: missing" in refused(capsys, *args[:5], "--validate_only", *model_given())


def test_it_stops_once_patience_is_used_up():
    early = EarlyStopping(patience=2)
    assert not job.is_exhausted([0.5, 0.4], early)
    assert job.is_exhausted([0.5, 0.4, 0.5], early)  # equal is no rise
    assert not job.is_exhausted([0.5, 0.4, 0.6], early)
    assert job.is_exhausted([0.5, 0.55, 0.55], EarlyStopping(patience=2, min_delta=0.1))
    assert not job.is_exhausted([0.5, 0.1, 0.1, 0.1], None)


def model_given() -> tuple[str, str]:
    return "--set", f"trainer.init.model={json.dumps(MODEL)}"


def refused(capsys, *args) -> str:
    assert run_py(*args) == 2
    return capsys.readouterr().err


def test_what_a_user_can_mend_is_one_line(world, tmp_path, capsys):
    o = ("-o", tmp_path / "o")
    config = write_config(world, tmp_path / "a.yaml", {"masks": None})
    base = ("CPU", "-p", config, "-m", "finetune", *o)
    assert "is sparse (75.0" in refused(capsys, *base, "--checkpoint_path", world / "s75")
    assert "checkpoint: missing" in refused(capsys, *base, *model_given())
    assert "no such checkpoint" in refused(capsys, *base, "--checkpoint_path", tmp_path / "nowhere")
    config = write_config(world, tmp_path / "b.yaml", {"masks": "none"})
    assert "takes lift, keep" in refused(capsys, "-p", config, "-m", "finetune", *o)
    config = write_config(world, tmp_path / "c.yaml", {"batch_size": 64})
    args = ("CPU", "-p", config, "-m", "finetune", "--checkpoint_path", world / "s75", *o)
    assert "batch_size 64" in refused(capsys, *args, "--num_epochs", "1")
    config = write_config(world, tmp_path / "d.yaml", {"folds": [1]})
    args = ("CPU", "-p", config, "-m", "finetune", "--checkpoint_path", world / "s75", *o)
    assert "has no folds" in refused(capsys, *args)
    assert not (tmp_path / "o" / "fold_0").exists()


BUNDLED = sorted(p for p in (REPO / "configs" / "finetune").glob("*.yaml") if p.stem != "base")


@pytest.mark.parametrize("path", BUNDLED, ids=lambda p: p.stem)
def test_bundled_configs_complete_themselves_from_a_checkpoint(world, path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    doc = resolve(path, Config)
    start_checkpoint.complete_model(doc, str(world / "s75"))
    config = validate(doc, Config)
    init, section = config.trainer.init, config.trainer.finetune
    assert init.model.hidden_size == 32 and init.model.dropout_rate == 0.1
    assert (REPO / section.task).is_file()
    schedule = init.schedulers[0].value
    parts = getattr(schedule, "schedulers", None)
    assert (sum(s.value.total_iters for s in parts) if parts else schedule.total_iters) == init.loop.max_steps
    assert init.loop.max_steps % init.loop.eval_frequency == 0 == init.loop.eval_frequency % init.checkpoint.steps
    assert f"fine-tunes {section.task}: masks {section.masks}, {init.loop.max_steps} steps" in plan_text.describe_plan(
        config
    )


def test_a_config_of_another_model_is_refused(world, tmp_path, capsys):
    config = write_config(world, tmp_path / "c.yaml", model={**MODEL, "num_heads": 4})
    args = ("CPU", "-p", config, "-m", "finetune", "--checkpoint_path", world / "s75", "-o", tmp_path / "o")
    assert "num_heads" in refused(capsys, *args)
    with pytest.raises(UserError):
        load(config, Config, ["trainer.finetune.seeds=[1, 1]"])


@pytest.mark.parametrize(("length", "times"), [(50, 1), (2, 0)])
def test_a_rate_schedule_of_another_length_is_reported(world, tmp_path, capsys, length, times):
    decay = {"initial_learning_rate": 1e-3, "end_learning_rate": 0.0, "total_iters": length}
    optimizer = {"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.0}}
    sections = {"optimizer": optimizer, "schedulers": [{"LinearLR": decay}], "loop": {"max_steps": 2}}
    config = write_config(world, tmp_path / "c.yaml", **sections)
    command = ("CPU", "-m", "finetune", "-p", config, "-o", tmp_path / "o", "--checkpoint_path", world / "s75")
    assert run_py(*command) == 0
    printed = capsys.readouterr().err
    assert printed.count(f"learning rate: its schedule is {length} steps long, the run 2") == times
