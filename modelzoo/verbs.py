"""`run.py VERB ...`: what moves or compares files. Each verb imports what it needs when it runs."""

import argparse
from collections.abc import Callable
from typing import NamedTuple


class Verb(NamedTuple):
    """One verb: what it says of itself, its arguments, and what it does with them."""

    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _convert_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("old", metavar="OLD", help="a Model Zoo GPT-2/GPT-3 config of release 1.8 or later")
    p.add_argument("new", metavar="NEW", help="the YAML to write")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key")
    p.add_argument("--force", action="store_true", help="replace NEW if it exists")


def _convert(args: argparse.Namespace) -> None:
    from modelzoo.tasks.convert import convert

    print(convert(args.old, args.new, args.overrides, args.force))


def _export_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="a run folder (its newest checkpoint) or a step folder")
    p.add_argument("out", metavar="OUT", help="the folder to make, or FILE.mdl for Model Zoo's format")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the run's config (default: config.yaml of the run folder)")
    p.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or its folder (default: the training data's)")
    p.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the weights")


def _export(args: argparse.Namespace) -> None:
    from modelzoo.tasks.export import export

    print(export(args.checkpoint, args.out, args.params, args.tokenizer, args.dtype))


def _import_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", metavar="SOURCE", help="a Hugging Face GPT-2 folder with safetensors, or FILE.mdl")
    p.add_argument("out", metavar="RUN", help="the run folder to make")
    p.add_argument("-p", "--params", metavar="CONFIG", help="the config to go on with (a .mdl needs one)")
    p.add_argument("--weights", action="store_true", help="of a .mdl take weights and masks, not the optimizer's state")


def _import(args: argparse.Namespace) -> None:
    from modelzoo.tasks.bring import bring

    print(bring(args.source, args.out, args.params, args.weights))


def _compare_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", metavar="RUN", nargs="+", help="run folders; the first is what the others stand against")
    p.add_argument("-o", "--output", metavar="PICTURE", default="comparison.svg", help=".svg or .png (comparison.svg)")


def _compare(args: argparse.Namespace) -> None:
    from modelzoo.tasks.compare import compare

    compare(args.runs, args.output)


def _report_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", metavar="RUN", nargs="+", help="run folders; those that differ in their seed count as one")
    p.add_argument("-o", "--output", metavar="PAGE", default="report.html", help="the HTML file (report.html)")


def _report(args: argparse.Namespace) -> None:
    from modelzoo.study.report import report

    print(report(args.runs, args.output))
    print(f"next       open {args.output} in a browser")


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
    "import": Verb(
        "Bring a Hugging Face GPT-2 folder, or Model Zoo's .mdl, in as a checkpoint.",
        "python run.py import gpt2/ runs/gpt2\n  python run.py import checkpoint_300.mdl runs/s75 -p s75.yaml",
        _import_arguments,
        _import,
    ),
    "convert-config": Verb(
        "Write a Model Zoo config of an older release (or today's) in today's format, saying each change.",
        "python run.py convert-config params_gpt3_125m_rigl75.yaml rigl75.yaml",
        _convert_arguments,
        _convert,
    ),
}


def run(argv: list[str]) -> None:
    """`argv` begins with a verb of VERBS."""
    verb = VERBS[argv[0]]
    p = argparse.ArgumentParser(
        prog=f"run.py {argv[0]}",
        description=verb.about,
        epilog=f"example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.arguments(p)
    verb.run(p.parse_args(argv[1:]))
