"""Figures as SVG that reads on white, on black and in grey print: one palette, text in the page's own colour.

Colours are written as CSS variables with a fallback, so a picture follows the page around it and also works alone.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

# Okabe and Ito's palette, which colour-blind readers can tell apart, and the same hues for a dark page.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DARK = ("#4aa8e0", "#ff8a3d", "#2fc79c", "#e39cc4", "#f2b63c", "#8fd0f5")
STYLES, MARKERS = ("-", "--", "-.", ":"), "osD^vP"
WIDTH = 5.6  # inches: on a telephone the letters keep their size
INK, FAINT = "#1a1b1c", "#9a9b9c"  # what matplotlib draws text and grid with, to be found again in its output


UNITS = ((1e18, "10¹⁸"), (1e15, "10¹⁵"), (1e12, "10¹²"), (1e9, "10⁹"), (1e6, "10⁶"), (1e3, "10³"))


def find_unit(highest: float) -> tuple[float, str]:
    """The power of ten by which an axis that ends at `highest` counts, and its name; 1 and nothing below a thousand."""
    return next((u for u in UNITS if highest >= u[0]), (1.0, ""))


class Look(NamedTuple):
    """How one group is drawn, everywhere alike: never by colour alone."""

    colour: str
    style: str
    marker: str


class Panel(NamedTuple):
    """One piece of a report: a figure or a table, and its numbers."""

    name: str  # of its files
    title: str
    caption: str
    svg: str | None
    head: Sequence[str]  # of the CSV
    rows: Sequence[Sequence]
    shown: bool = False  # whether the page holds the rows as a table
    titles: Sequence[str] = ()  # of its columns, in words with units; else `head`


def look(i: int) -> Look:
    n = len(LIGHT)
    return Look(LIGHT[i % n], STYLES[(i + i // n) % len(STYLES)], MARKERS[(i + i // n) % n])


def axes(columns: int = 1, rows: int = 1, width: float = WIDTH, height: float = 3.2, **options):
    """A matplotlib figure and its axes [rows, columns], styled."""
    import matplotlib

    matplotlib.use("Agg")
    for harmless in ("Glyph .* missing from", "constrained_layout not applied"):  # by strange or very long names
        warnings.filterwarnings("ignore", harmless)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports that it fills a cache
    import matplotlib.pyplot as plt

    style: dict[Any, object] = {  # matplotlib types the keys as literals of its own
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.titlesize": 10, "font.size": 9, "grid.color": FAINT, "axes.grid": True, "grid.alpha": 0.35,
        "grid.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "figure.facecolor": "none", "axes.facecolor": "none", "svg.fonttype": "none", "legend.fontsize": 8,
        "text.parse_math": False,  # names are names, with or without $
    }  # fmt: skip
    plt.rcdefaults()
    plt.rcParams.update(style)  # for what is drawn afterwards too: legends and text take their colours when made
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)


def svg(figure, name: str) -> str:
    """The figure as an `<svg>` element; `name` keeps its ids apart from those of other figures on the page."""
    import matplotlib.pyplot as plt

    out = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.{0,10000}?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg ([^>]{0,1000}?)width="[^"]{0,40}" height="[^"]{0,40}"', r"<svg \1", text)
    text = re.sub(r'<svg [^>]{0,1000}?height="[^"]{0,40}"[^>]{0,1000}?width="[^"]{0,40}"', _without_size, text, count=1)
    for i, colour in enumerate(LIGHT):
        text = re.sub(colour, f"var(--c{i}, {colour})", text, flags=re.I)
    text = text.replace(INK, "var(--ink, #1a1b1c)").replace(FAINT, "var(--faint, #9a9b9c)")
    return text


def fix_colours(text: str) -> str:
    """A figure of `svg` in the light page's colours: programs other than browsers (Inkscape, rsvg) know no `var()`."""
    return re.sub(r"var\(--\w+, (#[0-9a-fA-F]{6})\)", r"\1", text)


def _without_size(found: re.Match) -> str:
    return re.sub(r' (width|height)="[^"]*"', "", found[0])


def tint(share: np.ndarray, colour: str) -> np.ndarray:
    """[rows, columns] in 0..1 as RGBA: the more, the less transparent, so that any page shines through."""
    rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.dstack([np.full(share.shape, c) for c in rgb] + [np.clip(share, 0, 1)])


def coarse(mask: np.ndarray, side: int = 48) -> np.ndarray:
    """The density of a mask over a grid of at most `side` x `side` cells."""
    rows, columns = (np.linspace(0, n, min(n, side) + 1).astype(int) for n in mask.shape)
    sums = np.add.reduceat(np.add.reduceat(mask.astype(np.float64), rows[:-1], 0), columns[:-1], 1)
    return sums / np.outer(np.diff(rows), np.diff(columns))


def legend(figure, plot) -> None:
    """The names of `plot`'s lines below the figure, where they hide nothing."""
    handles, labels = plot.get_legend_handles_labels()
    fit = int(figure.get_figwidth() * 11 // (max(map(len, labels), default=1) + 6))  # 11 letters an inch
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(len(labels), fit, 6)))


def limit_axis(plot, axis: str, points: Iterable[float], ends: Iterable[float], log: bool = False) -> str:
    """Let `points` fill an axis, and cut intervals that go far beyond them: those of two seeds may be 12 times as wide.

    Args:
        axis: "x" or "y".
        ends: of the intervals.
        log: whether the axis is logarithmic.

    Returns:
        A sentence for the caption where an interval is cut; else nothing.
    """
    finite = [x for x in points if np.isfinite(x) and (x > 0 or not log)]
    if not finite:
        return ""
    scale, back = (np.log, np.exp) if log else (float, float)
    low, high = scale(min(finite)), scale(max(finite))
    margin = 0.4 * (high - low) or 0.05 * (1.0 if log else abs(high) or 1.0)
    found = [x for x in ends if np.isfinite(x)]
    inner = [scale(x) for x in found if x > 0 or not log]
    bottom = max(low - margin, min([low - margin / 5, *(x - margin / 5 for x in inner)]))
    top = min(high + margin, max([high + margin / 5, *(x + margin / 5 for x in inner)]))
    first, last = float(back(bottom)), float(back(top))
    (plot.set_xlim if axis == "x" else plot.set_ylim)(first, last)
    cut = any(x < first or x > last for x in found)
    return " Intervals wider than the axis are cut at its ends; the numbers have them whole." if cut else ""


def log_loss(plot) -> None:
    """A logarithmic loss axis with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    plot.set_yscale("log")
    low, high = plot.get_ylim()
    subs = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8) if high / low < 4 else (1, 2, 3, 5)
    plot.yaxis.set_major_locator(MaxNLocator(5) if high / low < 1.5 else LogLocator(10, subs=subs))
    plot.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    plot.yaxis.set_minor_formatter(NullFormatter())
