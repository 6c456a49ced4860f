"""The command line: target, mode and config to one task. Imports torch only when something runs."""

import argparse
import difflib
import os
import shlex
import sys
from typing import TYPE_CHECKING

from modelzoo import entry, host, modes, processes, progress, verbs
from modelzoo.config.errors import UserError
from modelzoo.flags import overrides, parser, path_flags
from modelzoo.redact import redact_words
from modelzoo.share import parse_share
from modelzoo.words import complete_words

if TYPE_CHECKING:
    from modelzoo.config.loading.yaml12 import Document
    from modelzoo.config.trainer import Config
    from modelzoo.training.build import Options
    from modelzoo.training.runs.folder import RunFolder


def states(text: str | None) -> tuple[str, ...]:
    """The parts of a checkpoint that --load_checkpoint_states names."""
    from modelzoo.config.trainer import ALL_STATES as known

    if text in (None, "all"):
        return known
    asked = tuple(s for s in text.replace(" ", "").split(",") if s)
    if unknown := [s for s in asked if s not in known]:
        raise UserError(f"--load_checkpoint_states: unknown {unknown[0]!r}; known: all, or some of {','.join(known)}")
    return asked


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    processes.end_with_launcher()
    try:
        words = complete_words(given)
    except UserError:
        words = list(given)  # `run_words` raises it again, and the command ends on it as on any other
    rank = processes.find_rank()[0] if _find_mode(words) in modes.JOINED else 0
    kept = "nothing was stored" if words[:1] == ["generate"] else "the last checkpoint is whole"
    return entry.run_command(lambda: run_words(words), words, kept, lambda: _only_prints(words), rank)


def _find_mode(argv: list[str]) -> str | None:
    """The mode that a command line names, whatever else is wrong with it."""
    p = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    p.add_argument("-m", "--mode")
    try:
        mode = p.parse_known_args(argv)[0].mode
    except argparse.ArgumentError:
        return None
    return modes.FORMER.get(mode, mode)


def _note_alone(what: str) -> None:
    """Where several processes were started for what they do not share, report it."""
    rank, size = processes.find_rank()
    if size > 1 and rank == 0:
        print(f"note       {size} processes were started, and each does the whole of {what}", file=sys.stderr)


def run_words(argv: list[str]) -> int | None:
    """Do what a command line asks; returns the exit code of the processes that were started for it, if some were.

    Raises:
        UserError, OSError: as a caller of one's own has to end on them; `main` prints them.
    """
    argv = complete_words(argv)
    if argv[:1] and argv[0] in verbs.VERBS:
        _note_alone(argv[0])
        verbs.run(argv)
        return None
    p = parser()
    _known_flags(p, argv)
    args = p.parse_args(argv)
    _settle_mode(args, p)
    return _run(args, argv)


def _only_prints(argv: list[str]) -> bool:
    """Whether what a command prints is all that it makes."""
    return argv[:1] in (["prompt"], ["generate"]) or not {
        "plan",
        "bench",
        "--validate_only",
        "--compile_only",
    }.isdisjoint(argv)


def _known_flags(p: argparse.ArgumentParser, argv: list[str]) -> None:
    """Name a mistyped flag before argparse takes its value for the target."""
    known = [flag for action in p._actions for flag in action.option_strings]
    for flag in (a.partition("=")[0] for a in argv if a.startswith("--")):
        if flag not in known:
            from modelzoo.config.loading.explain import did_you_mean

            near = did_you_mean(flag, known) if difflib.get_close_matches(flag, known, n=1) else "; see --help"
            raise UserError(f"unknown flag {flag}{near}")


