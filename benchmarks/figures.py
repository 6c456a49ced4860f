"""What the blocks of docs/performance.md printed, as numbers: the table of classes, and a section's words."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

DTYPES = ("float32", "bfloat16")
NONE = "not measured"
LEGEND = """
Whole steps (against Hugging Face at width 384, against our best dense step else), and linear layers of 1024 tokens in
blocks of 32x32. Masks: the share of a dense step at width 384 that keeping them adds to finding the gradients' norm;
blocks that say `keeping masks ... ms a step` timed a pass of its own, which is gone, and do not count here.
"""
_STEP = re.compile(r"^\d+ layers x (\d+), .*, (float32|bfloat16)$", re.M)
_ROW = re.compile(r"^(\S.*?) {2,}([\d.]+) +(\d+) {2,}(?:(\d+)%  )?([\d.]+)x  \[", re.M)
_LINEAR = re.compile(r" together, (\d+) tokens, (float32|bfloat16): speed against dense$", re.M)
_PART = re.compile(r"^(\d+)% off  (\w+) +(\[\d+, \d+\]) +([\d.]+)x  \[", re.M)
_PEER = re.compile(r"^ours, dense: ([\d.]+)x (HF .*)'s speed$", re.M)
_MASKS = re.compile(r"^(static|RigL): keeping masks adds (-?[\d.]+) ms to a step, (-?[\d.]+)% of a dense step", re.M)
_FIRST = re.compile(r"^first step of \S+ +([\d.]+)  \[", re.M)
_TORCH = re.compile(r"^python -c 'import torch' +([\d.]+)  \[", re.M)
_WAITING = re.compile(r"^waiting for data in \S+: ([\d.]+)% of (\d+) steps$", re.M)


class Figures(NamedTuple):
    """A section's numbers; where two blocks measured the same, the first one's."""

    steps: dict[tuple[str, int, str], float]  # (dtype, width, contestant) -> speed against dense
    shares: dict[tuple[str, int], float]  # (dtype, width) -> per cent of a plain product's rate, our dense step
    linear: dict[tuple[str, int, int, str, str], float]  # (dtype, tokens, per cent off, product, block) -> speed
    peers: dict[tuple[str, int, str], float]  # (dtype, width, peer) -> our dense step's speed against the peer's
    masks: dict[tuple[str, int, str], float]  # (dtype, width, algorithm) -> per cent of a dense step
    first: list[float]  # seconds from the command to the first step, by config
    torch: float | None  # of them torch's import
    waiting: list[tuple[float, int]]  # per cent of so many steps


def read(outputs: Sequence[str]) -> Figures:
    """The numbers in what a section's blocks printed."""
    f = Figures({}, {}, {}, {}, {}, [], None, [])
    for output in outputs:
        output = output.replace("single weights", "unstructured")  # the name in older blocks
        if step := _STEP.search(output):
            width, dtype = int(step[1]), step[2]
            for name, _, _, share, ratio in _ROW.findall(output):
                if "speed against dense" in output:
                    f.steps.setdefault((dtype, width, name), float(ratio))
                if name in ("dense", "ours, dense") and share:
                    f.shares.setdefault((dtype, width), float(share))
            for ratio, peer in _PEER.findall(output):
                f.peers.setdefault((dtype, width, peer), float(ratio))
            for algorithm, _, share in _MASKS.findall(output):
                f.masks.setdefault((dtype, width, algorithm), float(share))
        if linear := _LINEAR.search(output):
            for off, product, block, ratio in _PART.findall(output):
                key = (linear[2], int(linear[1]), int(off), product, block)
                f.linear.setdefault(key, float(ratio))
        f.first.extend(float(x) for x in _FIRST.findall(output))
        f.waiting.extend((float(a), int(b)) for a, b in _WAITING.findall(output))
        if found := _TORCH.search(output):
            f = f._replace(torch=float(found[1]))
    return f


