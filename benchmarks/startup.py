"""How long a user waits: for help, for a plan, for the first training step, and for data between steps.

    python benchmarks/startup.py --rounds 5

Commands take turns. `first step` is the time from the command to the first step in the run's log: imports, model,
masks, data and the step itself. `waiting` is the share of a run's training time in which it waited for data, from
its timing.jsonl. The data is synthetic and made first.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import machine, spread
from program import run

from modelzoo.config.arguments import positive_int

REPO = Path(__file__).resolve().parents[1]
RUN = str(REPO / "run.py")
CONFIGS = {"demo/s75": 128, "quickstart/dense": 256, "quickstart/s75_blocks": 256}  # and the length of their rows


def call(*command: str) -> float:
    """Seconds of `python COMMAND`, its output dropped."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=REPO)
    return time.perf_counter() - begin


def train(config: str, data: Path, folder: Path, steps: int) -> tuple[float, float]:
    """Seconds to the first step of a run, and its share of waiting for data."""
    options = ["-o", str(folder), "--max_steps", str(steps), "--set", "trainer.init.logging.log_steps=1"]
    for split in ("train", "val"):
        options += ["--set", f"trainer.fit.{split}_dataloader.data_dir={data / split}"]
    log = folder / "timing.jsonl"
    begin = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, RUN, "CPU", "-p", config, "-m", "train", *options], cwd=REPO,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    assert child.stderr is not None
    while not (log.exists() and log.stat().st_size):
        if child.poll():
            sys.exit(child.stderr.read())
        time.sleep(0.005)
    first = time.perf_counter() - begin
    if child.wait():
        sys.exit(child.stderr.read())
    times = [row for row in map(json.loads, log.read_text(encoding="utf-8").splitlines()) if row["kind"] == "train"]
    return first, sum(t["waiting"] for t in times) / sum(t["seconds"] for t in times)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=positive_int, default=5)
    p.add_argument("--steps", type=positive_int, default=20)
    args = p.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        call("-m", "data_preprocessing", "synthetic", "--output", str(folder / "xml"), "--documents", "2000")
        configs = {f"configs/{c}.yaml": msl for c, msl in CONFIGS.items()}
        for msl in set(CONFIGS.values()):
            call("-m", "data_preprocessing", "pubmed", "--input", str(folder / "xml"), "--output", str(data / str(msl)),
                 "--tokenizer", "train", "--vocab_size", "4096", "--msl", str(msl))  # fmt: skip
        commands = {
            "python -c 'import torch'": ["-c", "import torch"],
            "run.py --help": [RUN, "--help"],
            "data_preprocessing --help": ["-m", "data_preprocessing", "--help"],
            "run.py -m plan": [RUN, "-p", "configs/mediswift/xl_s75.yaml", "-m", "plan"],
        }
        seconds: dict[str, list[float]] = {}
        waiting: dict[str, list[float]] = {}
        for i in range(args.rounds + 1):  # the first round warms the disk's cache
            found = {name: call(*command) for name, command in commands.items()}
            for config, msl in configs.items():
                first, share = train(config, data / str(msl), folder / f"run{i}" / config, args.steps)
                found[f"first step of {config}"] = first
                waiting.setdefault(config, []).append(share)
            if i:
                for key, value in found.items():
                    seconds.setdefault(key, []).append(value)
    print(f"{'':46} {'seconds':>8}")
    for key, values in seconds.items():
        middle, low, high = spread(values)
        print(f"{key:46} {middle:8.2f}  [{low:.2f} to {high:.2f}]")
    for config, shares in waiting.items():
        print(f"waiting for data in {config}: {statistics.median(shares[1:]):.2%} of {args.steps} steps")


if __name__ == "__main__":
    run(main)
