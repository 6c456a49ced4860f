"""Structure-aware mutants of what people write: configs, studies, tasks and their data, command lines."""

import itertools
import json
import os
from pathlib import Path
from random import Random

from tests.faults.kinds_data import run_and_compare
from tests.faults.mutate_json import mutate_json_lines
from tests.faults.mutate_words import mutate_words
from tests.faults.mutate_yaml import mutate_yaml
from tests.faults.part import Verdict
from tests.faults.world import World

OUTPUT_FLAGS = ("-o", "--output", "--model_dir")
JOB = """
source: jsonl
input: [INPUT]
output: out
msl: 32
val_fraction: 0.2
seed: 0
tokenizer: {path: TOKENIZER, vocab_size: 320}
objective: {name: lm, tail: pad}
filters: {min_chars: 10, exact_duplicates: true}
text: {citations: drop, scripts: readable}
kinds: {retracted: drop}
buckets: 2
"""


def odd_paths(folder: Path) -> dict[str, str]:
    """A FIFO, a folder, a config that extends itself, a path where nothing is, and an endless device."""
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "circle.yaml").write_text(f"extends: {folder / 'circle.yaml'}\n")
    return {"fifo": str(folder / "fifo"), "folder": str(folder / "folder"), "circle": str(folder / "circle.yaml"),
            "missing": str(folder / "missing"), "zero": "/dev/zero"}  # fmt: skip


def _mutate(source: bytes, name: str, folder: Path, draw: Random) -> tuple[str, ...]:
    """Write a mutant of a YAML as `name`; returns the words of which a refusal must hold one."""
    paths = odd_paths(folder)
    (folder / name).write_bytes(mutate_yaml(source, draw, paths))
    return (name, *(os.path.basename(p) for p in paths.values()), "/dev/zero", "/dev/null")


def train_config(world: World, folder: Path, draw: Random) -> Verdict:
    names = _mutate((world.path / "train.yaml").read_bytes(), "mutant.yaml", folder, draw)
    plan = ["-p", "mutant.yaml", "-m", "plan"]
    check = ["CPU", "-p", "mutant.yaml", "-m", "train", "-o", "out", "--validate_only"]
    train = ["CPU", "-p", "mutant.yaml", "-m", "train_and_eval", "-o", "out", "--max_steps", "2"]
    return run_and_compare("modelzoo", draw.choice((plan, plan, check, train)), folder, (*names, str(world.path)))


def tune_config(world: World, folder: Path, draw: Random) -> Verdict:
    names = _mutate((world.path / "tune.yaml").read_bytes(), "mutant.yaml", folder, draw)
    words = ["CPU", "-p", "mutant.yaml", "-m", "finetune", "--checkpoint_path", world.path / "run", "-o", "out"]
    words += draw.choice((["--validate_only"], ["--max_steps", "1"]))
    return run_and_compare("modelzoo", words, folder, (*names, str(world.path)))


def study(world: World, folder: Path, draw: Random) -> Verdict:
    names = _mutate((world.path / "study.yaml").read_bytes(), "mutant.yaml", folder, draw)
    words = ["-p", "mutant.yaml", "-m", "study", "-o", "out", "--validate_only"]
    return run_and_compare("modelzoo", words, folder, (*names, str(world.path)))


def job_config(world: World, folder: Path, draw: Random) -> Verdict:
    text = JOB.replace("INPUT", str(world.path / "jsonl/docs.jsonl")).replace(
        "TOKENIZER", str(world.path / "tokenizer.json")
    )
    names = _mutate(text.encode(), "mutant.yaml", folder, draw)
    words = ["jsonl", "--config", "mutant.yaml", "--output", "out", "--workers", "1", "--quiet"]
    return run_and_compare("data_preprocessing", words, folder, (*names, "out", str(world.path)))


