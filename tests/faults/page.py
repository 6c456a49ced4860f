"""docs/reliability.md: the table of counts between two marks; all around it is written by hand."""

import datetime
from collections import Counter
from pathlib import Path

from modelzoo.kernels import processor
from tests.faults.part import KINDS

BEGIN, END = "<!-- counts: written by make faults -->", "<!-- end of counts -->"


def table(counts: dict[str, Counter[str]], passed: dict[str, str]) -> str:
    """Parts, cases and verdicts as a Markdown table; a line for each part that was passed over."""
    rows = [("part", "cases", *KINDS), ("---", *["--:"] * (len(KINDS) + 1))]
    for name, found in counts.items():
        rows.append((name, f"{found.total():,}", *(f"{found[kind]:,}" for kind in KINDS)))
    whole = sum(counts.values(), Counter())
    rows.append(("all", f"{whole.total():,}", *(f"{whole[kind]:,}" for kind in KINDS)))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines + [f"\n{name}: passed over, {why}." for name, why in passed.items()])


def write(
    path: Path, counts: dict[str, Counter[str]], passed: dict[str, str], seed: int, seconds: float, planned: int
) -> None:
    """Put the table, the date and the class of machine between the marks.

    Args:
        planned: cases, of which some are not done where the run was stopped.

    Raises:
        ValueError: the page has no marks.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path}: no marks {BEGIN} and {END}")
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    done = sum(found.total() for found in counts.values())
    ended = f", stopped by the clock after {done:,} of {planned:,} cases" if done < planned else ""
    head = (
        f"{today}, class {processor.processor_class()} ({processor.title()}), seed {seed}, "
        f"{seconds / 60:.0f} minutes{ended}:"
    )
    path.write_text(f"{before}{BEGIN}\n\n{head}\n\n{table(counts, passed)}\n\n{END}{after}", encoding="utf-8")
