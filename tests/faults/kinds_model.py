"""Structure-aware mutants of what is known of a model: checkpoints, .mdl, exports, tokenizers, logs, results."""

import hashlib
import json
from pathlib import Path
from random import Random

from tests.faults.kinds_data import run_and_compare
from tests.faults.mutate_hdf5 import mutate_mdl
from tests.faults.mutate_json import mutate_json, mutate_json_lines
from tests.faults.mutate_safetensors import mutate_safetensors
from tests.faults.part import Verdict
from tests.faults.world import World

STEP, CHECKSUMS = "run/checkpoints/step_6", "checksums.json"


def seal(step: Path) -> None:
    """Write a checkpoint's manifest for the files that are there, as whoever forges a checkpoint would."""
    manifest = json.loads((step / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (step / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (step / "manifest.json").write_text(json.dumps(manifest))


def _read_checkpoint(world: World, folder: Path, draw: Random, names: tuple[str, ...]) -> Verdict:
    """One of the commands that read a checkpoint."""
    train = str(world.path / "train.yaml")
    words, outputs = draw.choice(
        (
            (["export", "run", "out"], ("out",)),
            (["export", STEP, "out.mdl", "-p", train], ("out.mdl",)),
            (["CPU", "-p", train, "-m", "train", "-o", "run", "--max_steps", "7"], ("run",)),
            (["CPU", "-p", train, "-m", "train", "-o", "out", "--checkpoint_path", STEP, "--max_steps", "7"],
            ("out",)),
            (["CPU", "-p", train, "-m", "eval", "-o", "out", "--checkpoint_path", STEP], ("out",)),
            (["CPU", "-p", train, "-m", "score", "-o", "out", "--checkpoint_path", STEP, "--tasks",
            str(world.path / "task/task.yaml")], ("out",)),
            (["CPU", "-p", str(world.path / "tune.yaml"), "-m", "finetune", "--checkpoint_path", STEP, "-o", "out",
            "--max_steps", "1"], ("out",)),
            (["-p", str(world.path / "tune.yaml"), "-m", "plan", "--checkpoint_path", STEP], ()),
        )
    )  # fmt: skip
    return run_and_compare("modelzoo", words, folder, names, outputs)


def _forge(world: World, folder: Path, draw: Random, name: str, mutate) -> Verdict:
    world.copy(STEP, "run/config.yaml", "run/launches.jsonl", "run/metrics.jsonl", to=folder)
    path = folder / STEP / name
    path.write_bytes(mutate(path.read_bytes(), draw))
    if name != "manifest.json":
        seal(folder / STEP)
    return _read_checkpoint(world, folder, draw, (name, STEP, "run"))


def state(world: World, folder: Path, draw: Random) -> Verdict:
    return _forge(world, folder, draw, "state.json", mutate_json)


def manifest(world: World, folder: Path, draw: Random) -> Verdict:
    return _forge(world, folder, draw, "manifest.json", mutate_json)


def tensors(world: World, folder: Path, draw: Random) -> Verdict:
    return _forge(world, folder, draw, draw.choice(("model", "optimizer")) + ".safetensors", mutate_safetensors)


def mdl(world: World, folder: Path, draw: Random) -> Verdict:
    world.copy("model.mdl", "shards/train", to=folder)
    path = folder / "model.mdl"
    path.write_bytes(mutate_mdl(path.read_bytes(), draw, str(folder / "shards/train/output_chunk_0_0.h5")))
    words = ["import", "model.mdl", "out", "-p", world.path / "train.yaml", *draw.choice(([], ["--weights"]))]
    return run_and_compare("modelzoo", words, folder, ("model.mdl",))


def export(world: World, folder: Path, draw: Random) -> Verdict:
    """A Hugging Face folder, of one file or of several by an index."""
    world.copy("export", to=folder)
    name = draw.choice(("config.json", "config.json", "model.safetensors", "masks.safetensors",
    "tokenizer_config.json",
                        "generation_config.json", "model.safetensors.index.json", CHECKSUMS,
                        "tokenizer.json"))  # fmt: skip
    path = folder / "export" / name
    if name.endswith("index.json"):
        (folder / "export/model.safetensors").rename(folder / "export/a.safetensors")
        path.write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": {"transformer.wte.weight": "a.safetensors"}})
        )
    mutate = mutate_safetensors if name.endswith(".safetensors") else mutate_json
    path.write_bytes(mutate(path.read_bytes(), draw))
    if name != CHECKSUMS and draw.random() < 0.9:  # whoever forges an export leaves them out
        (folder / "export" / CHECKSUMS).unlink()
    task = world.path / "task/task.yaml"
    score = [
        "CPU",
        "-p",
        world.path / "train.yaml",
        "-m",
        "score",
        "-o",
        "out",
        "--checkpoint_path",
        "export",
        "--tasks",
        task,
    ]
    words = draw.choice(
        (["import", "export", "out"], ["import", "export", "out", "-p", world.path / "train.yaml"], score)
    )
    return run_and_compare("modelzoo", words, folder, (name, "export", "a.safetensors"))


def tokenizer(world: World, folder: Path, draw: Random) -> Verdict:
    world.copy("tokenizer.json", to=folder)
    path = folder / "tokenizer.json"
    path.write_bytes(mutate_json(path.read_bytes(), draw))
    if draw.random() < 0.3:
        words = ["export", world.path / "run", "out", "--tokenizer", "tokenizer.json"]
        return run_and_compare("modelzoo", words, folder, ("tokenizer.json",))
    flags = [*world.job_flags]
    flags[1] = "tokenizer.json"
    words = ["jsonl", "--input", world.path / "jsonl/docs.jsonl", "--output", "out", *flags]
    return run_and_compare("data_preprocessing", words, folder, ("tokenizer.json",))


def logs(world: World, folder: Path, draw: Random) -> Verdict:
    """A log never stops a resume, and a report says what it cannot read."""
    world.copy("run", to=folder)
    name = draw.choice(("metrics.jsonl", "launches.jsonl", "timing.jsonl"))
    path = folder / "run" / name
    data, _ = mutate_json_lines(path.read_bytes(), draw)
    path.write_bytes(data)
    kind = draw.randrange(3)
    if kind == 0:
        words, outputs = ["report", "run", "-o", "out.html"], ("out.html", "out_files", "out.csv")
        return run_and_compare("modelzoo", words, folder, (name, "run"), outputs)
    if kind == 1:
        words = ["compare", "run", world.path / "run", "-o", "out.svg"]
        return run_and_compare("modelzoo", words, folder, (name, "run"), ("out.svg", "out.json"))
    words = ["CPU", "-p", world.path / "train.yaml", "-m", "train", "-o", "run", "--max_steps", "8"]
    verdict = run_and_compare("modelzoo", words, folder, (name, "run"), ("run",))
    return Verdict("lost", f"a log stops a resume: {verdict.detail}") if verdict.kind == "refused" else verdict


def result(world: World, folder: Path, draw: Random) -> Verdict:
    world.copy("run", "tuned", to=folder)
    name = draw.choice(
        (
            "fold_0/seed_1/result.json",
            "fold_0/seed_1/result.json",
            "results.json",
            "fold_0/seed_1/predictions.json",
            "data/fold_0/manifest.json",
        )
    )
    path = folder / "tuned" / name
    path.write_bytes(mutate_json(path.read_bytes(), draw))
    if draw.random() < 0.5:
        words = ["CPU", "-p", world.path / "tune.yaml", "-m", "finetune", "--checkpoint_path", "run", "-o", "tuned"]
        return run_and_compare("modelzoo", words, folder, (path.name, "tuned"), ("tuned",))
    words = ["report", "tuned/fold_0/seed_1", "run", "-o", "out.html"]
    return run_and_compare("modelzoo", words, folder, (path.name, "tuned"), ("out.html", "out_files", "out.csv"))


KINDS = {"state.json": state, "checkpoint manifest": manifest, "checkpoint tensors": tensors, ".mdl": mdl,
"export": export,
         "tokenizer.json": tokenizer, "logs": logs, "results": result}  # fmt: skip
