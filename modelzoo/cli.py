"""The command line: target, mode and config to one task. Imports torch only when something runs."""

import argparse
import difflib
import os
import sys

from modelzoo import host, verbs, version
from modelzoo.config.errors import UserError
from modelzoo.share import parse_share

EXAMPLES = """
examples:
  python run.py -p configs/quickstart/s75.yaml -m plan
  python run.py CPU -p configs/quickstart/s75.yaml -m train_and_eval -o runs/s75
  python run.py -p configs/mediswift/xl_s75.yaml -m train -o runs/xl --set trainer.init.loop.max_steps=1000
  python run.py -p runs/s75/config.yaml -m eval -o runs/s75
  python run.py -p configs/study/mini.yaml -m study
  python run.py CPU -p configs/quickstart/s75_blocks.yaml -m bench
  python run.py -p configs/finetune/pubmedqa.yaml -m finetune --checkpoint_path runs/s75 -o runs/pubmedqa
  python run.py -p runs/s75/config.yaml -m evaluate -o runs/s75 --tasks configs/eval/pubmedqa.yaml,hoc_blurb

verbs (run.py VERB --help says more):
""" + "\n".join(f"  {name:<16} {verb.about}" for name, verb in verbs.VERBS.items())
CLUSTER = {  # flags that set the key of the same name in trainer.init.backend
    "num_csx": (int, "CS-2 systems"),
    "num_workers_per_csx": (int, "input workers per system"),
    "compile_dir": (str, "compile artefacts on the cluster"),
    "job_time_sec": (int, "time limit"),
    "job_priority": (str, "p1, p2 or p3"),
    "credentials_path": (str, "TLS certificate"),
    "mgmt_address": (str, "host:port"),
}
CLUSTER_LISTS = ("job_labels", "mount_dirs", "python_paths")
MODES = ("train", "eval", "train_and_eval", "eval_all", "study", "bench", "finetune", "evaluate", "plan")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="run.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
        allow_abbrev=False,
        description="Pre-train a sparse biomedical GPT from one YAML, on CPU, GPU or CS-2.",
    )
    p.add_argument(
        "target",
        nargs="?",
        default="auto",
        choices=["CSX", "GPU", "CPU", "auto"],
        help="device; auto (default) takes the config's and falls back CSX, GPU, CPU, saying so",
    )
    version.add_flag(p)
    p.add_argument("-p", "--params", required=True, metavar="CONFIG", help="YAML config (Model Zoo's trainer format)")
    p.add_argument("-m", "--mode", choices=MODES, help="plan needs neither torch nor data")
    p.add_argument(
        "-o", "--model_dir", metavar="DIR", help="where the run is written (default: the config's, else ./model_dir)"
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a config key, for example trainer.init.loop.max_steps=20; may be repeated",
    )
    p.add_argument("--max_steps", type=int, help="optimizer steps in all")
    p.add_argument("--num_steps", type=int, help=argparse.SUPPRESS)
    p.add_argument("--num_epochs", type=int, help="passes over the training data instead of max_steps")
    p.add_argument("--eval_steps", type=int, help="validation batches (default: all)")
    p.add_argument("--eval_frequency", help="steps between validations, or a share of the run (0.25)")
    p.add_argument(
        "--checkpoint_path",
        metavar="PATH",
        help="start from this step folder or .mdl (finetune: or a run), not from the newest in -o",
    )
    p.add_argument(
        "--restart", action="store_true", help="begin anew; what -o holds of an earlier run is moved to before_N in it"
    )
    p.add_argument(
        "--load_checkpoint_states",
        default="all",
        metavar="A,B",
        help="which parts to load: model,optimizer,sparsity,grad_scaler,dataloader,global_step (default all)",
    )
    p.add_argument("--disable_strict_checkpoint_loading", action="store_true", help="take the parameters that fit")
    p.add_argument("--seed", type=int)
    p.add_argument("--validate_only", action="store_true", help="build everything, take one step, write nothing")
    p.add_argument(
        "--compile_only", action="store_true", help="the same with torch.compile (on CSX: compile for the wafer)"
    )
    p.add_argument(
        "--share",
        metavar="I/N",
        help="study: run share I of N (default: what a Slurm array or torchrun says, else all)",
    )
    p.add_argument("--engine", choices=["local", "ray"], default="local", help="study: where its runs go")
    task = p.add_argument_group("evaluate")
    task.add_argument(
        "--tasks", metavar="A,B", help="files like configs/eval/pubmedqa.yaml, their bare names, or lm_eval:TASK"
    )
    task.add_argument("--data_dir", metavar="DIR", help="the tasks' data, instead of their files' own")
    task.add_argument("--split", choices=["train", "dev", "test"], help="default: test where it is at hand, else dev")
    task.add_argument("--eval_batch_size", type=int, default=8, metavar="N", help="rows at once (8)")
    p.add_argument("--logging", choices=["DEBUG", "INFO", "WARNING", "ERROR"], help="log level")
    csx = p.add_argument_group("CS-2 (used with CSX)")
    for flag, (kind, text) in CLUSTER.items():
        csx.add_argument(f"--{flag}", type=kind, help=text)
    for flag in CLUSTER_LISTS:
        csx.add_argument(f"--{flag}", nargs="+", help=f"one or more {flag.replace('_', ' ')}")
    csx.add_argument("--disable_version_check", action="store_true", default=None)
    return p


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
    if args.seed is not None:
        found.append(f"trainer.init.seed={args.seed}")
    if args.logging is not None:
        found.append(f"trainer.init.logging.log_level={args.logging.lower()}")
    for key in (*CLUSTER, *CLUSTER_LISTS, "disable_version_check"):
        if (value := getattr(args, key)) is not None:
            found.append(f"trainer.init.backend.{key}={json.dumps(value)}")
    return found + args.overrides


