"""kill -9 of a random rank at a random moment, over and over: the run goes on, and ends as one that nobody disturbed.

    python -m tests.training.kill_ranks                      # 30 kills, of --devices 2, --devices 4 and torchrun with 2
    python -m tests.training.kill_ranks --kills 5 --ways devices4 --seed 1

A run is killed three times, each time before its ranks have joined or later, and then ends by itself. After each kill
the command must end within a bound, report the lost rank in at most one line of the others, and leave whole files.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from modelzoo.training.checkpoints import checkpoint
from tests import ranks
from tests.support import TINY

REPO = Path(__file__).resolve().parents[2]
WAYS = {"devices2": 2, "devices4": 4, "torchrun": 2}
STEPS, EVERY, CHAIN = 60, 5, 3  # optimizer steps, those between checkpoints, kills of one run
BOUND = 45.0  # seconds that the others have: 15 of --devices, 30 of torchrun's own, and some of a machine that is busy
SPAN = 4.0  # seconds about which ranks take to join


def write_config(folder: Path, steps: int = STEPS) -> Path:
    data = ranks.write_data(folder / "data", 8)
    return ranks.write_config(
        *(data, folder / "a.yaml", {"reduction": "exact"}, {}),
        model={**TINY, "dropout_rate": 0.1},
        sparsity={"algorithm": "set", "sparsity": 0.5, "update": {"freq": 2}},
        optimizer={"AdamW": {"betas": [0.9, 0.95], "weight_decay": 0.1, "lr": 1e-2}},
        loop={"max_steps": steps, "eval_frequency": 20},
        checkpoint={"steps": EVERY},
    )


def start(way: str, config: Path, run: Path, *more: str) -> subprocess.Popen:
    """The command, its output in `run`.txt."""
    words = ["CPU", "-p", str(config), "-m", "train_and_eval", "-o", str(run)]
    if way == "torchrun":
        head = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *more, str(REPO / "run.py")]
    else:
        head, words = [str(REPO / "run.py")], [*words, "--devices", str(WAYS[way])]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    with open(f"{run}.txt", "w", encoding="utf-8") as out:
        return subprocess.Popen([sys.executable, *head, *words], stdout=out, stderr=out, env=env, cwd=REPO)


def find_ranks(parent: int) -> dict[int, int]:
    """The process numbers of the ranks that `parent` has started and that run, by rank."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = stat.read_text().rpartition(")")[2].split()[:2]
            words = stat.with_name("environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((int(w[5:]) for w in words if w.startswith(b"RANK=")), None)
        if int(above) == parent and state not in "ZX" and rank is not None:
            found[rank] = int(stat.parent.name)
    return found


def await_ranks(process: subprocess.Popen, count: int) -> dict[int, int]:
    """All ranks, once they are started."""
    while len(found := find_ranks(process.pid)) < count and process.poll() is None:
        time.sleep(0.01)
    return found


def find_step(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(p.name[5:]) for p in (run / "checkpoints").glob("step_*") if p.name[5:].isdigit()), default=0)


def read_run(run: Path) -> dict[str, bytes]:
    names = ["metrics.jsonl", *(f"checkpoints/step_{STEPS}/{n}.safetensors" for n in ("model", "optimizer"))]
    return {n: (run / n).read_bytes() for n in names}


def kill_one(way: str, config: Path, run: Path, draw: random.Random) -> str:
    """Start the command, kill one of its ranks, and check what is left; returns what happened, in words."""
    process = start(way, config, run)
    begin = time.monotonic()
    found = await_ranks(process, WAYS[way])
    if draw.random() < 0.4:
        time.sleep(draw.random() * SPAN)
    else:
        step = min(find_step(run) + draw.randrange(1, 2 * EVERY), STEPS - EVERY)  # of this launch
        while find_step(run) < step and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.5)
    victim = draw.randrange(WAYS[way])
    try:
        os.kill(found[victim], signal.SIGKILL)
    except (KeyError, ProcessLookupError):
        victim = -1  # it was over before
    killed = time.monotonic()
    code = process.wait(BOUND)
    seconds = time.monotonic() - killed
    assert not find_ranks(process.pid)
    text = Path(f"{run}.txt").read_text(encoding="utf-8")
    errors = [x for x in text.splitlines() if x.startswith("error: ") and "was killed by SIGKILL" not in x]
    assert len(errors) <= 1 and all(f"rank {victim} of {WAYS[way]}: gone" in x for x in errors), text
    if victim >= 0 and way != "torchrun":
        assert code and f"error: rank {victim} was killed by SIGKILL" in text, text
        assert len(errors) == 1 or "\nstep " not in text, text  # whoever trained has noticed and reported it
    for path in (run / "checkpoints").glob("step_*"):
        checkpoint.load(str(path))
    for line in (run / "launches.jsonl").read_text().splitlines() if (run / "launches.jsonl").exists() else ():
        json.loads(line)
    when = f"at step {find_step(run)} or later" if found_joined(text) else "before all had joined"
    who = f"rank {victim} {when}" if victim >= 0 else "nobody, it was over"
    return f"{way:9} killed {who} after {killed - begin:.1f} s: code {code}, {len(errors)} line, {seconds:.1f} s to end"


def found_joined(text: str) -> bool:
    """Whether a run's ranks have met, by what rank 0 printed then."""
    return "gradients  " in text


def undisturbed(config: Path, folder: Path) -> dict[str, bytes]:
    """What a run leaves that nobody kills."""
    process = start("devices2", config, folder / "whole")
    assert process.wait(600) == 0, Path(f"{folder / 'whole'}.txt").read_text()
    return read_run(folder / "whole")


def chain(way: str, config: Path, run: Path, kills: int, expected: dict[str, bytes], draw: random.Random) -> list[str]:
    """Kill a run `kills` times, let it end, and compare; a line for each kill."""
    lines = [kill_one(way, config, run, draw) for _ in range(kills)]
    assert start(way, config, run).wait(600) == 0, Path(f"{run}.txt").read_text()
    assert read_run(run) == expected, (way, lines)
    assert not [p for p in run.rglob("*") if p.name.startswith(".tmp")]
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=30)
    p.add_argument("--ways", default=",".join(WAYS))
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    draw, ways, done = random.Random(args.seed), args.ways.split(","), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_config(folder)
        expected = undisturbed(config, folder)
        while done < args.kills:
            way, kills = ways[done // CHAIN % len(ways)], min(CHAIN, args.kills - done)
            for line in chain(way, config, folder / f"run{done}", kills, expected, draw):
                print(line, flush=True)
            done += kills
    print(f"{done} kills; every run ended with the bits of one that nobody disturbed")


if __name__ == "__main__":
    main()
