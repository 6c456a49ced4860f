"""Measure this machine's class of processor and write its section of docs/performance.md.

    python benchmarks/page.py                           # all blocks: an hour or so on two cores, which should be idle
    python benchmarks/page.py --only step-bf16 startup  # these; the class's other blocks stay
    python benchmarks/page.py --as avx2                 # held to a weaker class, which has a section of its own
    python benchmarks/page.py --write                   # measure nothing: sections and table from the page's blocks

Other classes' sections stay byte for byte. Blocks in bfloat16 run where the processor multiplies it. The page is
written once, when all has run: stopped before, it is as it was, finished blocks wait in build/page/, and the same
command goes on with the rest. A block whose command fails stays as it was. nanoGPT, litgpt and cerebras.pytorch take
part where NANOGPT, LITGPT_PYTHON and CSX_PYTHON name a clone and two programs.
"""

import argparse
import difflib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

import program  # noqa: E402
from blocks import BLOCKS, Block, absent, command  # noqa: E402
from forced import choose_class, switches_of  # noqa: E402
from sections import Key, Measured, sections, write_section, write_table  # noqa: E402

from modelzoo.config.errors import UserError  # noqa: E402
from modelzoo.files import write_text  # noqa: E402
from modelzoo.kernels.processor import TITLES, model_name, multiplies_bf16, native_class  # noqa: E402

PAGE = REPO / "docs" / "performance.md"
KEPT = REPO / "build" / "page"


def measured(words: str) -> str | None:
    """What `python WORDS` prints, or None if it fails."""
    done = subprocess.run(
        [sys.executable, *map(os.path.expandvars, shlex.split(words))],
        cwd=REPO,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(REPO)},
    )
    return done.stdout if done.returncode == 0 else None


def write_file(path: Path, text: str) -> None:
    """The file in one rename: never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(str(path), text)


class Finished:
    """Blocks of a class that have run and are not on the page yet, in a file that outlives this process."""

    def __init__(self, key: Key, again: bool):
        self.path = KEPT / f"{key.name}{'-forced' if key.forced else ''}.json"
        self.blocks: dict[str, Measured] = {}
        if again or not self.path.exists():
            return
        found = json.loads(self.path.read_text(encoding="utf-8"))
        if found["machine"] != model_name():
            raise UserError(f"{self.path}: its blocks are of another machine, {found['machine']}; --again drops them")
        self.blocks = {b["name"]: Measured(**b) for b in found["blocks"]}

    def keep(self, *blocks: Measured) -> None:
        self.blocks |= {b.name: b for b in blocks}
        self._save()

    def drop(self, names: list[str]) -> None:
        self.blocks = {n: b for n, b in self.blocks.items() if n not in names}
        self._save()

    def _save(self) -> None:
        if not self.blocks:
            self.path.unlink(missing_ok=True)
            return
        fields = ("name", "date", "command", "output")
        blocks = [{f: getattr(b, f) for f in fields} for b in self.blocks.values()]
        write_file(self.path, json.dumps({"machine": model_name(), "blocks": blocks}, indent=1) + "\n")


def choose_blocks(names: list[str] | None) -> list[Block]:
    """The blocks that this class runs, or those of them that are named.

    Raises:
        UserError: there is no such block, or the processor does not multiply its format.
    """
    by_name = {b.name: b for b in BLOCKS}
    for name in names or []:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(by_name)}"
            raise UserError(f"--only {name}: no such block; {hint}")
        if by_name[name].dtype == "bfloat16" and not multiplies_bf16():
            raise UserError(f"--only {name}: this processor does not multiply bfloat16, so nothing would be measured")
    here = [b for b in BLOCKS if b.dtype != "bfloat16" or multiplies_bf16()]
    return [b for b in here if names is None or b.name in names]


def run(blocks: list[Block], finished: Finished) -> list[str]:
    """Run the blocks that have not finished, and keep each when it has. Returns the names of those that failed."""
    failed = []
    for i, block in enumerate(blocks):
        words, at = command(block), f"[{i + 1}/{len(blocks)}] {block.name}"
        if (old := finished.blocks.get(block.name)) and old.command == words:
            print(f"{at}: of {old.date}, before the interruption; --again measures it anew", flush=True)
            continue
        left_out = absent(block)
        print(f"{at}: python {words}" + (f" ({', '.join(left_out)} not set)" if left_out else ""), flush=True)
        begin = time.monotonic()
        if (output := measured(words)) is None:
            print("failed: its block stays as it was", flush=True)
            failed.append(block.name)
            continue
        print(f"{time.monotonic() - begin:.0f} s\n{output}", flush=True)
        finished.keep(Measured(block.name, time.strftime("%Y-%m-%d"), words, output))
    return failed


def publish(key: Key, names: list[str], finished: Finished, whole: bool) -> None:
    """Put the finished blocks of these names into the class's section.

    Args:
        whole: all blocks of the class ran, so one that there is no more goes.
    """
    page = PAGE.read_text(encoding="utf-8")  # anew: it may have been edited meanwhile
    new = {n: finished.blocks[n] for n in names if n in finished.blocks}
    if not new:
        return
    old = sections(page).get(key, {})
    if whole and (gone := [n for n in old if n not in {b.name for b in BLOCKS}]):
        print(f"left out: {', '.join(gone)}, which nothing measures any more")
        old = {n: b for n, b in old.items() if n not in gone}
    write_file(PAGE, write_section(page, key, old | new))
    finished.drop(list(new))
    print(f"wrote `{key.heading}` in {PAGE.relative_to(REPO)}: {', '.join(new)}")


def rewrite() -> None:
    """Write every section's words and the table from the blocks that are on the page."""
    page = PAGE.read_text(encoding="utf-8")
    for key, blocks in sections(page).items():
        page = write_section(page, key, blocks)
    write_file(PAGE, write_table(page))
    print(f"wrote {PAGE.relative_to(REPO)} from its blocks")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", metavar="BLOCK", nargs="+", help=f"of {', '.join(b.name for b in BLOCKS)}")
    p.add_argument("--as", dest="wanted", metavar="CLASS", help="act as avx2, avx512 or avx512_bf16")
    p.add_argument("--again", action="store_true", help="what had finished before an interruption, too")
    p.add_argument("--write", action="store_true", help="measure nothing")
    args = p.parse_args()
    if args.write:
        if args.only or args.wanted or args.again:
            raise UserError("--write measures nothing: it goes with no other flag")
        rewrite()
        return 0
    name = choose_class(args.wanted)
    key = Key(name, forced=name != native_class())
    os.environ |= switches_of(name) if key.forced else {}
    blocks = choose_blocks(args.only)
    finished = Finished(key, args.again)
    print(f"{model_name()}, {TITLES[name]}{', forced' if key.forced else ''}: {len(blocks)} blocks", flush=True)
    try:
        failed = run(blocks, finished)
    except KeyboardInterrupt:
        kept = f"{len(finished.blocks)} finished blocks wait in {KEPT.relative_to(REPO)}"
        print(f"\nstopped: the page is as it was; {kept}, and the same command goes on", file=sys.stderr)
        return 130
    publish(key, [b.name for b in blocks], finished, whole=args.only is None)
    if failed:
        print(f"error: failed, and not on the page: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    program.run(main)