def states(text: str) -> tuple[str, ...]:
    """The parts of a checkpoint that --load_checkpoint_states names."""
    from modelzoo.config.trainer import ALL_STATES as known

    if text == "all":
        return known
    asked = tuple(s for s in text.replace(" ", "").split(",") if s)
    if unknown := [s for s in asked if s not in known]:
        raise UserError(f"--load_checkpoint_states: unknown {unknown[0]!r}; known: all, or some of {','.join(known)}")
    return asked


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        host.prepare_process(argv)
        if argv[:1] and argv[0] in verbs.VERBS:
            verbs.run(argv)
        else:
            p = parser()
            _known_flags(p, argv)
            _run(p.parse_args(argv), "run.py " + " ".join(argv))
    except UserError as e:
        print("\n".join(f"error: {line}" for line in str(e).splitlines()), file=sys.stderr)
        return e.exit_code
    except UnicodeEncodeError as e:
        print(f"error: {host.explain_encoding(e)}", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        print("\nstopped; the last checkpoint is whole", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _known_flags(p: argparse.ArgumentParser, argv: list[str]) -> None:
    """Name a mistyped flag before argparse takes its value for the target."""
    known = [flag for action in p._actions for flag in action.option_strings]
    for flag in (a.partition("=")[0] for a in argv if a.startswith("--")):
        if flag not in known:
            from modelzoo.config.explain import did_you_mean

            near = did_you_mean(flag, known) if difflib.get_close_matches(flag, known, n=1) else "; see --help"
            raise UserError(f"unknown flag {flag}{near}")


def _study(args: argparse.Namespace) -> None:
    """A study's file is no trainer config: of the flags, those that speak of a run's config have no place here."""
    from modelzoo.backends import select
    from modelzoo.study import run as study

    own = argparse.Namespace(**{**vars(args), "overrides": []})
    if not select.evaluates(args.target) or args.compile_only or args.checkpoint_path or overrides(own):
        raise UserError("-m study takes CPU or GPU, -p, -o, --set study.KEY=VALUE, --share, --engine, --validate_only")
    options = study.Options(args.target, parse_share(args.share), args.engine, args.validate_only)
    study.run(args.params, args.overrides, args.model_dir, options)


def _run(args: argparse.Namespace, command: str) -> None:
    from modelzoo.backends import select
    from modelzoo.config.load import resolve, validate
    from modelzoo.config.trainer import Config
    from modelzoo.kernels.processor import processor_class
    from modelzoo.planning import lengths, plan, plan_text, start_checkpoint
    from modelzoo.tasks import convert_config
    from modelzoo.training.run_length import total_steps

    processor_class()  # refuses a MEDISWIFT_PROCESSOR that this machine cannot act as, before anything runs
    dry = args.validate_only or args.compile_only
    if args.mode == "study":
        _study(args)
        return
    if args.mode is None and not dry:
        raise UserError(f"-m is missing; it is one of {', '.join(MODES)}")
    if args.mode != "evaluate" and (unused := [f"--{k}" for k in ("tasks", "data_dir", "split") if getattr(args, k)]):
        raise UserError(f"{unused[0]} is for -m evaluate, not for -m {args.mode}")

    extra = ["trainer.init.backend.torch_compile=true"] if args.compile_only and not select.lowers(args.target) else []
    doc = resolve(args.params, Config, overrides(args) + extra)
    start_checkpoint.complete(doc, args.checkpoint_path)
    lengths.count_epoch(doc)
    config = validate(doc, Config)
    plan.check(config.trainer.init, total_steps(config))
    if args.mode == "plan":
        print(
            "\n".join(
                [plan_text.text(config, args.target), *(f"note       {line}" for line in convert_config.remarks(doc))]
            )
        )
        return
    if args.validate_only and args.compile_only:
        raise UserError("--validate_only and --compile_only exclude each other")
    select.require(args.target, config.trainer.init, args.mode, args.compile_only, args.validate_only)
    from modelzoo.tasks import pretrain
    from modelzoo.tasks.eval import check, evaluate
    from modelzoo.training.build import Options

    options = Options(
        target=args.target,
        model_dir=args.model_dir or config.trainer.init.model_dir,
        checkpoint_path=args.checkpoint_path,
        load_states=states(args.load_checkpoint_states),
        strict=not args.disable_strict_checkpoint_loading,
        command=command,
        restart=args.restart,
        mode=args.mode or "train",
    )
    if dry and select.lowers(args.target):
        from modelzoo.tasks import lower

        lower.lower(config, options, args.compile_only)
    elif dry:
        check(config, options, args.compile_only)
    elif args.mode in ("eval", "eval_all"):
        evaluate(config, options)
    elif args.mode == "bench":
        from modelzoo.tasks.bench import bench

        bench(config, options, args.params)
    elif args.mode == "evaluate":
        from modelzoo.scoring import score as scoring

        request = scoring.Request(scoring.split_names(args.tasks), args.data_dir, args.split, args.eval_batch_size)
        scoring.score_checkpoints(config, options, request)
    elif args.mode == "finetune":
        from modelzoo.finetuning.finetune import finetune

        finetune(config, options)
    else:
        pretrain.train(config, options, evaluate=args.mode == "train_and_eval")
