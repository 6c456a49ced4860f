"""Losses: against FLOPs with the Pareto front, against tokens and time, at the end with intervals, and by peak rate."""

import math
from collections.abc import Mapping, Sequence

from modelzoo.study.figures.draw import Panel, axes, find_unit, legend, limit_axis, log_loss, look, svg
from modelzoo.study.runs.names import label_line, wrap_label
from modelzoo.study.runs.results import Group, find_front, interval

BAND = "Lines are means over seeds; bands are 95 % intervals (Student's t)."


def points(groups: Sequence[Group]) -> list[tuple]:
    """A row per group and validated step: what had been spent by then, and the loss with its interval."""
    rows = []
    for group in groups:
        for step in group.steps:
            spent = group.mean(("flops", "dense_flops", "tokens", "seconds"), step)
            rows.append((group.label, step, *spent, *interval(group.losses(step)), len(group.validated)))
    return rows


SAME = 0.01  # of the FLOPs: whole steps meet a budget about so closely
HEAD = ("group", "step", "flops", "dense_flops", "tokens", "seconds", "loss", "low", "high", "runs")


def draw_by_flops(groups: Sequence[Group]) -> Panel | None:
    """Loss against training FLOPs as run, and the front that no group's mean is below."""
    rows = [r for r in points(groups) if r[2] is not None]
    if not rows:
        return None
    figure, ((plot,),) = axes(height=3.8)
    scale, unit = find_unit(max(r[2] for r in rows))
    best = {rows[i][:2] for i in find_front([(r[2], r[6]) for r in rows], SAME)}
    edge = sorted((r for r in rows if r[:2] in best), key=lambda r: r[2])
    plot.plot([r[2] / scale for r in edge], [r[6] for r in edge], color="#9a9b9c", linewidth=7, alpha=0.35,
              solid_capstyle="round", label="Pareto front", zorder=1)  # fmt: skip
    _lines(plot, groups, rows, 2, scale)
    plot.set(xlabel=f"training FLOPs, counted ({unit})", ylabel="validation loss (nats per token)", xscale="log")
    _plain_x(plot)
    cut = _limit_losses(plot, rows)
    log_loss(plot)
    legend(figure, plot)
    front_by = ", ".join(dict.fromkeys(r[0] for r in edge))
    caption = (
        f"{BAND}{cut} On the front, in rising FLOPs: {front_by}. FLOPs are counted as run: masks' savings, RigL's "
        "dense gradients and GMP's dense beginning included. On a CPU or GPU they are not time saved."
    )
    marked = [(*r, int(r[:2] in best)) for r in rows]
    return Panel(
        "loss_by_flops", "Loss against training FLOPs", caption, svg(figure, "flops"), (*HEAD, "front"), marked
    )


def _limit_losses(plot, rows: Sequence[tuple]) -> str:
    """Let the means of `points` fill the axis; see `limit_axis`."""
    return limit_axis(plot, "y", [r[6] for r in rows], [x for r in rows for x in r[7:9]], log=True)


def _plain_x(plot) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    plot.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    plot.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    plot.xaxis.set_minor_formatter(NullFormatter())


def _lines(plot, groups: Sequence[Group], rows, column: int, scale: float) -> None:
    for i, group in enumerate(groups):
        mine = [r for r in rows if r[0] == group.label and r[column] is not None]
        if not mine:
            continue
        colour, style, marker = look(i)
        x = [r[column] / scale for r in mine]
        plot.fill_between(x, [r[7] for r in mine], [r[8] for r in mine], color=colour, alpha=0.15, linewidth=0)
        plot.plot(
            x, [r[6] for r in mine], style, color=colour, marker=marker, markersize=4, label=label_line(group.label)
        )


def draw_by_tokens_and_time(groups: Sequence[Group]) -> Panel | None:
    """Loss against tokens seen and against seconds of training and validation."""
    rows = points(groups)
    if not rows:
        return None
    figure, ((tokens,), (seconds,)) = axes(1, 2, height=6.4)
    cut = ""
    for plot, column, name in ((tokens, 4, "tokens"), (seconds, 5, "wall-clock")):
        highest = max((r[column] for r in rows if r[column] is not None), default=1.0)
        scale, unit = find_unit(highest) if column == 4 else ((60.0, "minutes") if highest > 600 else (1.0, "seconds"))
        _lines(plot, groups, rows, column, scale)
        plot.set(xlabel=f"{name} ({unit})" if unit else name, ylabel="validation loss (nats per token)")
        cut = _limit_losses(plot, rows)
        log_loss(plot)
    legend(figure, tokens)
    caption = (
        f"{BAND}{cut} Wall-clock is training and validation as this machine took it, whatever else ran on it, "
        "without start-up and saving."
    )
    return Panel("loss_by_tokens_and_time", "Loss against tokens and time", caption, svg(figure, "tokens"), HEAD, rows)