def _settle_mode(args: argparse.Namespace, p: argparse.ArgumentParser) -> None:
    """Give an old mode its name of today, and refuse the flags that the mode would ignore."""
    if args.mode in modes.FORMER:
        print(f"note       -m {args.mode} is now written -m {modes.FORMER[args.mode]}", file=sys.stderr)
        args.mode = modes.FORMER[args.mode]
    if args.mode is None and not (args.validate_only or args.compile_only):
        raise UserError(f"-m is missing; it is one of {', '.join(modes.MODES)}")
    taken = modes.MODES[args.mode or "train_and_eval"].flags  # a dry run may go without a mode
    for action in p._actions:
        flag, given = action.dest, getattr(args, action.dest, None)
        if flag in modes.ALWAYS or flag in taken or given is None or given is False:
            continue
        takers = modes.takers(flag)
        where = f"it is for -m {', '.join(takers)}" if takers else "no mode takes it"
        raise UserError(f"{action.option_strings[-1]} does nothing with -m {args.mode or 'none'}; {where}")
    if args.validate_only and args.compile_only:
        raise UserError("--validate_only and --compile_only exclude each other")


def _study(args: argparse.Namespace) -> None:
    from modelzoo.backends import select
    from modelzoo.study.execution import run as study

    if not select.evaluates(args.target):
        raise UserError(f"-m study takes CPU or GPU, not {args.target}")
    share = parse_share(args.share)
    if args.share is None and share == (0, 1):
        _note_alone("the study; give each its --share")
    options = study.Options(args.target, share, args.engine or "local", args.validate_only)
    study.run_study(args.params, args.overrides, args.model_dir, options)


def _run(args: argparse.Namespace, argv: list[str]) -> int | None:
    """Resolve the config, check what can be checked without torch, and do what the mode says."""
    from modelzoo.config.loading.places import naming_places
    from modelzoo.kernels.processor import check_switches

    check_switches()
    if args.mode == "study":
        _study(args)
        return None
    doc, config = _resolve_config(args)
    with naming_places(doc, path_flags(args)):
        if (count := _count_processes(args, config)) > 1:
            return processes.start_ranks(argv, count)
        _run_config(args, doc, config, f"run.py {shlex.join(redact_words(argv))}")
    return None


def _count_processes(args: argparse.Namespace, config: "Config") -> int:
    """How many processes this one is to start; 1 where it trains itself, as one of them or alone."""
    from modelzoo.backends import select

    if args.mode not in modes.JOINED or args.validate_only or args.compile_only:
        if args.mode != "plan":
            _note_alone("the dry run" if args.mode in modes.JOINED else f"-m {args.mode}")
        return 1
    if (world := processes.find_world()) is not None:
        if args.devices not in (None, world.size):
            raise UserError(f"--devices {args.devices}: {world.size} processes were started; leave it out")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost rank is pages of torch's own stack
        return 1
    if args.devices == 1:
        return 1
    visible = select.count_gpus(args.target, config.trainer.init)
    if args.devices is not None and visible and args.devices > visible:
        raise UserError(f"--devices {args.devices}: {visible} GPUs are visible here; take {visible}, or target CPU")
    return args.devices or visible or 1


def _run_config(args: argparse.Namespace, doc: "Document", config: "Config", command: str) -> None:
    """Plan, try or run a resolved config."""
    from modelzoo.backends import select
    from modelzoo.config.idle import remarks
    from modelzoo.config.trainer import Config

    init = config.trainer.init
    notes = [f"note       {line}" for line in remarks(doc, Config, select.lowers(args.target))]
    if args.mode == "plan":
        _print_plan(args, config, notes)
        return
    if notes:
        print("\n".join(notes), file=sys.stderr, flush=True)
    progress.set_level(init.logging.log_level)
    select.require_target(args.target, init, args.mode, args.compile_only, args.validate_only)
    from modelzoo.training.build import Options
    from modelzoo.training.runs.folder import find_model_dir

    options = Options(
        target=args.target,
        model_dir=find_model_dir(args.params, args.model_dir, args.overrides, init),
        checkpoint_path=args.checkpoint_path,
        load_states=states(args.load_checkpoint_states),
        strict=not (args.disable_strict_checkpoint_loading or init.checkpoint.disable_strict_checkpoint_loading),
        command=command,
        restart=args.restart,
        mode=args.mode or "train",
    )
    if args.validate_only or args.compile_only:
        _try_step(args, config, options)
    else:
        _run_mode(args, config, options)


