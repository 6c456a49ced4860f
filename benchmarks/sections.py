"""docs/performance.md as text: a section for each class of processor, and a table that compares them. Runs nothing.

A part of the page begins at a line `## HEADING` outside fences. A class's part is written whole from its blocks, its
words too; all other parts but the table stay byte for byte.
"""

import re
import textwrap
from dataclasses import dataclass, field
from typing import NamedTuple

from blocks import BLOCKS
from figures import compare, summarize
from forced import VALUES, switches_of

from modelzoo.kernels.processor import TITLES

COMPARED = "Classes compared"
_LABEL = r"^\*\*`(?P<name>[\w-]+)`\*\* \((?P<date>\d{4}-\d\d-\d\d)\)\. (?P<text>(?:(?!^```|^\*\*`).)*?)\n\n"
_FENCE = r"```\n\$ python (?P<command>[^\n]*)\n(?P<output>.*?)^```$"
_BLOCK = re.compile(_LABEL + _FENCE, re.M | re.S)


class Key(NamedTuple):
    """What a section is of: a class, and whether a stronger processor acted as it."""

    name: str
    forced: bool = False

    @property
    def heading(self) -> str:
        return TITLES[self.name] + (", forced" if self.forced else "")


KEYS = [Key(name, forced) for name in TITLES for forced in (False, True)]  # as the page orders them: weakest first


@dataclass(frozen=True)
class Measured:
    """A block as the page holds it."""

    name: str
    date: str
    command: str
    output: str
    text: str = field(default="", compare=False)  # where the catalogue has no such block any more


def split(page: str) -> list[str]:
    """The page's parts, which joined are the page: what comes before the first heading, and one for each heading."""
    parts, fenced = [""], False
    for line in page.splitlines(keepends=True):
        if line.startswith("```"):
            fenced = not fenced
        if line.startswith("## ") and not fenced:
            parts.append("")
        parts[-1] += line
    return parts


def _heading(part: str) -> str | None:
    return part.partition("\n")[0].removeprefix("## ").strip() if part.startswith("## ") else None


def _key(part: str) -> Key | None:
    return next((key for key in KEYS if key.heading == _heading(part)), None)


def sections(page: str) -> dict[Key, dict[str, Measured]]:
    """The blocks of every class's section, by name."""
    return {key: parse(part) for part in split(page) if (key := _key(part))}


def parse(part: str) -> dict[str, Measured]:
    """The blocks of one section, by name."""
    found = [Measured(**m.groupdict()) for m in _BLOCK.finditer(part)]
    return {b.name: b for b in found}


def render(key: Key, blocks: dict[str, Measured]) -> str:
    """A class's section, its machine and its words from what the blocks printed."""
    texts = {b.name: b.text for b in BLOCKS}
    order = [*texts, *blocks]  # one that the catalogue no longer has comes last
    ordered = sorted(blocks.values(), key=lambda b: order.index(b.name))
    lead = f"Class `{key.name}`{', forced' if key.forced else ''}: {'; '.join(_machines(ordered))}."
    if key.forced:
        lead += (
            " The processor is of a stronger class, which each block's first line names; our kernels and torch's "
            f"products were held to this one by `{' '.join(f'{k}={v}' for k, v in switches_of(key.name).items())}`; "
            "its clock, caches and memory are its own."
            if key.name in VALUES
            else ""
        )
    words = [_wrap(f"* {line}", "  ") for line in summarize([b.output for b in ordered])]
    shown = [
        f"{_wrap(f'**`{b.name}`** ({b.date}). {texts.get(b.name, b.text)}')}\n\n"
        f"```\n$ python {b.command}\n{_fenced(b.output)}```"
        for b in ordered
    ]
    return "\n\n".join([f"## {key.heading}", _wrap(lead), *(["\n".join(words)] if words else []), *shown]) + "\n"


def _wrap(text: str, indent: str = "") -> str:
    """Lines of up to 120 characters; code in the line and numbers of per cent stay whole."""
    whole = re.sub(r"`[^`]*`|\d %", lambda m: m[0].replace(" ", "\0"), " ".join(text.split()))
    lines = textwrap.fill(whole, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def _fenced(output: str) -> str:
    """The output with nothing in it that would end its fence."""
    return re.sub(r"^```", " ```", output.rstrip(), flags=re.M) + "\n"


def _machines(blocks: list[Measured]) -> list[str]:
    """The machines of the blocks' first lines, with the dates, each machine once."""
    dates: dict[str, list[str]] = {}
    for b in blocks:
        machine = re.sub(r", load [\d.]+$", "", b.output.partition("\n")[0].rstrip())
        dates.setdefault(machine, []).append(b.date)
    spans = {m: (min(d), max(d)) for m, d in dates.items()}
    return [f"{m}; measured {a}" + ("" if a == z else f" to {z}") for m, (a, z) in spans.items()]


def write_section(page: str, key: Key, blocks: dict[str, Measured]) -> str:
    """The page with this class's section written anew in its place, and the table after it."""
    parts = split(page)
    text = render(key, blocks)
    at = next((i for i, part in enumerate(parts) if _key(part) == key), None)
    if at is not None:
        parts[at] = text + ("\n" if at + 1 < len(parts) else "")
    else:
        stronger = [i for i, p in enumerate(parts) if (k := _key(p)) and KEYS.index(k) > KEYS.index(key)]
        weaker = [i for i, p in enumerate(parts) if (k := _key(p)) and KEYS.index(k) < KEYS.index(key)]
        at = stronger[0] if stronger else weaker[-1] + 1 if weaker else len(parts)
        parts = [*_ended(parts[:at]), text + ("\n" if at < len(parts) else ""), *parts[at:]]
    return write_table("".join(parts))


def write_table(page: str) -> str:
    """The page with the table that compares its sections, which comes before them."""
    parts, found = split(page), sections(page)
    rows = {key.heading: [b.output for b in blocks.values()] for key, blocks in found.items()}
    absent = [TITLES[name] for name in TITLES if name != "plain" and not {Key(name), Key(name, True)} & set(found)]
    body = compare(rows) + (f"\n\nNo figures yet from: {', '.join(absent)}." if absent else "")
    text = f"## {COMPARED}\n\n{body}\n"
    at = next((i for i, part in enumerate(parts) if _heading(part) == COMPARED), None)
    if at is not None:
        parts[at] = text + ("\n" if at + 1 < len(parts) else "")
        return "".join(parts)
    at = next((i for i, part in enumerate(parts) if _key(part)), len(parts))
    return "".join([*_ended(parts[:at]), text + ("\n" if at < len(parts) else ""), *parts[at:]])


def _ended(parts: list[str]) -> list[str]:
    """The parts with an empty line at their end. The last one is what is changed, if any: others stay as they are."""
    last = parts[-1]
    missing = "" if last.endswith("\n\n") or not last else "\n" if last.endswith("\n") else "\n\n"
    return [*parts[:-1], last + missing]
