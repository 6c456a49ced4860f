"""The one table of modes: what each does, an example, and the flags that it takes. Any other flag is refused."""

import argparse
from typing import NamedTuple

from modelzoo.config.loading.explain import did_you_mean

SHAPE = ("seed",)
LENGTH = ("max_steps", "num_steps", "num_epochs")
ASSESS = ("eval_steps", "eval_frequency")
LOAD = ("checkpoint_path", "load_checkpoint_states", "disable_strict_checkpoint_loading")
DRY = ("validate_only", "compile_only")
SCORE = ("tasks", "data_dir", "split", "eval_batch_size", "shots", "shots_seed", "show")
CLUSTER = (
    *("num_csx", "num_workers_per_csx", "compile_dir", "job_time_sec", "job_priority", "credentials_path"),
    *("mgmt_address", "job_labels", "mount_dirs", "python_paths", "disable_version_check"),
)
WRITES = ("model_dir", "logging")


class Mode(NamedTuple):
    """One mode: its help text, a command that uses it, and its flags besides -p, -m, --set and the device."""

    about: str
    example: str
    flags: tuple[str, ...]


MODES = {
    "plan": Mode(
        "what a config means: parameters, masks, FLOPs, memory, arithmetic, and what would stop the run; no torch",
        "-p configs/quickstart/s75.yaml -m plan",
        (*SHAPE, *LENGTH, *ASSESS, "checkpoint_path", "devices", "model_dir", "json", *CLUSTER),
    ),
    "train": Mode(
        "pre-train, or resume a run",
        "-p configs/mediswift/xl_s75.yaml -m train -o runs/xl --set trainer.init.loop.max_steps=1000",
        (*SHAPE, *LENGTH, *LOAD, "restart", "devices", *DRY, *WRITES, *CLUSTER),
    ),
    "train_and_eval": Mode(
        "the same, with validation on the way",
        "CPU -p configs/quickstart/s75.yaml -m train_and_eval -o runs/s75",
        (*SHAPE, *LENGTH, *ASSESS, *LOAD, "restart", "devices", *DRY, *WRITES, *CLUSTER),
    ),
    "eval": Mode(
        "loss and perplexity of a checkpoint on the validation sets",
        "-p runs/s75/config.yaml -m eval -o runs/s75",
        ("eval_steps", *LOAD, "devices", *WRITES),
    ),
    "eval_all": Mode(
        "the same for each of validate_all.ckpt_paths, or each checkpoint of the run folder",
        "-p runs/s75/config.yaml -m eval_all -o runs/s75",
        ("eval_steps", *LOAD, "devices", *WRITES),
    ),
    "finetune": Mode(
        "learn a task from a checkpoint, over folds and seeds",
        "-p configs/finetune/pubmedqa.yaml -m finetune --checkpoint_path runs/s75 -o runs/pubmedqa",
        (
            *SHAPE, *LENGTH, "eval_frequency", "data_dir", "checkpoint_path", "disable_strict_checkpoint_loading",
            "restart", "devices", *DRY, *WRITES, *CLUSTER,
        ),
    ),
    "score": Mode(
        "score checkpoints, or Hugging Face folders, on tasks",
        "-p runs/s75/config.yaml -m score -o runs/s75 --tasks configs/eval/pubmedqa.yaml,hoc_blurb",
        (*SCORE, *LOAD, "devices", *WRITES),
    ),
    "study": Mode(
        "many runs from one study file, and a report",
        "-p configs/study/mini.yaml -m study",
        ("model_dir", "share", "engine", "validate_only"),
    ),
    "bench": Mode(
        "time a training step on this machine, dense and in sparsity patterns",
        "CPU -p configs/quickstart/s75_blocks.yaml -m bench",
        (*SHAPE, *LENGTH, "logging"),
    ),
}  # fmt: skip
FORMER = {"evaluate": "score"}  # old names of modes
JOINED = ("train", "train_and_eval", "eval", "eval_all", "finetune", "score")  # whose work several processes share
ALWAYS = ("help", "version", "target", "params", "mode", "overrides")  # what every mode takes


def takers(flag: str) -> list[str]:
    """The modes that take a flag."""
    return [name for name, mode in MODES.items() if flag in mode.flags]


def parse(text: str) -> str:
    """The mode that `text` names, under an old name too (for argparse)."""
    if text not in MODES and text not in FORMER:
        raise argparse.ArgumentTypeError(f"unknown mode {text!r}{did_you_mean(text, list(MODES))}")
    return text


def help_text() -> str:
    """The modes for --help: a line each, then a command each."""
    lines = [f"  {name:<16} {mode.about}" for name, mode in MODES.items()]
    examples = [f"  python run.py {mode.example}" for mode in MODES.values()]
    return "\n".join(["modes (-m):", *lines, "", "examples:", *examples])
