"""Runs side by side: their scores in a table, their curves and their sparsity per layer in a picture. No torch."""

import json
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from modelzoo.config.errors import UserError
from modelzoo.evaluation.scores.results import leave_out_undefined
from modelzoo.files import replacing, write_text
from modelzoo.names import layer_of
from modelzoo.planning import plan
from modelzoo.progress import format_amount
from modelzoo.redact import redact_text
from modelzoo.study.figures.cost import measure_speed
from modelzoo.study.figures.draw import axes, find_unit, log_loss, look
from modelzoo.study.reports import differences
from modelzoo.study.runs import results
from modelzoo.study.runs.names import label_line
from modelzoo.study.runs.results import Result

FORMATS = ("svg", "png", "pdf")


class Compared(NamedTuple):
    """A run with what its config means and how sparse it has become."""

    run: Result
    plan: plan.Plan
    live: int  # weights that are on: by the newest checkpoint's masks, without one by the first ones
    sparsity: dict[int, float]  # share of weights off by decoder layer

    @property
    def name(self) -> str:
        return self.run.name


def read_compared(folder: str) -> Compared:
    """The run in `folder`, with the masks of its newest checkpoint.

    Raises:
        UserError: the folder is not a run.
    """
    run = results.read_run(folder)
    made = plan.make_plan(run.config)
    dense = dict.fromkeys(range(run.init.model.num_hidden_layers), 0.0)
    masks = results.masks(run.last) if made.sparse_total and run.last is not None else {}
    live = made.total - sum(int((~m).sum()) for m in masks.values()) if masks else made.live
    return Compared(run, made, live, _share_off(masks) if made.sparse_total else dense)


def _share_off(masks: dict[str, np.ndarray]) -> dict[int, float]:
    """Share of weights off in each decoder layer."""
    by_layer: dict[int, list[np.ndarray]] = {}
    for name, mask in masks.items():
        if (layer := layer_of(name)) is not None:
            by_layer.setdefault(layer, []).append(mask)
    return {
        layer: 1 - sum(int(m.sum()) for m in found) / sum(m.size for m in found)
        for layer, found in sorted(by_layer.items())
    }


