"""The tables and the picture of configs/study/regrow.yaml: each method's loss and static masks', seed by seed.

    python scripts/regrow_figure.py runs/study/regrow -o docs/pictures/regrow.svg

Of several peak rates a method's best is taken, by the mean over the seeds that were run. Differences are of runs with
one seed, with 95 % intervals (Student's t) where there are two or more.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from study_figures import PEAK, read_finished, show_study

from modelzoo import entry
from modelzoo.study.figures.draw import axes, look, svg
from modelzoo.study.runs.results import interval

LEVELS = {"90": "90 %, single weights", "90b": "90 %, 32x32", "75": "75 %, single weights", "75b": "75 %, 32x32"}
METHODS = {
    "static": "static", "rigl": "RigL", "rigl_warm": "RigL, warm-up", "set": "SET", "smet": "SMET", "chts": "CHTs",
    "granet90": "GraNet", "granet75": "GraNet", "gmp90b": "GMP, 32x32", "gmp90p": "GMP, 32x32 in an order",
}  # fmt: skip
RUN = re.compile(r"(?P<level>\d+b?)-(?P<method>\w+?)" + PEAK + r"-seed(?P<seed>\d+)")


class Row(NamedTuple):
    """A method at one level, at its best peak rate (None: the level's only one)."""

    level: str
    method: str
    peak: str | None
    losses: dict[int, float]  # by seed, of validation at the last step
    explored: float | None  # the share of weights that was ever live
    tried: int  # peak rates

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return sum(self.losses.values()) / len(self.losses)


def collect(folder: Path) -> dict[tuple[str, str], Row]:
    """The finished runs of a study by level and method."""
    found: dict[tuple[str, str], dict[str | None, Row]] = {}
    for named, run in read_finished(folder, RUN):
        level, method, peak = named.group("level", "method", "peak")
        if method.startswith("gmp"):
            level = "90b"
        explored = run.train[-1].get("ever_active")
        by_peak = found.setdefault((level, method), {})
        row = by_peak.setdefault(peak, Row(level, method, peak, {}, explored, 0))
        row.losses[int(named["seed"])] = run.validation[-1]["loss"]
    rows = {}
    for key, by_peak in found.items():
        most = max(len(r.losses) for r in by_peak.values())
        best = min((r for r in by_peak.values() if len(r.losses) == most), key=lambda r: r.mean)
        rows[key] = best._replace(tried=len(by_peak))
    return rows


def format_interval(values: list[float], sign: str = "") -> str:
    """The mean with its interval; a single value as it is."""
    mean, low, high = interval(values)
    return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})" if len(values) > 1 else f"{mean:{sign}.3f}"


def table(rows: dict[tuple[str, str], Row], level: str) -> str:
    """Markdown: the methods of a level, the lowest loss first."""
    base = rows.get((level, "static"))
    mine = sorted((r for r in rows.values() if r.level == level), key=lambda r: r.mean)
    lines = ["| " + LEVELS[level] + " | peak rate | seeds | validation loss | minus static, same seeds | ever active |"]
    lines.append("|---|---|---|---|---|---|")
    for r in mine:
        shared = sorted(r.losses.keys() & base.losses.keys()) if base and r is not base else []
        apart = format_interval([r.losses[s] - base.losses[s] for s in shared], "+") if base and shared else ""
        peak = f"{float(r.peak):g}" + (f" of {r.tried}" if r.tried > 1 else "") if r.peak else ""
        explored = "" if r.explored is None else f"{r.explored:.1%}"
        loss = format_interval([r.losses[s] for s in sorted(r.losses)])
        lines.append(f"| {METHODS[r.method]} | {peak} | {len(r.losses)} | {loss} | {apart} | {explored} |")
    return "\n".join(lines)


def list_levels(rows: dict[tuple[str, str], Row]) -> list[str]:
    """The levels that have runs."""
    return [level for level in LEVELS if any(r.level == level for r in rows.values())]


def picture(rows: dict[tuple[str, str], Row], levels: list[str]) -> str:
    """A panel a level: a dot a seed, a bar the mean, static masks' mean as a line."""
    figure, plots = axes(2, -(-len(levels) // 2), width=9, height=2.9 * -(-len(levels) // 2))
    for plot, level in zip(plots.flat, levels, strict=False):
        mine = sorted((r for r in rows.values() if r.level == level), key=lambda r: -r.mean)
        for y, r in enumerate(mine):
            colour, _, marker = look(list(METHODS).index(r.method))
            plot.plot(list(r.losses.values()), [y] * len(r.losses), marker, color=colour, markersize=6)
            plot.plot([r.mean], [y], "|", color=colour, markersize=16, markeredgewidth=2)
        if (base := rows.get((level, "static"))) is not None:
            plot.axvline(base.mean, color="#9a9b9c", linewidth=0.8)
        plot.set_yticks(range(len(mine)), [METHODS[r.method] for r in mine])
        plot.set(title=LEVELS[level], xlabel="validation loss (nats per token)")
        plot.margins(y=0.12)
    for plot in plots.flat[len(levels) :]:
        plot.set_visible(False)
    return svg(figure, "regrow")


def tabulate(rows: dict[tuple[str, str], Row]) -> str:
    """The tables of all levels."""
    return "\n\n".join(table(rows, level) for level in list_levels(rows))


def main() -> int:
    draw = lambda rows: picture(rows, list_levels(rows))
    return show_study(__doc__ or "", "configs/study/regrow.yaml", "run", collect, tabulate, draw)


if __name__ == "__main__":
    sys.exit(entry.run_command(main, sys.argv[1:], "nothing was written"))
