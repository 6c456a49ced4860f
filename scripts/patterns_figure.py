"""The table and picture of configs/study/patterns.yaml: what each sparsity pattern costs in loss and saves in time.

    python scripts/patterns_figure.py runs/study/patterns -o patterns.svg

Seconds are those of training steps alone: the median step times the steps, RigL's update steps counted apart, so that a
moment of other work on the machine does not count.
"""

import re
import statistics
import sys
from pathlib import Path

from study_figures import PEAK, read_finished, show_study

from modelzoo import entry
from modelzoo.sparsity.schedules import update_steps
from modelzoo.study.figures.draw import axes, legend, look, svg
from modelzoo.study.runs.results import Result

NAMES = {
    "single": "unstructured",
    "b32x32": "32x32",
    "b64x64": "64x64",
    "v32x1": "32x1",
    "shared4": "shared inputs (4)",
}
RUN = re.compile(
    r"(?P<pattern>\w+)-(?P<level>\d+)-(?P<method>static|rigl)-(?P<length>tokens|time)" + PEAK + r"-seed\d+"
)


def seconds(run: Result) -> float:
    """Training time of a run."""
    times = {t["step"]: t["seconds"] for t in run.timing if t["kind"] == "train"}
    if len(times) != max(times):
        what = f"{len(times)} of {max(times)} steps are in timing.jsonl"
        sys.exit(f"error: {run.folder}: {what}; train with log_steps: 1")
    groups = [g for g in run.init.sparsity if g.algorithm != "static"]
    updates = {s for g in groups for s in update_steps(g.update, max(times))}
    kinds = ([t for s, t in times.items() if (s in updates) is dear] for dear in (False, True))
    return sum(statistics.median(kind) * len(kind) for kind in kinds if kind)


def collect(folder: Path) -> list[dict]:
    """A row for each setting, none without a dense run.

    Means over its finished runs' seeds of loss and time, at the better of several rates.
    """
    runs: dict[tuple, dict[str | None, list[tuple[float, float]]]] = {}
    for found, run in read_finished(folder, RUN):
        *setting, peak = found.group("pattern", "level", "method", "length", "peak")
        runs.setdefault(tuple(setting), {}).setdefault(peak, []).append((run.validation[-1]["loss"], seconds(run)))
    rows = []
    for setting, by_peak in runs.items():
        mine = min(by_peak.values(), key=lambda of: statistics.mean(loss for loss, _ in of))
        row = dict(zip(("pattern", "level", "method", "length"), setting, strict=True))
        losses, times = zip(*mine, strict=True)
        rows.append({**row, "loss": statistics.mean(losses), "seconds": statistics.mean(times), "losses": losses})
    return rows if any(r["pattern"] == "dense" for r in rows) else []  # the others are compared with it


def table(rows: list[dict]) -> str:
    """Markdown: for equal tokens loss and time of each pattern, level by level; then for equal time."""
    (dense,) = [r for r in rows if r["pattern"] == "dense"]
    found = {(r["pattern"], r["level"], r["method"], r["length"]): r for r in rows}
    levels = sorted({r["level"] for r in rows} - {"0"})
    head = [f"{level} % {method}" for level in levels for method in ("static", "RigL")]
    head += ["75 % static, dense's time", "75 % RigL, dense's time"]
    lines = [f"| pattern | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for pattern, name in NAMES.items():
        cells = [found.get((pattern, lv, m, "tokens")) for lv in levels for m in ("static", "rigl")]
        cells += [found.get((pattern, "75", m, "time")) for m in ("static", "rigl")]
        texts = [_cell(c, dense) if c else "" for c in cells]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    for r in rows:
        if r["pattern"] not in (*NAMES, "dense"):
            lines.append(f"\n{r['pattern']}: {_cell(r, dense)}")
    return f"dense: {dense['loss']:.3f} in {dense['seconds']:.0f} s\n\n" + "\n".join(lines)


def _cell(row: dict, dense: dict) -> str:
    """Loss, its lowest and highest seed where there are several, and time over the dense run's."""
    several = f" {min(row['losses']):.3f} to {max(row['losses']):.3f}" if len(row["losses"]) > 1 else ""
    return f"{row['loss']:.3f}{several} ({row['seconds'] / dense['seconds']:.2f})"


def picture(rows: list[dict]) -> str:
    """Loss against time, a panel for each level; hollow marks are RigL, lines join a pattern to its longer run."""
    (dense,) = [r for r in rows if r["pattern"] == "dense"]
    levels = sorted({r["level"] for r in rows} - {"0"})
    figure, (plots,) = axes(len(levels), width=11, height=4, sharey=True, sharex=True)
    for plot, level in zip(plots, levels, strict=True):
        plot.plot([1], [dense["loss"]], "*", color="#9a9b9c", markersize=13, label="dense")
        plot.axhline(dense["loss"], color="#9a9b9c", linewidth=0.8)
        for i, (pattern, name) in enumerate(NAMES.items()):
            colour, _, marker = look(i)
            for method in ("static", "rigl"):
                mine = [r for r in rows if (r["pattern"], r["level"], r["method"]) == (pattern, level, method)]
                mine.sort(key=lambda r: r["seconds"])
                plot.plot(
                    [r["seconds"] / dense["seconds"] for r in mine], [r["loss"] for r in mine], ":", marker=marker,
                    color=colour, markersize=7, linewidth=0.8, fillstyle="full" if method == "static" else "none",
                    label=name if method == "static" else None,
                )  # fmt: skip
        plot.set(title=f"{level} % off", xlabel="training time, dense run = 1")
    plots[0].set_ylabel("validation loss (nats per token)")
    legend(figure, plots[0])
    return svg(figure, "patterns")


def main() -> int:
    return show_study(__doc__ or "", "configs/study/patterns.yaml", "dense run", collect, table, picture)


if __name__ == "__main__":
    sys.exit(entry.run_command(main, sys.argv[1:], "nothing was written"))