def format_table(compared: Sequence[Compared]) -> str:
    """Names, live weights, FLOPs and scores, a run a line; ratios and gaps are to the first run."""
    head = ["run", "live weights", "FLOPs/token", "steps", "tokens", "validation loss", "perplexity", "tokens/s"]
    tuned = any(c.run.dev for c in compared)
    rows, first = [[*head, "best on dev"] if tuned else head], compared[0].plan.mean
    for c in compared:
        scored = c.run.validation[-1] if c.run.validation else {}
        done, rate = c.run.train[-1] if c.run.train else {}, measure_speed(c.run)
        rows.append([
            c.name, f"{c.live:,}", f"{format_amount(c.plan.mean)} ({_describe_ratio(first / c.plan.mean)})",
            str(done.get("step", "-")), f"{done.get('tokens', 0):,}", _describe_loss(scored, done),
            f"{scored['perplexity']:.2f}" if "perplexity" in scored else "-", format_amount(rate) if rate else "-",
            *([_describe_best(c.run)] if tuned else []),
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _describe_ratio(fewer: float) -> str:
    return f"{fewer:.2f}x fewer" if fewer >= 1 else f"{1 / fewer:.2f}x more"


def _describe_loss(scored: dict, done: dict) -> str:
    """A run's last validation loss, with its step where training has gone on since."""
    if not scored:
        return "-"
    at = f" at step {scored['step']}" if scored["step"] != done.get("step", scored["step"]) else ""
    return f"{scored['loss']:.4f}{at}"


def _describe_best(run: Result) -> str:
    """The highest score of a fine-tuning run on its dev set, by the first metric of its log."""
    metric = next((k for r in run.dev for k in r if k not in ("step", "kind")), None)
    found = [r for r in run.dev if metric in r and not math.isnan(r[metric])]
    if not found:
        return "-"
    best = max(found, key=lambda r: r[metric])
    return f"{metric} {best[metric]:.4f} at step {best['step']}"


def draw_picture(compared: Sequence[Compared], path: str) -> None:
    """Draw loss over tokens and over training FLOPs, its gap to the first run's, and sparsity per layer.

    Args:
        path: an SVG or PNG by its ending.
    """
    figure, ((by_tokens, by_flops), (gaps, layers)) = axes(2, 2, width=10.5, height=8.4)
    figure.set_facecolor("white")
    tokens, many = find_unit(max((r["tokens"] for c in compared for r in c.run.train), default=1))
    flops, unit = find_unit(max((_spent(c, r, "flops") for c in compared for r in c.run.train), default=1))
    for i, c in enumerate(compared):
        _draw_losses(by_tokens, c, i, "tokens", 1 / tokens)
        _draw_losses(by_flops, c, i, "flops", 1 / flops)
        colour, style, _ = look(i)
        line = {"color": colour, "linestyle": style, "marker": "o", "markersize": 4, "label": label_line(c.name)}
        if gap := differences.list_gaps(compared[0].run.validation, c.run.validation):
            gaps.plot(*np.array(gap).T, **line)
        layers.plot(list(c.sparsity), list(c.sparsity.values()), **line)
    by_tokens.set(
        xlabel=f"tokens ({many})" if many else "tokens", ylabel="loss (nats per token)", title="Loss by tokens"
    )
    by_flops.set(
        xlabel=f"training FLOPs, counted{f' ({unit})' if unit else ''}",
        ylabel="loss (nats per token)",
        title="Loss by FLOPs",
    )
    gaps.set(xlabel="step", ylabel="nats per token", title=f"Validation loss less {compared[0].name}'s")
    layers.set(xlabel="layer", ylabel="share of weights off", title="Sparsity per layer", ylim=(-0.03, 1.0))
    layers.xaxis.get_major_locator().set_params(integer=True)
    for plot in (by_tokens, by_flops, gaps, layers):
        if plot.get_legend_handles_labels()[0]:
            plot.legend()
    for plot in (by_tokens, by_flops):
        log_loss(plot)
    text = "thin: training, dots: validation"
    if others := [c.name for c in compared if not _is_per_token(c)]:
        text = f"no training loss of {', '.join(others)}: it is a sum over tokens (loss_scaling)\n{text}"
    by_tokens.text(0.02, 0.02, text, transform=by_tokens.transAxes, fontsize=8, alpha=0.7)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=find_format(path))


def find_format(path: str) -> str:
    """The format of a picture by the ending of its name.

    Raises:
        UserError: it is none of the known ones.
    """
    ending = os.path.splitext(path)[1][1:].lower() or "png"
    if ending not in FORMATS:
        raise UserError(f"-o {path}: pictures end in .{', .'.join(FORMATS)}")
    return ending


def _spent(c: Compared, record: dict, key: str) -> float:
    """What a run had spent of `key` by a record of its log; older logs hold no FLOPs."""
    return record.get(key, record["tokens"] * (c.plan.mean if key == "flops" else 1.0))


def _is_per_token(c: Compared) -> bool:
    """Whether a run's training loss is a mean over tokens, as validation's is."""
    return c.run.init.model.loss_scaling == "num_tokens"


def _draw_losses(plot, c: Compared, number: int, key: str, scale: float) -> None:
    """One run's training loss, thin, and its validation losses, over what it had spent of `key` by then."""
    colour, style, _ = look(number)
    spent = {r["step"]: scale * _spent(c, r, key) for r in c.run.train}
    at = [(c.run.at(r["step"]), r["loss"]) for r in c.run.validation]
    scored = [(scale * _spent(c, record, key), loss) for record, loss in at if "tokens" in record]
    name = None if scored else label_line(c.name)
    if _is_per_token(c):  # else it has no place here
        plot.plot(spent.values(), [r["loss"] for r in c.run.train], color=colour, alpha=0.3, linewidth=1, label=name)
    if scored:
        plot.plot(*np.array(scored).T, style, color=colour, marker="o", markersize=4, label=label_line(c.name))


def compare_runs(folders: Sequence[str], path: str) -> None:
    """Print the table and write the picture, with its numbers as JSON next to it.

    Raises:
        UserError: no folder, one that is no run, a picture of another format, or a disk that is full.
    """
    if not folders:
        raise UserError("compare: name at least one run folder")
    find_format(path)
    compared = [read_compared(folder) for folder in folders]
    if not any(c.run.train or c.run.validation for c in compared):
        raise UserError(f"compare: no step is in the log of {', '.join(folders)}, so there is nothing to compare")
    print(format_table(compared))
    if len(compared) > 1:
        print(f"\n{differences.format_differences([c.name for c in compared], [c.run.config for c in compared])}")
    for c in compared[1:]:
        gap = differences.list_gaps(compared[0].run.validation, c.run.validation)
        shown = gap if len(gap) <= 8 else [gap[round(i * (len(gap) - 1) / 7)] for i in range(8)]
        losses = ", ".join(f"{d:+.4f} at {step}" for step, d in shown) or "no step at which both were validated"
        print(f"\n{c.name}: validation loss less {compared[0].name}'s: {losses}")
        if gap and (other := differences.explain_validation(compared[0].run.config, c.run.config)):
            print(
                f"note       of another {other} than {compared[0].name}'s: these losses may not be of the same tokens"
            )
    numbers = os.path.splitext(path)[0] + ".json"
    try:
        draw_picture(compared, path)
        write_text(numbers, json.dumps(leave_out_undefined([_numbers(c) for c in compared]), indent=1) + "\n")
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); give another -o") from None
    print(f"\npicture    {path}\nnumbers    {numbers}")


def _numbers(c: Compared) -> dict:
    return {
        "run": c.name, "folder": redact_text(c.run.folder), "live": c.live, "flops_per_token": c.plan.mean,
        "tokens_per_second": measure_speed(c.run), "validation": c.run.validation, "dev": c.run.dev,
        "layers": c.sparsity,
    }  # fmt: skip
