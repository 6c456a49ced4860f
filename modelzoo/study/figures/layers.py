"""Masks in pictures: sparsity per layer against its target, and which weights grew and dropped over time."""

from collections.abc import Sequence

import numpy as np

from modelzoo.models.shapes import list_parameters
from modelzoo.reading import is_number
from modelzoo.sparsity.schedules import held
from modelzoo.sparsity.select import group_counts, select_parameters
from modelzoo.study.figures.draw import FAINT, LIGHT, Panel, axes, coarse, legend, look, svg, tint
from modelzoo.study.runs.names import key_of, label_line
from modelzoo.study.runs.results import Group, Result, masks

GROWN, DROPPED = LIGHT[2], LIGHT[1]


def _part(name: str) -> tuple[int, str]:
    """Layer and short name of a matrix: `...layers.3.self_attn.proj_q_dense_layer.weight` is (3, "q")."""
    inner = name.split(".layers.")[-1] if ".layers." in name else f"0.{name}"
    layer, _, rest = inner.partition(".")
    short = rest.removesuffix(".weight").replace("self_attn.proj_", "").replace("_dense_layer", "")
    short = short.replace("ffn.ffn.", "ffn").replace(".linear_layer", "").replace("_for_glu", "g")
    return (int(layer) if is_number(layer) else 0), short


def targets(result: Result, step: int) -> dict[str, float]:
    """The sparsity that the config wants of each weight after `step` steps."""
    shapes = list_parameters(result.init.model)
    wanted = {}
    for group, names in zip(result.init.sparsity, select_parameters(shapes, result.init.sparsity), strict=True):
        sizes = {n: shapes[n].size for n in names}
        counts = group_counts(group, sizes, held(group, step))
        wanted |= {n: 1 - counts[n] / shapes[n].numel for n in names}
    return wanted


def draw_by_layer(groups: Sequence[Group]) -> Panel | None:
    """Target and actual sparsity of every masked matrix, of each group's first run at its last checkpoint."""
    rows, shown = [], []
    for i, group in enumerate(groups):
        run = group.first
        if not run.init.sparsity or run.last is None:
            continue
        wanted = targets(run, next(reversed(run.checkpoints)))  # training may be further
        mine = [(*_part(n), wanted.get(n, float("nan")), 1 - live / size) for n, (live, size) in run.live.items()]
        rows += [(group.label, *r) for r in sorted(mine)]
        shown.append((i, group.label, mine))
    if not shown:
        return None
    figure, ((plot,),) = axes()
    parts = sorted({r[1:3] for r in rows})
    at = {part: x for x, part in enumerate(parts)}
    for i, label, mine in shown:
        colour, _, marker = look(i)
        x = [at[r[:2]] + 0.5 * (i + 0.5) / len(groups) - 0.25 for r in mine]  # side by side where they agree
        plot.plot(x, [r[2] for r in mine], "_", color=colour, markersize=12, alpha=0.7)
        plot.plot(x, [r[3] for r in mine], marker, color=colour, markersize=4, label=label_line(label))
    layers = sorted({p[0] for p in parts})
    starts = [min(at[p] for p in parts if p[0] == layer) for layer in layers]
    plot.set(ylim=(-0.03, 1.03), ylabel="share of weights off", xticks=starts, xticklabels=layers, xlabel="layer")
    legend(figure, plot)
    caption = (
        "Bars are what the config asks for, marks what the masks of the last checkpoint hold. Within a layer: "
        + ", ".join(dict.fromkeys(p[1] for p in parts))
        + "."
    )
    head = ("group", "layer", "matrix", "target", "actual")
    return Panel(
        "sparsity_by_layer", "Sparsity per layer, target and actual", caption, svg(figure, "layers"), head, rows
    )


def changes(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which weights grew and which dropped, bool of the masks' shape."""
    return after & ~before, before & ~after


def draw_over_time(groups: Sequence[Group], most: int = 5) -> list[Panel]:
    """For each group with dynamic masks: a matrix at up to `most` checkpoints, with growth and drop between them."""
    made = []
    for group in groups:
        run = next((r for r in group.runs if r.dynamic and len(r.checkpoints) > 1), None)
        if run is not None and (panel := _over_time(group.label, run, most)) is not None:
            made.append(panel)
    return made


def _over_time(label: str, run: Result, most: int) -> Panel | None:
    steps = sorted({list(run.checkpoints)[round(i)] for i in np.linspace(0, len(run.checkpoints) - 1, most)})
    history = {step: masks(run.checkpoints[step]) for step in steps}
    names = [n for n, mask in history[steps[0]].items()
             if all(n in m and m[n].shape == mask.shape for m in history.values())]  # fmt: skip
    if not names:
        return None
    name = max(names, key=lambda n: ("ffn.ffn.0" in n, -_part(n)[0]))
    rows = []
    for before, after in zip([None, *steps], steps):
        for n in names:
            new = history[after][n]
            grown, dropped = changes(history[before][n], new) if before is not None else (new[:0], new[:0])
            rows.append((label, after, *_part(n), int(new.sum()), new.size, int(grown.sum()), int(dropped.sum())))
    figure, plots = axes(2, len(steps), height=1.9 * len(steps))
    for row, step in enumerate(steps):
        left, right = plots[row]
        density = coarse(history[step][name])
        left.imshow(tint(density / max(density.max(), 1e-9), LIGHT[0]), aspect="auto", interpolation="nearest")
        left.set_title(f"live weights at step {step}")
        if row:
            grown, dropped = (coarse(x) for x in changes(history[steps[row - 1]][name], history[step][name]))
            peak = max(grown.max(), dropped.max(), 1e-9)
            for share, colour in ((grown, GROWN), (dropped, DROPPED)):
                right.imshow(tint(share / peak * 0.8, colour), aspect="auto", interpolation="nearest")
            counts = [int(x.sum()) for x in changes(history[steps[row - 1]][name], history[step][name])]
            right.set_title(f"grown {counts[0]:,}, dropped {counts[1]:,}")
        for plot in (left, right):
            plot.set(xticks=[], yticks=[])
            plot.grid(False)
            plot.spines[:].set(visible=True, color=FAINT)
    plots[0][1].text(0.5, 0.5, "what grew\nand dropped\nsince the step above", ha="center", va="center",
                     transform=plots[0][1].transAxes)  # fmt: skip
    layer, part = _part(name)
    caption = (
        f"{run.name}: matrix {part} of layer {layer}, {history[steps[0]][name].shape[0]} outputs (down) by "
        f"{history[steps[0]][name].shape[1]} inputs, averaged over cells. Left: density, darkest where densest. "
        "Right: green grew, orange dropped; a cell where both happened mixes the colours. The numbers count weights. "
        "Only what differs between checkpoints is seen; a weight may have gone and come back in between."
    )
    head = ("group", "step", "layer", "matrix", "live", "weights", "grown", "dropped")
    key = key_of(label)
    return Panel(f"masks_{key}", f"Masks over time: {label}", caption, svg(figure, f"m{key}"), head, rows)
