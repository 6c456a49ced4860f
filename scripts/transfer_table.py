"""The table of scripts/transfer_small.sh: dev scores after the last step, mean and 95 % interval over the seeds.

The last step's and not the best one's: with no test set at hand, a score that was chosen on dev would flatter itself.

    python scripts/transfer_table.py runs/transfer
"""

import argparse
import json
import sys
from pathlib import Path

from modelzoo import entry
from modelzoo.evaluation.statistics.intervals import measure_spread

METRICS = {"pubmedqa": ("accuracy", "macro_f1"), "hoc": ("micro_f1", "macro_f1")}
MASKS = {"lift": "dense", "keep": "sparse"}


def table(root: Path, task: str, metrics: tuple[str, ...]) -> str:
    """Markdown, a row for each way to fine-tune."""
    lines = [
        f"| pre-trained | fine-tuned | soft prompt | {' | '.join(metrics)} |",
        "|---|---|---|" + "---|" * len(metrics),
    ]
    base = None
    for ckpt, masks, prompt in [
        (c, m, p) for c in ("dense", "s50", "s75") for m in ("lift", "keep") for p in ("plain", "prompt")
    ]:
        path = root / f"{task}-{ckpt}-{masks}-{prompt}" / "results.json"
        if not path.exists():
            continue
        results = json.loads(path.read_text(encoding="utf-8"))
        base = base or [r["scores"]["dev"]["majority"] for r in results]
        last = [r["dev"][-1] for r in results]
        cells = [cell([r[m] for r in last]) for m in metrics]
        lines.append(f"| {ckpt} | {MASKS[masks]} | {'no' if prompt == 'plain' else '9'} | {' | '.join(cells)} |")
    if base:
        lines.append(f"| | best constant answer | | {' | '.join(cell([b[m] for b in base]) for m in metrics)} |")
    return "\n".join(lines)


def cell(values: list[float]) -> str:
    s = measure_spread(values)
    return f"{s.mean:.3f}" if s.n < 2 or s.sd == 0 else f"{s.mean:.3f} ({s.low:.3f} to {s.high:.3f})"


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", type=Path, help="the folder that scripts/transfer_small.sh wrote")
    root = p.parse_args().runs
    if not root.is_dir():
        print(f"error: {root}: no such folder; run scripts/transfer_small.sh first", file=sys.stderr)
        return 2
    for task, metrics in METRICS.items():
        print(f"{task}, dev\n\n{table(root, task, metrics)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(entry.run_command(main, sys.argv[1:], "nothing was printed"))