def _resolve_config(args: argparse.Namespace) -> tuple["Document", "Config"]:
    """The config with the command line's overrides, as a document and validated; its sparsity fits its model."""
    from modelzoo.backends import select
    from modelzoo.config.loading.load import resolve, validate
    from modelzoo.config.loading.places import naming_places
    from modelzoo.config.trainer import Config
    from modelzoo.planning import lengths, plan, start_checkpoint
    from modelzoo.training.runs.length import total_steps

    extra = ["trainer.init.backend.torch_compile=true"] if args.compile_only and not select.lowers(args.target) else []
    doc = resolve(args.params, Config, overrides(args) + extra)
    with naming_places(doc, path_flags(args)):
        start_checkpoint.complete_model(doc, args.checkpoint_path)
        lengths.count_epoch(doc)
        config = validate(doc, Config)
        plan.check_sparsity(config.trainer.init, total_steps(config))
    return doc, config


def _print_plan(args: argparse.Namespace, config: "Config", notes: list[str]) -> None:
    from modelzoo.planning.plan import find_kind, make_plan
    from modelzoo.planning.plan_text import describe_as_json, describe_plan
    from modelzoo.planning.problems import find_problems
    from modelzoo.training.runs.folder import RunFolder, find_model_dir

    init = config.trainer.init
    folder = RunFolder.of(init, find_model_dir(args.params, args.model_dir, args.overrides, init))
    there = f"holds a run already, which -m train resumes{_name_changes(folder, config)}" if folder.begun else "new"
    plan = make_plan(config, args.target)
    if args.json:
        print(describe_as_json(config, plan, notes))
    else:
        text = describe_plan(config, args.target, args.devices, plan)
        print("\n".join([text, f"run        {folder.path}: {there}", *notes]))
    if problems := find_problems(config, plan, find_kind(init, args.target) == "CPU" and not host.has_gpu_driver()):
        sys.stdout.flush()
        raise UserError("\n".join(problems))


def _name_changes(folder: "RunFolder", config: "Config") -> str:
    """In which keys a run that is there was configured otherwise than `config`, where that is known."""
    from modelzoo.training.runs.changes import config_changes, name_changes

    try:
        before = folder.read_config()
    except UserError:
        return ""  # the run says what it does about it
    changes = config_changes(before, config) if before is not None else {}
    return f"; it was configured otherwise: {name_changes(changes)}" if changes else ""


def _try_step(args: argparse.Namespace, config: "Config", options: "Options") -> None:
    """Build everything and take one step, or lower it where the target does that."""
    from modelzoo.backends import select

    if select.lowers(args.target):
        from modelzoo.tasks.lower import lower_step

        lower_step(config, options, args.compile_only)
    else:
        from modelzoo.tasks.eval import check_first_step

        check_first_step(config, options, args.compile_only)


def _run_mode(args: argparse.Namespace, config: "Config", options: "Options") -> None:
    """Each mode but plan and study, which need no torch."""
    if args.mode in ("eval", "eval_all"):
        from modelzoo.tasks.eval import evaluate_checkpoints

        evaluate_checkpoints(config, options, every=args.mode == "eval_all")
    elif args.mode == "bench":
        from modelzoo.tasks.bench import bench_patterns

        bench_patterns(config, options, args.params)
    elif args.mode == "score":
        from modelzoo.scoring import score as scoring

        names = scoring.split_names(args.tasks)
        request = scoring.Request(
            names, args.data_dir, args.split, args.eval_batch_size or 8, args.shots, args.shots_seed, args.show or 0
        )
        scoring.score_checkpoints(config, options, request)
    elif args.mode == "finetune":
        from modelzoo.finetuning.finetune import finetune

        finetune(config, options)
    else:
        from modelzoo.tasks.pretrain import train

        train(config, options, evaluate=args.mode == "train_and_eval")