def draw_final_losses(groups: Sequence[Group]) -> Panel | None:
    """The last validation loss of each group, lowest first."""
    rows = []
    for i, group in enumerate(groups):
        if group.steps:
            last = group.steps[-1]
            losses, (flops,) = group.losses(last), group.mean(("flops",), last)
            rows.append((i, group.label, *interval(losses), len(losses), flops, losses, last))
    if not rows:
        return None
    rows.sort(key=lambda r: r[2])
    names = [wrap_label(r[1]) for r in rows]
    figure, ((plot,),) = axes(height=0.8 + sum(0.2 + 0.14 * name.count("\n") + 0.14 for name in names))
    for y, (i, _, mean, low, high, _, _, losses, _) in enumerate(rows):
        colour, _, marker = look(i)
        plot.plot(losses, [y] * len(losses), ".", color=colour, alpha=0.5, markersize=5)
        plot.errorbar([mean], [y], xerr=[[mean - low], [high - mean]], fmt=marker, color=colour, capsize=3)
    plot.set(yticks=range(len(rows)), yticklabels=names, xlabel="validation loss (nats per token)")
    cut = limit_axis(plot, "x", [x for r in rows for x in (r[2], *r[7])], [x for r in rows for x in r[3:5]])
    plot.set_ylim(len(rows) - 0.5, -0.5)
    few = min(r[5] for r in rows) < 2
    last = "At the last step at which all validated runs of a group were. "
    caption = f"{last}Mean over seeds with its 95 % interval (Student's t); dots are single runs.{cut}" + (
        " A group with one run has no interval: its difference from others may be the seed's." if few else ""
    )
    head = ("group", "loss", "low", "high", "runs", "flops", "step")
    titles = (
        "group",
        "validation loss (nats per token)",
        "95 % interval from",
        "to",
        "runs",
        "training FLOPs, counted",
        "step",
    )
    shown = [(*r[1:3], *(r[3:5] if r[5] > 1 else (None, None)), *r[5:7], r[8]) for r in rows]
    return Panel("final_loss", "Loss at the end", caption, svg(figure, "final"), head, shown, True, titles)


def draw_by_peak(losses: Mapping[str, Mapping[float, float]], others: float | None = None) -> Panel | None:
    """Final loss against the peak learning rate.

    Args:
        losses: of the first seed, by setting and peak.
        others: where the peak is of the decoder's matrices: that of all other weights.
    """
    if not any(len(of) > 1 for of in losses.values()):
        return None
    finite = {label: {p: x for p, x in of.items() if math.isfinite(x)} for label, of in losses.items()}
    best = {label: min(of, key=of.__getitem__) for label, of in finite.items() if of}
    figure, ((plot,),) = axes(height=3.4)
    for i, (label, of) in enumerate(finite.items()):
        colour, style, marker = look(i)
        peaks = sorted(of)
        plot.plot(
            peaks, [of[p] for p in peaks], style, color=colour, marker=marker, markersize=4, label=label_line(label)
        )
        if of:
            plot.plot([best[label]], [of[best[label]]], "o", color=colour, markersize=10, fillstyle="none")
    plot.set(xlabel="peak learning rate", ylabel="validation loss at the end (nats per token)", xscale="log")
    tried = sorted({peak for of in losses.values() for peak in of})
    plot.set_xticks(tried, [f"{peak:g}" for peak in tried])
    plot.set_xticks([], minor=True)
    legend(figure, plot)
    at_edge = [label for label, of in losses.items() if len(of) > 2 and best.get(label) in (min(of), max(of))]
    diverged = [f"{label} at {p:g}" for label, of in losses.items() for p in sorted(of) if p not in finite[label]]
    caption = "".join([
        "One seed each; the ringed rate trains the other seeds. It was picked by the loss on the validation set that "
        "this report shows, so the first seed's is a little flattered.",
        "" if others is None else f" Rates of the decoder's matrices; all other weights' peak is {others:g}.",
        f" Not finite, and without a point: {', '.join(diverged)}." if diverged else "",
        f" The best rate lies at the edge of what was tried, so a better one may lie beyond: {', '.join(at_edge)}."
        if at_edge
        else "",
    ])  # fmt: skip
    rows = [(label, peak, loss) for label, of in losses.items() for peak, loss in sorted(of.items())]
    return Panel(
        "learning_rates", "Learning rates tried", caption, svg(figure, "rates"), ("group", "peak", "loss"), rows
    )
