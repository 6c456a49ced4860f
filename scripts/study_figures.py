"""What the scripts share that turn a study's finished runs into a table and a picture."""

import argparse
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar

from modelzoo.study.runs.results import Result, read_run

Rows = TypeVar("Rows", bound=Collection)
PEAK = r"(?:-lr(?P<peak>[\d.e+-]+?))?"  # in a run's name, where several rates were tried: as `:g` writes it


def read_finished(folder: Path, name: re.Pattern[str]) -> Iterator[tuple[re.Match[str], Result]]:
    """The runs of a study that were validated at their last step and whose folders are called as `name` says.

    Others are named on stderr: what is shown is without them.
    """
    others = []
    for path in sorted((folder / "runs").iterdir()):
        found = name.fullmatch(path.name)
        run = read_run(str(path)) if found else None
        if found and run and run.validation and run.validation[-1]["step"] == run.config.trainer.init.loop.max_steps:
            yield found, run
        else:
            others.append(path.name)
    if others:
        print(f"note       without {', '.join(others)}: not finished, or of another name", file=sys.stderr)


def show_study(
    doc: str, config: str, what: str,
    collect: Callable[[Path], Rows], tabulate: Callable[[Rows], str], draw: Callable[[Rows], str],
) -> int:  # fmt: skip
    """Print the table of the study that the command line names, and write its picture; returns the exit code.

    Args:
        doc: the script's help. config: of the study. what: must be finished.
        collect: what is shown, empty where `what` is not there; tabulate: as Markdown; draw: as SVG.
    """
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("study", type=Path, help="the study's output folder")
    p.add_argument("-o", "--output", type=Path, help="an SVG file")
    args = p.parse_args()
    rows = collect(args.study) if (args.study / "runs").is_dir() else None
    if not rows:
        print(f"error: {args.study}: no finished {what}; run {config} first", file=sys.stderr)
        return 2
    print(tabulate(rows))
    if args.output:
        args.output.write_text(draw(rows), encoding="utf-8")
        print(f"\nwrote {args.output}")
    return 0
