"""`run.py VERB ...`: what moves or compares files. Each verb imports what it needs when it runs."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from modelzoo.config.arguments import Parser, Settings, positive_int


class Verb(NamedTuple):
    """One verb: its help text, its arguments, and what it does with them."""

    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _convert_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("old", metavar="OLD", help="a Model Zoo GPT-2/GPT-3 config of release 1.8 or later")
    p.add_argument("new", metavar="NEW", help="the YAML to write")
    p.add_argument("--set", action=Settings, default=[], metavar="KEY=VALUE", dest="overrides", help="override a key")
    p.add_argument("--force", action="store_true", help="replace NEW if it exists")


def _convert(args: argparse.Namespace) -> None:
    from modelzoo.tasks.convert_config import convert_config

    print(convert_config(args.old, args.new, args.overrides, args.force))


def _export_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a run folder (its newest checkpoint) or a step folder")
    p.add_argument("out", metavar="OUT", help="the folder to make, or FILE.mdl for Model Zoo's format")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the run's config (default: config.yaml of the run folder)")
    p.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or its folder (default: the training data's)")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the weights")


def _export(args: argparse.Namespace) -> None:
    from modelzoo.interop.export import export

    print(export(args.checkpoint, args.out, args.params, args.tokenizer, args.dtype))


def _import_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a Hugging Face GPT-2 folder with safetensors, or FILE.mdl")
    p.add_argument("out", metavar="RUN", help="the run folder to make")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the config to go on with (a .mdl needs one)")
    p.add_argument("--weights", action="store_true", help="of a .mdl take weights and masks, not the optimizer's state")


def _import(args: argparse.Namespace) -> None:
    from modelzoo.interop.import_checkpoint import import_checkpoint

    print(import_checkpoint(args.checkpoint, args.out, args.params, args.weights))


def _prompt_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="a run folder (its newest checkpoint) or a step folder")
    p.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or its folder (default: the run's)")
    p.add_argument(
        "--nearest", metavar="N", type=positive_int, default=5, help="nearest tokens to list for each vector (5)"
    )


def _prompt(args: argparse.Namespace) -> None:
    from modelzoo.interop.adapters import format_prompt_table

    print(format_prompt_table(args.run, args.tokenizer, args.nearest))


def _compare_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", metavar="RUN", nargs="+", help="run folders; the others are compared with the first")
    p.add_argument("-o", "--output", metavar="PICTURE", default="comparison.svg", help=".svg or .png (comparison.svg)")


def _compare(args: argparse.Namespace) -> None:
    from modelzoo.study.compare import compare_runs

    compare_runs(args.runs, args.output)


def _report_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", metavar="RUN", nargs="+", help="run folders; those that differ in their seed count as one")
    p.add_argument("-o", "--output", metavar="PAGE", default="report.html", help="the HTML file (report.html)")


def _report(args: argparse.Namespace) -> None:
    from modelzoo.study.report import report_runs

    print(report_runs(args.runs, args.output))
    print(f"next       open {args.output} in a browser")


def _search_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a run folder, a step folder or an exported folder")
    p.add_argument("--task", required=True, metavar="TASK", help="a file like configs/eval/pubmedqa.yaml, or its name")
    p.add_argument(
        "--templates",
        action="extend",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files or folders (the task's folder)",
    )
    p.add_argument("-o", "--output", metavar="DIR", help="where results go (./prompt_search/TASK)")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the run's config (default: config.yaml of the run folder)")
    p.add_argument("--data_dir", metavar="DIR", help="the task's data, instead of its file's own")
    p.add_argument("--split", choices=["train", "dev"], default="dev", help="dev; never test: it would be used up")
    p.add_argument("--eval_batch_size", type=positive_int, default=8, metavar="N", help="rows at once (8)")
    p.add_argument("--target", choices=["GPU", "CPU", "auto"], default="auto", help="device (auto)")


def _search(args: argparse.Namespace) -> None:
    from modelzoo.scoring.prompt_search import Request, search_prompts

    request = Request(
        args.checkpoint, args.task, args.output, tuple(args.templates), args.params, args.data_dir, args.split,
        args.eval_batch_size, args.target,
    )  # fmt: skip
    print(search_prompts(request))


VERBS = {
    "compare": Verb(
        "Runs side by side: a table of FLOPs and scores, and a picture of their losses and sparsity per layer.",
        "python run.py compare runs/dense runs/s75 -o comparison.svg",
        _compare_arguments,
        _compare,
    ),
    "report": Verb(
        "One self-contained HTML page of runs: losses, FLOPs, masks, weights and time, with the numbers as CSV.",
        "python run.py report runs/dense runs/s75 runs/rigl75 -o report.html",
        _report_arguments,
        _report,
    ),
    "export": Verb(
        "Write a checkpoint as a Hugging Face folder (safetensors, tokenizer, model card), or as Model Zoo's .mdl.",
        "python run.py export runs/s75 exported/s75\n  python run.py export runs/s75 checkpoint_300.mdl",
        _export_arguments,
        _export,
    ),
    "prompt": Verb(
        "The vocabulary's tokens that each learned soft-prompt vector is nearest to, as a table.",
        "python run.py prompt runs/pubmedqa_prompt --nearest 3",
        _prompt_arguments,
        _prompt,
    ),
    "import": Verb(
        "Import a Hugging Face GPT-2 folder, or Model Zoo's .mdl, as a checkpoint of a new run folder.",
        "python run.py import gpt2/ runs/gpt2\n  python run.py import checkpoint_300.mdl runs/s75 -p s75.yaml",
        _import_arguments,
        _import,
    ),
    "prompt-search": Verb(
        "Score a task's templates and label words on its dev split, each against the task's own.",
        "python run.py prompt-search runs/s75 --task configs/eval/pubmedqa.yaml",
        _search_arguments,
        _search,
    ),
    "convert-config": Verb(
        "Write a Model Zoo config of an older release (or today's) in today's format, and report each change.",
        "python run.py convert-config params_gpt3_125m_rigl75.yaml rigl75.yaml",
        _convert_arguments,
        _convert,
    ),
}


def run(argv: list[str]) -> None:
    """`argv` begins with a verb of VERBS."""
    verb = VERBS[argv[0]]
    p = Parser(
        prog=f"run.py {argv[0]}",
        description=verb.about,
        epilog=f"example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.arguments(p)
    args = p.parse_args(argv[1:])
    from modelzoo.kernels.processor import processor_class

    processor_class()  # refuses a MEDISWIFT_PROCESSOR that this machine cannot act as
    verb.run(args)
