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


VERBS = {
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