def task(world: World, folder: Path, draw: Random) -> Verdict:
    """A task's file, its template or its data."""
    world.copy("task", to=folder)
    (folder / "task/task.yaml").write_text(
        (folder / "task/task.yaml").read_text().replace(str(world.path / "task"), str(folder / "task"))
    )
    name = draw.choice(("task.yaml", "template.yaml", "train.jsonl", "dev.jsonl"))
    path = folder / "task" / name
    if name.endswith(".yaml"):
        names = _mutate(path.read_bytes(), f"task/{name}", folder, draw)
    else:
        data, _ = mutate_json_lines(path.read_bytes(), draw)
        path.write_bytes(data)
        names = (name,)
    if draw.random() < 0.5:
        words = ["CPU", "-p", world.path / "run/config.yaml", "-m", "score", "-o", "out", "--checkpoint_path",
        world.path / "run",
                 "--tasks", "task/task.yaml", "--split", "dev"]  # fmt: skip
    else:
        words = ["CPU", "-p", world.path / "tune.yaml", "-m", "finetune", "--checkpoint_path", world.path / "run",
        "-o", "out",
                 "--max_steps", "1", "--set", f"trainer.finetune.task={folder / 'task/task.yaml'}"]  # fmt: skip
    return run_and_compare("modelzoo", words, folder, (*names, "task"))


def words(world: World, folder: Path, draw: Random) -> Verdict:
    """A command line with one word otherwise. Where it writes is what it says, so only its inputs are compared."""
    world.copy("run", "jsonl/docs.jsonl", "tokenizer.json", "task", to=folder)
    (folder / "train.yaml").write_bytes((world.path / "train.yaml").read_bytes())
    run = [
        ["CPU", "-p", "train.yaml", "-m", "train", "-o", "out", "--max_steps", "1", "--seed", "1"],
        ["CPU", "-p", "train.yaml", "-m", "eval", "-o", "out", "--checkpoint_path", "run", "--eval_steps", "1"],
        ["-p", "train.yaml", "-m", "plan", "--set", "trainer.init.seed=2", "--max_steps", "9"],
        ["CPU", "-p", "train.yaml", "-m", "score", "--tasks", "task/task.yaml", "-o", "out", "--checkpoint_path",
        "run", "--split", "dev"],
        ["export", "run", "out", "--dtype", "float16", "--tokenizer", "tokenizer.json"],
        ["report", "run", "-o", "out.html"],
        ["compare", "run", "run", "-o", "out.svg"],
        ["convert-config", "train.yaml", "out.yaml", "--set", "trainer.init.seed=1", "--force"],
    ]  # fmt: skip
    data = [
        ["jsonl", "--input", "jsonl/docs.jsonl", "--output", "out", "--tokenizer", "tokenizer.json", "--msl", "32",
        "--workers", "1"],
        ["inspect", str(world.path / "shards/train"), "--examples", "2"],
        ["verify", str(world.path / "shards"), "--tokens"],
        ["pack", "--input", str(world.path / "shards/train"), "--output", "out", "--msl", "16", "--shard_tokens",
        "4096"],
        ["synthetic", "--output", "out", "--documents", "20", "--seed", "1", "--files", "2"],
        ["tokenizer", "--input", "jsonl/docs.jsonl", "--source", "jsonl", "--output", "out.json", "--vocab_size",
        "300"],
    ]  # fmt: skip
    program, lines = draw.choice((("modelzoo", run), ("data_preprocessing", data)))
    mutant = mutate_words(draw.choice(lines), draw, odd_paths(folder))
    inputs = ("train.yaml", "tokenizer.json", "jsonl", "task", "circle.yaml", "run/checkpoints")
    kept = {p.name for p in folder.iterdir()} - {*inputs, "run"}
    outputs = [w for flag, w in itertools.pairwise(mutant) if flag in OUTPUT_FLAGS]
    outputs += mutant[2:] if mutant[:1] in (["export"], ["import"]) else []  # theirs has no flag
    named = {Path(w).parts[0] for w in outputs if w not in ("", ".", "/")}
    made = ["out", "out.html", "out.svg", "out.json", "out.yaml", *kept, *(named - set(inputs)), "report_files"]
    made += [f"{Path(n).stem}{end}" for n in named for end in ("_files", ".json", ".csv")]
    verdict = run_and_compare(program, mutant, folder, (), made)
    return Verdict(verdict.kind, f"{json.dumps(mutant)[:300]} {verdict.detail}" if verdict.kind != "ok" else "")


KINDS = {"train config": train_config, "fine-tuning config": tune_config, "study": study, "job config": job_config,
"task": task,
         "command line": words}  # fmt: skip
