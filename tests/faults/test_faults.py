"""A seeded sample of every part of the harness; `make faults` runs the thousands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import page
from tests.faults.run import find_parts

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the harness forks, and loads a library before libc")
def test_a_sample_of_every_part_has_no_new_fault(tmp_path):
    """In a process of its own, which the library that fails operations is loaded into."""
    command = [sys.executable, "-m", "tests.faults.run", "--quick", "--jobs", "2", "--state", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    tested = {row.split("|")[1].strip(): int(row.split("|")[2]) for row in rows[2:]}
    assert all(tested[name] > 0 or "passed over" in done.stdout for name in find_parts())


def test_the_page_takes_the_counts_and_keeps_its_words(tmp_path):
    before = (REPO / "docs/reliability.md").read_text(encoding="utf-8")
    path = tmp_path / "reliability.md"
    path.write_text(before, encoding="utf-8")
    counts = {"kills": page.Counter(ok=1499, lost=1)}
    page.write(path, counts, {"operations": "no compiler"}, 3, 120.0, 1500)
    after = path.read_text(encoding="utf-8")
    assert "| kills | 1,500 | 1,499 | 0 | 0 | 1 |" in after and "operations: passed over, no compiler." in after
    outside = lambda text: (text.partition(page.BEGIN)[0], text.partition(page.END)[2])
    assert outside(after) == outside(before)
    assert "stopped by the clock after" not in after
    page.write(path, counts, {"operations": "no compiler"}, 3, 120.0, 1600)
    assert "stopped by the clock after 1,500 of 1,600 cases" in path.read_text(encoding="utf-8")
    page.write(path, counts, {"operations": "no compiler"}, 3, 120.0, 1500)
    assert path.read_text(encoding="utf-8") == after
