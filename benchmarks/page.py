"""Run the commands of docs/performance.md again and put what they print in place of what they printed before.

    python benchmarks/page.py                    # all of them: about half an hour on two cores, which should be idle
    python benchmarks/page.py --only linear.py   # those whose command has this in it

Each block of that page that begins with `$ python benchmarks/...` is one command. A command that fails leaves its
block as it was, and the page is written after each one, so the work can be stopped at any moment. Programs and clones
that live elsewhere are named by variables: LITGPT_PYTHON, CSX_PYTHON, NANOGPT.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs" / "performance.md"
BLOCK = re.compile(r"```\n\$ python (benchmarks/[^\n`]*)\n(.*?)```", re.S)


def measured(command: str) -> str | None:
    """What `python COMMAND` prints, or None if it fails."""
    words = shlex.split(os.path.expandvars(command))
    if missing := [w for w in words if w.startswith("$")]:
        print(f"skipped: {', '.join(missing)} not set")
        return None
    done = subprocess.run(
        [sys.executable, *words],
        cwd=REPO,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(REPO)},
    )
    return done.stdout if done.returncode == 0 else None


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", metavar="TEXT", default="", help="commands with this in them")
    args = p.parse_args()
    commands = [m[1] for m in BLOCK.finditer(PAGE.read_text(encoding="utf-8")) if args.only in m[1]]
    for i, command in enumerate(commands):
        print(f"[{i + 1}/{len(commands)}] python {command}", flush=True)
        begin = time.monotonic()
        if (output := measured(command)) is None:
            print("its block stays as it was", flush=True)
            continue
        print(f"{time.monotonic() - begin:.0f} s\n{output}", flush=True)
        text = PAGE.read_text(encoding="utf-8")  # anew: it may have been edited meanwhile
        old = next(m for m in BLOCK.finditer(text) if m[1] == command)
        PAGE.write_text(text[: old.start(2)] + output.rstrip() + "\n" + text[old.end(2) :], encoding="utf-8")
    print(f"wrote {PAGE.relative_to(REPO)}; read it: the sentences around the blocks are not measured")


if __name__ == "__main__":
    main()
