"""Runs side by side: their scores in a table, their curves and their sparsity per layer in a picture. No torch."""

import json
import logging
import os
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from modelzoo.config.errors import UserError
from modelzoo.config.load import load
from modelzoo.config.trainer import Config
from modelzoo.files import replacing, write_text
from modelzoo.names import is_mask, layer_of, name_weight
from modelzoo.planning import plan
from modelzoo.progress import amount
from modelzoo.study import differences
from modelzoo.training import checkpoint, logs
from modelzoo.training.run_folder import RunFolder

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")


class Result(NamedTuple):
    """A run as its folder shows it."""

    name: str
    folder: str
    train: list[dict]
    validation: list[dict]
    speed: float | None  # median tokens per second
    config: Config
    plan: plan.Plan
    layers: int
    masks: dict[str, tuple[int, int]]  # parameter: (live, all)


def read(folder: str) -> Result:
    """A run's logs, config and newest masks.

    Raises:
        UserError: the folder is not a run.
    """
    config = load(RunFolder(folder).config, Config)
    files = RunFolder.of(config.trainer.init, folder)
    records, timing = logs.read(files.metrics), logs.read(files.timing)
    speeds = [r["tokens_per_second"] for r in timing if "tokens_per_second" in r]
    path, _ = checkpoint.newest(files.checkpoints)
    return Result(
        os.path.basename(os.path.normpath(folder)),
        folder,
        [r for r in records if r["kind"] == "train"],
        [r for r in records if r["kind"] == "validation"],
        float(np.median(speeds)) if speeds else None,
        config,
        plan.make(config),
        config.trainer.init.model.num_hidden_layers,
        _masks(os.path.join(path, "model.safetensors")) if path else {},
    )


def _masks(path: str) -> dict[str, tuple[int, int]]:
    counts = {}
    with safetensors.safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 safe_open is no mapping
            if is_mask(name):
                mask = file.get_tensor(name)
                counts[name_weight(name)] = (int(mask.sum()), mask.size)
    return counts


def table(results: list[Result]) -> str:
    """Names, live weights, FLOPs and scores, a run a line; the first run is what the others are measured against."""
    head = ["run", "live weights", "FLOPs/token", "steps", "tokens", "validation loss", "perplexity", "tokens/s"]
    rows = [head]
    for r in results:
        last = r.validation[-1] if r.validation else {}
        done = r.train[-1] if r.train else {}
        rows.append([
            r.name, f"{r.plan.live:,}", f"{amount(r.plan.mean)} ({results[0].plan.mean / r.plan.mean:.2f}x fewer)",
            str(done.get("step", "-")), f"{done.get('tokens', 0):,}", f"{last['loss']:.4f}" if last else "-",
            f"{last['perplexity']:.2f}" if last else "-", amount(r.speed) if r.speed else "-",
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def picture(results: list[Result], path: str) -> None:
    """Loss over tokens and over training FLOPs, and sparsity per layer: an SVG or PNG by `path`'s ending."""
    import matplotlib

    matplotlib.use("Agg")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports that it fills a cache
    import matplotlib.pyplot as plt

    figure, (by_tokens, by_flops, gaps, layers) = plt.subplots(1, 4, figsize=(19, 4.4), constrained_layout=True)
    for i, r in enumerate(results):
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i % len(STYLES)]
        tokens = np.array([t["tokens"] for t in r.train])
        losses = np.array([t["loss"] for t in r.train])
        at = {t["step"]: t["tokens"] for t in r.train}
        spent = {t["step"]: t.get("flops", t["tokens"] * r.plan.mean) for t in r.train}  # older logs hold no FLOPs
        flops = np.array([spent[t["step"]] for t in r.train])
        scored = [(at[v["step"]], spent[v["step"]], v["loss"]) for v in r.validation if v["step"] in at]
        for axes, all_x, column, scale in ((by_tokens, tokens, 0, 1e-6), (by_flops, flops, 1, 1e-12)):
            name = None if scored else r.name
            axes.plot(all_x * scale, losses, color=colour, alpha=0.3, linewidth=1, label=name)
            if scored:
                points = np.array(scored)
                x, y = points[:, column], points[:, 2]
                axes.plot(x * scale, y, style, color=colour, marker="o", markersize=4, label=r.name)
        if gap := differences.losses(results[0].validation, r.validation):
            gaps.plot(*np.array(gap).T, style, color=colour, marker="o", markersize=4, label=r.name)
        shares = _by_layer(r.masks) if r.plan.sparse_total else dict.fromkeys(range(r.layers), 0.0)
        layers.plot(list(shares), list(shares.values()), style, color=colour, marker="o", markersize=4, label=r.name)
    by_tokens.set(xlabel="tokens (millions)", ylabel="loss (nats per token)", title="Loss by tokens")
    by_flops.set(xlabel="training FLOPs, counted (10¹²)", ylabel="loss (nats per token)", title="Loss by FLOPs")
    gaps.set(xlabel="step", ylabel="nats per token", title=f"Validation loss less {results[0].name}'s")
    layers.set(xlabel="layer", ylabel="share of weights off", title="Sparsity per layer", ylim=(-0.03, 1.0))
    layers.xaxis.get_major_locator().set_params(integer=True)
    for axes in (by_tokens, by_flops):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "235" else "")
    for axes in (by_tokens, by_flops, gaps, layers):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    by_tokens.text(0.02, 0.02, "thin: training, dots: validation", transform=by_tokens.transAxes, fontsize=8, alpha=0.7)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format=os.path.splitext(path)[1][1:] or "png")
    plt.close(figure)


def _by_layer(masks: dict[str, tuple[int, int]]) -> dict[int, float]:
    """Share of weights off in each decoder layer."""
    live: dict[int, int] = {}
    total: dict[int, int] = {}
    for name, (on, size) in masks.items():
        if (layer := layer_of(name)) is None:
            continue
        live[layer], total[layer] = live.get(layer, 0) + on, total.get(layer, 0) + size
    return {layer: 1 - live[layer] / total[layer] for layer in sorted(total)}


def compare(folders: list[str], path: str) -> None:
    """Print the table and write the picture."""
    if not folders:
        raise UserError("compare: name at least one run folder")
    results = [read(folder) for folder in folders]
    print(table(results))
    if len(results) > 1:
        print(f"\n{differences.text([r.name for r in results], [r.config for r in results])}")
    for r in results[1:]:
        gap = differences.losses(results[0].validation, r.validation)
        shown = gap if len(gap) <= 8 else [gap[round(i * (len(gap) - 1) / 7)] for i in range(8)]
        said = ", ".join(f"{d:+.4f} at {step}" for step, d in shown) or "no step at which both were validated"
        print(f"\n{r.name}: validation loss less {results[0].name}'s: {said}")
    picture(results, path)
    numbers = os.path.splitext(path)[0] + ".json"
    write_text(numbers, json.dumps([_numbers(r) for r in results], indent=1) + "\n")
    print(f"\npicture    {path}\nnumbers    {numbers}")


def _numbers(r: Result) -> dict:
    return {
        "run": r.name, "folder": r.folder, "live": r.plan.live, "flops_per_token": r.plan.mean,
        "tokens_per_second": r.speed, "validation": r.validation, "layers": _by_layer(r.masks),
    }  # fmt: skip
