"""The drawing in docs/how_it_works.md, from the code: who imports whom among the rooms of a training step.

python scripts/drawing.py            # writes it
python scripts/drawing.py --check    # reports whether it is up to date, and changes nothing
"""

import argparse
import ast
import sys
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs" / "how_it_works.md"
BEGIN, END = "<!-- drawing: begin -->\n", "<!-- drawing: end -->\n"
ROOMS = ("cli", "tasks", "training", "backends", "models", "data", "optim", "sparsity", "kernels", "config")


@cache
def find_imports(room: str) -> set[str]:
    """The rooms of ROOMS that a room's files import."""
    top = REPO / "modelzoo"
    files = [top / f"{room}.py"] if (top / f"{room}.py").exists() else sorted((top / room).rglob("*.py"))
    named = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("modelzoo"):
                parts = (node.module or "").split(".")
                named |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return named & set(ROOMS) - {room}


def find_ways(room: str) -> set[str]:
    """What a room imports, less what it reaches through another room: the drawing stays one that can be read."""
    direct = find_imports(room)

    def reach(start: str) -> set[str]:
        return {start} | {r for below in find_imports(start) for r in reach(below)}

    return {r for r in direct if not any(r in reach(other) for other in direct - {r})}


def draw() -> str:
    """A Mermaid diagram, which Markdown readers show as a picture."""
    lines = [f"    {room} --> {below}" for room in ROOMS for below in sorted(find_ways(room), key=ROOMS.index)]
    return "```mermaid\nflowchart TD\n" + "\n".join(lines) + "\n```\n"


def place(page: str) -> str:
    """The page with the drawing of today."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + draw() + END + rest.split(END)[1]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", action="store_true", help="change nothing; exit 1 where it is not up to date")
    args = p.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    if args.check:
        return int(place(page) != page)
    PAGE.write_text(place(page), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(REPO)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
