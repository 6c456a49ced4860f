"""What runs cost: their time by part, and what sparsity saves as stored, counted, computed and measured."""

import os
from collections.abc import Sequence

import numpy as np

from modelzoo.progress import format_size
from modelzoo.study.figures.draw import Panel, axes, look, svg
from modelzoo.study.runs.names import wrap_label
from modelzoo.study.runs.results import Group, Result, interval


def draw_time(groups: Sequence[Group]) -> Panel | None:
    """Seconds of training steps, waiting for data and validation, summed over each group's runs."""
    rows = []
    for group in groups:
        steps = [(t["step"] - before, t) for run in group.runs for before, t in run.timed]
        waiting = sum(n * t.get("waiting", 0.0) for n, t in steps)
        other = sum(t["seconds"] for run in group.runs for t in run.timing if t["kind"] != "train")
        if steps:
            rows.append((group.label, sum(n * t["seconds"] for n, t in steps) - waiting, waiting, other))
    if not rows:
        return None
    names = [wrap_label(r[0]) for r in rows]
    figure, ((plot,),) = axes(height=1.0 + sum(0.34 + 0.14 * name.count("\n") for name in names))
    left = np.zeros(len(rows))
    for i, part in enumerate(("training steps", "waiting for data", "validation")):
        share = np.array([r[1 + i] / sum(r[1:]) for r in rows])
        plot.barh(range(len(rows)), share, left=left, color=look(i).colour, label=part, hatch=("", "//", "..")[i],
                  edgecolor="white", linewidth=0)  # fmt: skip
        left += share
    plot.set(yticks=range(len(rows)), yticklabels=names, xlim=(0, 1), xlabel="share of the time")
    plot.invert_yaxis()
    plot.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    caption = "As the runs logged it (timing.jsonl); start-up and saving are not in it."
    head = ("group", "training seconds", "waiting seconds", "validation seconds")
    return Panel("time", "Where the time goes", caption, svg(figure, "time"), head, rows)


def measure_speed(run: Result) -> float | None:
    """Median tokens per second of a run's steps, padding among them; of the means between its records."""
    speeds = [t["tokens_per_second"] for t in run.timing if "tokens_per_second" in t]
    return float(np.median(speeds)) if speeds else None


def _find_dense(group: Group, groups: Sequence[Group]) -> Group | None:
    """The group with the same model and no sparsity."""
    model = group.first.init.model
    return next((g for g in groups if not g.first.init.sparsity and g.first.init.model == model), None)


def _stored(run: Result) -> tuple[int, int] | None:
    """Bytes of a checkpoint's model file, and of the same weights as live values and one bit a weight."""
    if run.last is None:
        return None
    path = os.path.join(run.last, "model.safetensors")
    whole = os.path.getsize(path)
    saved = sum(4 * (size - live) + size - size // 8 for live, size in run.live.values())  # masks are bytes there
    return whole, whole - saved


def _show_size(nbytes: int) -> str:
    return format_size(nbytes) if nbytes >= 2**20 else f"{nbytes:,} bytes"


def tabulate_savings(groups: Sequence[Group]) -> Panel:
    """For each group: what its sparsity saves on disk, in counted FLOPs, in computed FLOPs, and in time."""
    rows = []
    for group in groups:
        run, twin = group.first, _find_dense(group, groups)
        last = run.train[-1] if run.train else {}
        stored = _stored(run)
        counted = last["dense_flops"] / last["flops"] if last.get("flops") and "dense_flops" in last else None
        kinds = {getattr(g, "pattern", None) or "unstructured" for g in run.init.sparsity}
        computed = _computed(run, kinds)
        rows.append((
            group.label,
            ", ".join(sorted(kinds)) if kinds else "dense",
            "-" if stored is None else f"{_show_size(stored[0])} ({_show_size(stored[1])} as live values and bits)",
            "-" if counted is None else f"{counted:.2f}x fewer",
            computed,
            _measured(group, twin),
        ))  # fmt: skip
    head = ("group", "pattern", "stored", "counted", "computed", "measured")
    titles = (
        "group", "pattern of the masks", "stored: size of a checkpoint's weights", "counted: training FLOPs",
        "computed: weights that are multiplied", "measured: tokens a second",
    )  # fmt: skip
    caption = (
        "Stored: a checkpoint's weights as they are on disk. Counted: dense over sparse training FLOPs, as run. "
        "Computed: what the kernels multiply. Measured: tokens a second against the dense group of the same model, "
        "medians of each run's steps, with the range over seeds; two runs that shared a busy machine differ for that "
        "reason too." + _explain_mfu(groups)
    )
    return Panel("where_sparsity_is_real", "Where sparsity is real", caption, None, head, rows, True, titles)


def _computed(run: Result, kinds: set[str]) -> str:
    """What the kernels multiply, by the storage that the run noted when it began."""
    if not run.init.sparsity:
        return "all of it"
    if any("CS-2" in launch.get("device", "") for launch in run.launches):
        return "live weights, as the wafer does"
    notes = [str(n) for launch in run.launches[-1:] for n in launch.get("notes", ())]
    if stored := [n.removeprefix("storage").strip() for n in notes if n.startswith("storage")]:
        return "; ".join(stored)
    return "all of it: masked weights are multiplied"


def measure_mfu(run: Result) -> float | None:
    """FLOPs a second of live weights, as counted, over what the devices can do; None where that is not known."""
    if run.speed is None or run.speed.peak_flops_per_second is None:
        return None
    return run.speed.flops_per_second / run.speed.peak_flops_per_second


def _explain_mfu(groups: Sequence[Group]) -> str:
    """What MFU is a share of, for each run that has one; empty where none has."""
    found = [run.speed for group in groups for run in group.runs if run.speed is not None]
    peaks = [speed.peak for speed in found if speed.peak is not None]
    return f" MFU: FLOPs of live weights, as counted, over {'; or '.join(dict.fromkeys(peaks))}." if peaks else ""


def _measured(group: Group, twin: Group | None) -> str:
    ours = [s for run in group.runs if (s := measure_speed(run)) is not None]
    theirs = [s for run in twin.runs if (s := measure_speed(run)) is not None] if twin else []
    if not ours:
        return "-"
    mean = interval(ours)[0]
    shares = [share for run in group.runs if (share := measure_mfu(run)) is not None]
    mfu = f"; MFU {interval(shares)[0]:.1%}" if shares else ""
    if not theirs:
        return f"{mean:,.0f} tokens/s; no dense run of this model to compare with{mfu}"
    if twin is group:
        return f"{mean:,.0f} tokens/s{mfu}"
    ratio = mean / interval(theirs)[0]
    low, high = min(ours) / max(theirs), max(ours) / min(theirs)
    spread = f" [{low:.2f} to {high:.2f}]" if len(ours) + len(theirs) > 2 else ", one run each"
    return f"{mean:,.0f} tokens/s: {ratio:.2f}x dense{spread}{mfu}"
