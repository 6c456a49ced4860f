"""`run.py report RUN...` and a study's end: the runs' results, as one page of figures, and their numbers as CSV."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from modelzoo.config.errors import UserError
from modelzoo.study.figures import cost, curves, finetuned, layers
from modelzoo.study.figures.draw import Panel
from modelzoo.study.reports import page
from modelzoo.study.runs import results
from modelzoo.study.runs.names import list_names
from modelzoo.study.runs.results import Group, Result


def report_runs(folders: Sequence[str], path: str) -> str:
    """Write the page of some runs. Runs that differ in their seed alone count as one group.

    Returns:
        What was written, in words.

    Raises:
        UserError: a folder is no run, or none of the runs was ever validated.
    """
    if not path.endswith(".html"):
        raise UserError(f"-o {path}: the report is an HTML file; name one that ends in .html")
    groups = results.group_runs([results.read_run(folder) for folder in folders])
    for group in groups:
        if twice := [seed for seed, n in Counter(run.init.seed for run in group.runs).items() if n > 1]:
            text = (
                f"{group.label}: seed {twice[0]} is there more than once: intervals take its runs for independent ones"
            )
            print(f"note       {text}", file=sys.stderr)
    return write(groups, path, "Runs side by side")


def write_study(
    cells: Iterable[tuple[str, str]],
    losses: Mapping[str, Mapping[float, float]],
    path: str,
    name: str,
    others: float | None = None,
) -> str:
    """Write the page of a study.

    Args:
        cells: folder and group of each finished run.
        losses: final loss of the first seed by group and peak learning rate.
        name: the study's.
        others: peak of all but the decoder's matrices, where `losses` is by theirs.
    """
    labels, runs, damaged = dict(cells), [], []
    for folder in labels:
        try:
            runs.append(results.read_run(folder))
        except UserError as e:  # one run does not cost the report of the others
            damaged.append(str(e))
    if not runs:
        raise UserError("\n".join(damaged) or "report: no run has ended")
    for problem in damaged:
        print(f"damaged    {problem}; the report leaves this run out", file=sys.stderr)
    written = write(results.group_runs(runs, labels), path, f"Study: {name}", [curves.draw_by_peak(losses, others)])
    return written


def write(groups: Sequence[Group], path: str, title: str, more: Sequence[Panel | None] = ()) -> str:
    """Write the figures that `groups` have data for to `path`; returns what was written, in words."""
    parts: list[Callable[[], Sequence[Panel | None]]] = [
        lambda: [curves.draw_final_losses(groups)],
        lambda: [curves.draw_by_flops(groups)],
        lambda: [curves.draw_by_tokens_and_time(groups)],
        lambda: more,
        lambda: [cost.tabulate_savings(groups)],
        lambda: [cost.draw_time(groups)],
        lambda: [layers.draw_by_layer(groups)],
        lambda: layers.draw_over_time(groups),
        lambda: [finetuned.draw_recovery(groups)],
        lambda: finetuned.draw_histograms(groups),
        lambda: [finetuned.tabulate_nearest_tokens(groups)],
    ]
    shown, damaged = [], []
    for part in parts:
        try:
            shown += [p for p in part() if p is not None]
        except UserError as e:  # a checkpoint that cannot be read costs its own pictures alone
            damaged.append(f"damaged    {e}; the report leaves out what hangs on it")
    for problem in dict.fromkeys(damaged):
        print(problem, file=sys.stderr)
    if not any(run.validation or run.dev for group in groups for run in group.runs):
        names = list_names([run.name for group in groups for run in group.runs])
        raise UserError(f"report: none of these runs was validated ({names}); train with -m train_and_eval")
    try:
        folder = page.write_page(path, title, _lead(groups), shown)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from None
    written = f"report     {path} ({len(shown)} figures and tables)"
    return "\n".join([written, f"numbers    {folder}{os.sep}*.csv, pictures *.svg"])


def _lead(groups: Sequence[Group]) -> str:
    runs: list[Result] = [run for group in groups for run in group.runs]
    models = {(r.init.model.num_hidden_layers, r.init.model.hidden_size) for r in runs}
    devices = dict.fromkeys(x.get("device", "an unknown device") for r in runs for x in r.launches)
    shapes = ", ".join(f"{layers} layers of width {width}" for layers, width in sorted(models))
    return f"{len(runs)} runs in {len(groups)} groups, {shapes}; on {'; '.join(devices)}."