def compare(classes: Mapping[str, Sequence[str]]) -> str:
    """The key ratios, a line for each class (heading -> its blocks' outputs) and arithmetic.

    A class without a figure in bfloat16 has no line for it: it may not multiply bfloat16.
    """
    head = [
        "class", "arithmetic", "dense step / HF's loop", "/ HF's Trainer", "75 % 32x32, width 768", "width 1536",
        "75 % unstructured", "linears 75 %: forward", "backward", "masks, static", "masks, RigL",
    ]  # fmt: skip
    lines = [_cells(head), "|" + "---|" * len(head)]
    for heading, outputs in classes.items():
        f = read(outputs)
        for dtype in DTYPES:
            found = [
                f.peers.get((dtype, 384, "HF raw loop")),
                f.peers.get((dtype, 384, "HF Trainer")),
                f.steps.get((dtype, 768, "75% 32x32")),
                f.steps.get((dtype, 1536, "75% 32x32")),
                f.steps.get((dtype, 768, "75% unstructured")),
                f.linear.get((dtype, 1024, 75, "forward", "[32, 32]")),
                f.linear.get((dtype, 1024, 75, "backward", "[32, 32]")),
            ]
            costs = [f.masks.get((dtype, 384, name)) for name in ("static", "RigL")]
            if dtype == "bfloat16" and {*found, *costs} == {None}:
                continue
            cells = [NONE if x is None else f"{x:.2f}x" for x in found]
            cells += [NONE if x is None else f"{x:.2f} %" for x in costs]
            lines.append(_cells([heading, dtype, *cells]))
    return "\n".join(lines) + "\n" + LEGEND.rstrip()


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def summarize(outputs: Sequence[str]) -> list[str]:
    """A section in short, a sentence or two for each thing that its blocks measured."""
    f = read(outputs)
    lines = [
        _levels(f, "Blocks of 32x32, a whole step against our best dense one", "32x32"),
        _levels(f, "Unstructured, the paper's pattern", "unstructured"),
        _linears(f),
        _dense(f),
        _compiled(f),
        _updates(f),
        _mask_keeping(f),
        _start(f),
    ]
    return [line for line in lines if line]


def _settings(f: Figures) -> list[tuple[str, int]]:
    """(dtype, width) of the section's steps, float32 and narrow first."""
    return sorted({key[:2] for key in [*f.steps, *f.peers, *f.masks]}, key=lambda s: (DTYPES.index(s[0]), s[1]))


def _levels(f: Figures, label: str, pattern: str) -> str:
    """The whole step's speed in a pattern, by level."""
    parts = []
    for dtype, width in _settings(f):
        at = [(x, f.steps.get((dtype, width, f"{x}% {pattern}"))) for x in (50, 75, 90)]
        if text := ", ".join(f"{ratio:.2f}x at {x} % off" for x, ratio in at if ratio is not None):
            parts.append(f"{text} ({dtype}, width {width})")
    return f"**{label}:** {'; '.join(parts)}." if parts else ""


def _linears(f: Figures) -> str:
    parts = []
    for dtype in DTYPES:
        for block, name in (("[32, 32]", "32x32"), ("[1, 1]", "unstructured")):
            pair = [f.linear.get((dtype, 1024, 75, product, block)) for product in ("forward", "backward")]
            if None not in pair:
                parts.append(f"{name} {pair[0]:.2f}x and {pair[1]:.2f}x ({dtype})")
    return f"**Linear layers alone, 75 % off, forward and backward:** {'; '.join(parts)}." if parts else ""


def _dense(f: Figures) -> str:
    parts = []
    for dtype, width in _settings(f):
        against = [f"{f.peers[k]:.2f}x {k[2]}'s speed" for k in f.peers if k[:2] == (dtype, width)]
        if (share := f.shares.get((dtype, width))) is not None:
            against.insert(0, f"{share:.0f} % of a plain product's rate")
        if against:
            parts.append(f"{', '.join(against)} ({dtype}, width {width})")
    return f"**Our dense step:** {'; '.join(parts)}." if parts else ""


def _pairs(f: Figures, first: str, second: str) -> list[tuple[float, float, str]]:
    """The ratios of two contestants of the whole step, and where: each setting that has both."""
    found = []
    for at in _settings(f):
        a, b = f.steps.get((*at, first)), f.steps.get((*at, second))
        if a is not None and b is not None:
            found.append((a, b, "({}, width {})".format(*at)))
    return found


def _compiled(f: Figures) -> str:
    pairs = _pairs(f, "dense, torch.compile", "dense")
    parts = [f"{compiled / eager:.2f}x {where}" for compiled, eager, where in pairs]
    return f"**torch.compile, our dense step against eager:** {'; '.join(parts)}." if parts else ""


def _updates(f: Figures) -> str:
    pairs = _pairs(f, "75 % 32x32 RigL, between updates", "75 % 32x32 RigL, update steps")
    parts = [f"{between:.2f}x between updates, {at:.2f}x in update steps {where}" for between, at, where in pairs]
    return f"**RigL on blocks of 32x32, 75 % off:** {'; '.join(parts)}." if parts else ""


def _mask_keeping(f: Figures) -> str:
    parts = [f"{share:.2f} % {name} ({dtype}, width {width})" for (dtype, width, name), share in f.masks.items()]
    return f"**Keeping masks, of a dense step:** {'; '.join(parts)}." if parts else ""


def _start(f: Figures) -> str:
    if not f.first:
        return ""
    text = f"**A first step** takes {min(f.first):.1f} to {max(f.first):.1f} s from the command"
    text += f", {f.torch:.1f} s of it torch's own import" if f.torch is not None else ""
    if f.waiting:
        text += f"; waiting for data takes up to {max(f.waiting)[0]:.1f} % of {max(f.waiting)[1]} steps"
    return f"{text}."
