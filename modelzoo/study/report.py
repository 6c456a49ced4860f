"""`run.py report RUN...` and a study's end: the runs' results, as one page of figures, and their numbers as CSV."""

import os
from collections.abc import Iterable, Mapping, Sequence

from modelzoo.config.errors import UserError
from modelzoo.study import cost, curves, finetuned, layers, page, results
from modelzoo.study.draw import Panel
from modelzoo.study.results import Group, Result


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
    return write(groups, path, "Runs side by side")


def write_study(
    cells: Iterable[tuple[str, str]], losses: Mapping[str, Mapping[float, float]], path: str, name: str
) -> str:
    """Write the page of a study.

    Args:
        cells: folder and group of each finished run.
        losses: final loss of the first seed by group and peak learning rate.
        name: the study's.
    """
    labels = dict(cells)
    groups = results.group_runs([results.read_run(folder) for folder in labels], labels)
    return write(groups, path, f"Study: {name}", [curves.draw_by_peak(losses)])


def write(groups: Sequence[Group], path: str, title: str, more: Sequence[Panel | None] = ()) -> str:
    """Write the figures that `groups` have data for to `path`; returns what was written, in words."""
    panels = [
        curves.draw_final_losses(groups),
        curves.draw_by_flops(groups),
        curves.draw_by_tokens_and_time(groups),
        *more,
        cost.tabulate_savings(groups),
        cost.draw_time(groups),
        layers.draw_by_layer(groups),
        *layers.draw_over_time(groups),
        finetuned.draw_recovery(groups),
        *finetuned.draw_histograms(groups),
        finetuned.tabulate_nearest_tokens(groups),
    ]
    shown = [p for p in panels if p is not None]
    if not any(run.validation or run.dev for group in groups for run in group.runs):
        raise UserError("report: none of these runs was validated; train with -m train_and_eval")
    try:
        folder = page.write_page(path, title, _lead(groups), shown)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from None
    return f"report     {path} ({len(shown)} figures and tables)\nnumbers    {folder}{os.sep}*.csv, pictures *.svg"


def _lead(groups: Sequence[Group]) -> str:
    runs: list[Result] = [run for group in groups for run in group.runs]
    models = {(r.init.model.num_hidden_layers, r.init.model.hidden_size) for r in runs}
    devices = dict.fromkeys(x.get("device", "an unknown device") for r in runs for x in r.launches)
    shapes = ", ".join(f"{layers} layers of width {width}" for layers, width in sorted(models))
    return f"{len(runs)} runs in {len(groups)} groups, {shapes}; on {'; '.join(devices)}."
