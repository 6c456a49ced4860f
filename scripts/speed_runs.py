"""Time and FLOPs until a validation loss is reached, of runs that were made one after another on a quiet machine.

    python scripts/speed_runs.py --loss 0.85 demo/runs/dense demo/runs/s75

Seconds are those of training steps (timing.jsonl), without validation, checkpoints and the start; FLOPs as run.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple


class Reached(NamedTuple):
    """Where a run first had the loss."""

    step: int
    tokens: int
    flops: float
    seconds: float
    loss: float


def find_reached(run: Path, loss: float) -> Reached | None:
    """The first validation of a run with at most `loss`; None where none has it. Every step must be logged."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timings = [json.loads(line) for line in (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = {r["step"]: r for r in records if r["kind"] == "train"}
    at = next((r for r in records if r["kind"] == "validation" and r["loss"] <= loss), None)
    if at is None:
        return None
    steps = [t["seconds"] for t in timings if t["kind"] == "train" and t["step"] <= at["step"]]
    if len(steps) != at["step"]:
        sys.exit(f"error: {run}: {len(steps)} of {at['step']} steps are in timing.jsonl; train with log_steps: 1")
    before = trained[at["step"]]
    return Reached(at["step"], before["tokens"], before["flops"], sum(steps), at["loss"])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", type=Path)
    p.add_argument("--loss", type=float, required=True, help="the validation loss to reach")
    args = p.parse_args()
    print("| run | steps | tokens | FLOPs as run | seconds of training | validation loss |\n|---|---|---|---|---|---|")
    for run in args.runs:
        found = find_reached(run, args.loss)
        if found is None:
            print(f"| {run.name} | never | | | | |")
            continue
        cells = f"{found.step} | {found.tokens:,} | {found.flops:.3g} | {found.seconds:.1f} | {found.loss:.3f}"
        print(f"| {run.name} | {cells} |")


if __name__ == "__main__":
    main()
