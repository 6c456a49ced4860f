"""The Markdown pages as tests read them: headings, links and fenced commands."""

import re
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[2]
TOP = [REPO / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
PAGES = [*TOP, *sorted((REPO / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^( *)(```|~~~)(\w*)\n(.*?)^\1\2", re.M | re.S)  # in a list, too
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


class Command(NamedTuple):
    """A command line of a fenced block."""

    page: Path
    text: str


def without_fences(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def prose(page: Path) -> str:
    """The page without its fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", without_fences(page))


def anchors(page: Path) -> set[str]:
    """What `#...` may name on a page: its headings, as GitHub spells them."""
    found: dict[str, int] = {}
    names = set()
    for line in without_fences(page).splitlines():
        if heading := re.match(r"#+ (.*)", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            names.add(slug if slug not in found else f"{slug}-{found[slug]}")
            found[slug] = found.get(slug, 0) + 1
    return names


def links(page: Path) -> list[str]:
    return [a or b for a, b in _LINK.findall(prose(page))]


def commands(page: Path) -> list[Command]:
    """The `python ...`, `mediswift ...` and `make ...` lines of fenced blocks, prompts and continuations undone."""
    found = []
    for _, _, language, body in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language not in ("", "sh", "bash", "console"):
            continue
        screen = any(line.startswith("$ ") for line in body.splitlines())  # what a program said stands there too
        for line in re.sub(r"\\\n\s*", " ", body).splitlines():
            text = line.strip().removeprefix("$ ")
            if screen and not line.strip().startswith("$ "):
                continue
            text = re.sub(r"^([A-Z_]+=\S+ )+", "", text)  # settings of the environment
            if re.match(r"((\S*/)?python |mediswift|make |srun |torchrun )", text):
                found.append(Command(page, text))
    return found
