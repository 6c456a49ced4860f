"""What fine-tuning made of a checkpoint: its weights once masks were lifted, its dev scores, its soft prompts."""

import os
import sys
from collections.abc import Callable, Sequence

import numpy as np

from modelzoo.config.errors import UserError
from modelzoo.names import SOFT_PROMPT, WORDS_WEIGHT
from modelzoo.reading import exists
from modelzoo.study.figures.draw import Panel, axes, legend, limit_axis, look, svg
from modelzoo.study.runs.names import key_of, label_line
from modelzoo.study.runs.results import Group, Result, interval, masks, tensors
from modelzoo.training.checkpoints import checkpoint
from modelzoo.training.runs.folder import RunFolder

BINS = 80


def find_start(run: Result) -> str | None:
    """The step folder of the checkpoint that `run` started from, if it is still there."""
    path = run.parent
    if path is None or not os.path.isdir(path):
        return None
    if os.path.exists(os.path.join(path, checkpoint.STATE)):
        return path
    folder = RunFolder(path)
    roots = (folder.best, folder.checkpoints, path)
    return next((os.path.join(root, f"step_{steps[-1]}") for root in roots if (steps := checkpoint.steps(root))), None)


def find_end(run: Result) -> str | None:
    """The step folder of its best checkpoint where it kept one, else of its last."""
    best = RunFolder(run.folder).best
    steps = checkpoint.steps(best)
    return os.path.join(best, f"step_{steps[-1]}") if steps else run.last


def draw_histograms(groups: Sequence[Group]) -> list[Panel]:
    """For each group that started from a sparse checkpoint: weights before and after, masked ones apart."""
    made = []
    for group in groups:
        run = group.first
        before, after = find_start(run), find_end(run)
        if run.parent is not None and not exists(run.parent):
            print(
                f"note       {run.name} began from {run.parent}, which is not there: no picture of its weights before",
                file=sys.stderr,
            )
        if before is None or after is None or not (was := masks(before)):
            continue
        old = tensors(before, lambda n, was=was: n in was)
        new = tensors(after, lambda n, was=was: n in was)
        common = [n for n in was if n in new and new[n].shape == old[n].shape]
        pick = lambda part, keep, was=was, common=common: np.concatenate(
            [part[n][was[n] if keep else ~was[n]] for n in common]
        )
        live_before, live_after, freed = pick(old, True), pick(new, True), pick(new, False)
        if not freed.any():  # its masks stayed: nothing was lifted
            continue
        top = float(np.quantile(np.abs(live_before), 0.999)) * 1.2
        edges = np.linspace(-top, top, BINS + 1)
        counts = [np.histogram(x, edges)[0] for x in (live_before, live_after, freed)]
        figure, ((left,), (right,)) = axes(1, 2, height=5.6, sharey=False)
        for plot, parts in (
            (left, ((0, "live, before"), (1, "the same, after"))),
            (right, ((2, "once masked, after"),)),
        ):
            for at, label in parts:
                look_ = look(at)
                plot.stairs(counts[at], edges, color=look_.colour, linestyle=look_.style, label=label, linewidth=1.4)
            plot.set(xlabel="weight", ylabel="weights", yscale="symlog")
            plot.yaxis.set_major_formatter("{x:,.0f}")  # a logarithmic axis writes formulas, which are text here
            plot.legend()
        moved = float(np.mean(freed != 0))
        caption = (
            f"{run.name} began from {before}: {live_before.size:,} live and {freed.size:,} masked weights. After it "
            f"{moved:.1%} of those once masked differ from zero; their standard deviation is {np.std(freed):.2g} to "
            f"{np.std(live_after):.2g} of the others. Counts on a scale that is linear up to 1, then logarithmic."
        )
        key = key_of(group.label)
        rows = list(zip(edges[:-1], edges[1:], *counts, strict=True))
        head = ("from", "to", "live before", "live after", "once masked after")
        title = f"Weights before and after lifting: {group.label}"
        made.append(Panel(f"weights_{key}", title, caption, svg(figure, f"w{key}"), head, rows))
    return made


def draw_recovery(groups: Sequence[Group]) -> Panel | None:
    """Scores of fine-tuning runs on their dev sets, step by step."""
    tuned = [(i, g) for i, g in enumerate(groups) if g.first.dev]
    names = [k for _, g in tuned for k in g.first.dev[0] if k not in ("step", "kind", "loss")]
    if not names:
        return None
    metric = names[0]
    figure, ((plot,),) = axes(height=3.4)
    rows = []
    for i, group in tuned:
        common = set.intersection(*({r["step"] for r in run.dev if metric in r} for run in group.runs))
        mine = []
        for step in sorted(common):
            values = [next(r[metric] for r in run.dev if r["step"] == step and metric in r) for run in group.runs]
            mine.append((group.label, step, metric, *interval(values), len(values)))
        colour, style, marker = look(i)
        x = [r[1] for r in mine]
        plot.fill_between(x, [r[4] for r in mine], [r[5] for r in mine], color=colour, alpha=0.15, linewidth=0)
        plot.plot(
            x, [r[3] for r in mine], style, color=colour, marker=marker, markersize=4, label=label_line(group.label)
        )
        rows += mine
    plot.set(xlabel="fine-tuning step", ylabel=f"dev {metric}")
    cut = limit_axis(plot, "y", [r[3] for r in rows], [x for r in rows for x in r[4:6]])
    legend(figure, plot)
    caption = (
        "Means over a group's runs with 95 % intervals (Student's t), at the steps that all of them share. Best scores "
        "of a curve are flattered by having been picked." + cut
    )
    head = ("group", "step", "metric", "mean", "low", "high", "runs")
    return Panel("recovery", "What fine-tuning regains", caption, svg(figure, "recovery"), head, rows)


def tabulate_nearest_tokens(groups: Sequence[Group], words: int = 6) -> Panel | None:
    """The vocabulary's tokens whose embeddings are nearest (by cosine) to each vector of a soft prompt."""
    import torch

    from modelzoo.models.soft_prompt import find_nearest

    rows = []
    for group in groups:
        path = find_end(group.first)
        found = tensors(path, lambda n: n in (SOFT_PROMPT, WORDS_WEIGHT)) if path else {}
        if path is None or SOFT_PROMPT not in found or WORDS_WEIGHT not in found:
            continue
        names = _vocabulary(group.first, path)
        prompt, table = (torch.from_numpy(found[n].astype(np.float32)) for n in (SOFT_PROMPT, WORDS_WEIGHT))
        for vector, best in enumerate(find_nearest(prompt, table, words)[0]):
            rows.append((group.label, vector, ", ".join(f"{names(token)} {cosine:.2f}" for cosine, token in best)))
    if not rows:
        return None
    caption = "Tokens with their cosine similarity. Soft prompts seldom spell anything: below about 0.3 it says little."
    head, titles = ("group", "vector", "tokens"), ("group", "vector", "nearest tokens, with cosine similarity")
    return Panel("soft_prompts", "Soft prompts: nearest tokens", caption, None, head, rows, True, titles)


def _vocabulary(run: Result, path: str) -> Callable[[int], str]:
    """What a token id of the checkpoint `path` is as text."""
    from modelzoo.data import tokenizer
    from modelzoo.planning import start_checkpoint

    try:
        words = tokenizer.load_tokenizer(start_checkpoint.find_tokenizer_path(run.init, path))
    except (UserError, OSError):  # a picture without words is better than none
        return lambda token: f"#{token}"
    return lambda token: repr(words.decode([token]))
