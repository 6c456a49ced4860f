"""The flags of `run.py` without a verb, and what they set in the config. No torch."""

import argparse

from modelzoo import modes, verbs, version
from modelzoo.config.arguments import DEVICES, Parser, Settings, count, device, positive_int

EPILOG = (
    modes.help_text()
    + """

verbs (run.py VERB --help says more):
"""
    + "\n".join(f"  {name:<16} {verb.about}" for name, verb in verbs.VERBS.items())
)
CLUSTER = {  # flags that set the key of the same name in trainer.init.backend
    "num_csx": (positive_int, "CS-2 systems"),
    "num_workers_per_csx": (count, "input workers per system"),
    "compile_dir": (str, "compile artefacts on the cluster"),
    "job_time_sec": (positive_int, "time limit"),
    "job_priority": (str, "p1, p2 or p3"),
    "credentials_path": (str, "TLS certificate"),
    "mgmt_address": (str, "host:port"),
}
CLUSTER_LISTS = ("job_labels", "mount_dirs", "python_paths")


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="run.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
        allow_abbrev=False,
        description="Pre-train a sparse biomedical GPT from one YAML, on CPU, GPU or CS-2.",
    )
    p.add_argument(
        "target",
        nargs="?",
        default="auto",
        type=device,
        choices=DEVICES,
        help="device; auto (default) takes the config's and falls back CSX, GPU, CPU, saying so",
    )
    _add_run_flags(p)
    _add_score_flags(p)
    p.add_argument("--logging", choices=["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], help="log level")
    _add_cluster_flags(p)
    return p


def _add_run_flags(p: argparse.ArgumentParser) -> None:
    """Config, mode and folder; how long a run is, where it starts, and whether it is tried only."""
    version.add_flag(p)
    p.add_argument("-p", "--params", required=True, metavar="CONFIG", help="YAML config (Model Zoo's trainer format)")
    p.add_argument("-m", "--mode", type=modes.parse, metavar="MODE", help=", ".join(modes.MODES))
    p.add_argument(
        "-o", "--model_dir", metavar="DIR", help="where the run is written (default: the config's, else ./model_dir)"
    )
    p.add_argument(
        "--set",
        action=Settings,
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a config key, for example trainer.init.loop.max_steps=20; may be repeated",
    )
    p.add_argument("--max_steps", type=positive_int, help="optimizer steps in all")
    p.add_argument("--num_steps", type=positive_int, help=argparse.SUPPRESS)
    p.add_argument("--num_epochs", type=positive_int, help="passes over the training data instead of max_steps")
    p.add_argument("--eval_steps", type=positive_int, help="validation batches, spread over the set (default: all)")
    p.add_argument("--eval_frequency", help="steps between validations, or a share of the run (0.25)")
    p.add_argument(
        "--checkpoint_path",
        metavar="PATH",
        help="start from this run folder, step folder or .mdl, where -o has no checkpoint of its own yet",
    )
    p.add_argument(
        "--restart", action="store_true", help="begin anew; what -o holds of an earlier run is moved to before_N in it"
    )
    p.add_argument(
        "--devices",
        type=positive_int,
        metavar="N",
        help="do it with N processes on this machine (default: one a visible GPU, one on a CPU); plan: count for N",
    )
    p.add_argument(
        "--load_checkpoint_states",
        metavar="A,B",
        help="which parts to load: model,optimizer,sparsity,grad_scaler,dataloader,global_step (default all)",
    )
    p.add_argument("--disable_strict_checkpoint_loading", action="store_true", help="take the parameters that fit")
    p.add_argument("--seed", type=count, help="of weights, masks and dropout")
    p.add_argument("--validate_only", action="store_true", help="build everything, take one step, write nothing")
    p.add_argument(
        "--compile_only", action="store_true", help="the same with torch.compile (on CSX: compile for the wafer)"
    )
    p.add_argument(
        "--share",
        metavar="I/N",
        help="study: run share I of N (default: what a Slurm array or torchrun says, else all)",
    )
    p.add_argument("--json", action="store_true", help="plan: the figures as JSON")
    p.add_argument("--engine", choices=["local", "ray"], help="study: where its runs go (local)")


def _add_score_flags(p: argparse.ArgumentParser) -> None:
    task = p.add_argument_group("score")
    task.add_argument(
        "--tasks", metavar="A,B", help="files like configs/eval/pubmedqa.yaml, their bare names, or lm_eval:TASK"
    )
    task.add_argument("--data_dir", metavar="DIR", help="the tasks' data, instead of their files' own; finetune's too")
    task.add_argument("--split", choices=["train", "dev", "test"], help="default: test where it is at hand, else dev")
    task.add_argument("--eval_batch_size", type=positive_int, metavar="N", help="rows at once (8)")
    task.add_argument("--shots", type=count, metavar="N", help="solved examples before each question (the task's)")
    task.add_argument("--shots_seed", type=count, metavar="N", help="of their draws (the task's: 1234)")
    task.add_argument("--show", type=positive_int, metavar="N", help="print the first N prompts of each task")


def _add_cluster_flags(p: argparse.ArgumentParser) -> None:
    csx = p.add_argument_group("CS-2 (used with CSX)")
    for flag, (kind, text) in CLUSTER.items():
        csx.add_argument(f"--{flag}", type=kind, help=text)
    for flag in CLUSTER_LISTS:
        csx.add_argument(f"--{flag}", action="extend", nargs="+", help=f"one or more {flag.replace('_', ' ')}")
    csx.add_argument("--disable_version_check", action="store_true", default=None)


def path_flags(args: argparse.Namespace) -> dict[str, str | None]:
    """The flags that name a file or folder, with their values."""
    return {"--checkpoint_path": args.checkpoint_path, "-o": args.model_dir, "--data_dir": args.data_dir}


def overrides(args: argparse.Namespace) -> list[str]:
    """The flags as config overrides. The command line wins over the YAML."""
    import json

    found = []
    lengths = [k for k in ("max_steps", "num_steps", "num_epochs") if getattr(args, k) is not None]
    if lengths:
        found += [f"trainer.init.loop.{k}=null" for k in ("max_steps", "num_steps", "num_epochs") if k not in lengths]
    for key in (*lengths, "eval_steps", "eval_frequency"):
        if (value := getattr(args, key)) is not None:
            found.append(f"trainer.init.loop.{key}={value}")
    if args.mode == "finetune" and args.data_dir is not None:
        found.append(f"trainer.finetune.data_dir={json.dumps(args.data_dir)}")
    if args.seed is not None:
        found.append(f"trainer.init.seed={args.seed}")
    if args.logging is not None:
        found.append(f"trainer.init.logging.log_level={args.logging.lower()}")
    for key in (*CLUSTER, *CLUSTER_LISTS, "disable_version_check"):
        if (value := getattr(args, key)) is not None:
            found.append(f"trainer.init.backend.{key}={json.dumps(value)}")
    return found + args.overrides
