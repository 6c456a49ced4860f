"""The commands that faults are put into: how each starts, and what it must have written in the end."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from tests import commands
from tests.faults import mirror
from tests.faults.world import World

# By their nature these differ from one run to the next (times, process numbers, what a launch reports)...
UNSEEN = ("/.lock", "/tensorboard/", "/logs/", "/work/", "/speed.json")
# ... and of these only the presence counts.
PRESENT = (
    "/timing.jsonl", "/launches.jsonl", "/study/report", "/evaluation/results.json", "/comparison.svg",
    "/pruning.json", "/pmc/download.json", "/pmc/state/request.json",  # an address, a day
)  # fmt: skip
MOMENT = ("/state.json", "/manifest.json")  # of a checkpoint: they also tell what was logged by then
STEP = re.compile(r"(.*checkpoints/step_)(\d+)/")
CPU = ("CPU", "-p")


class Command(NamedTuple):
    """One command.

    Attributes:
        words: its command line; {w} is the world's folder, {url} a mirror's address.
        start: what it finds: (name in the world, name in its folder).
        keeps: of what it finds, the files that no fault may change (all below these names).
        prints: whether what it prints is all that it makes.
        seconds: after which it hangs.
    """

    program: str
    words: tuple[str, ...]
    start: tuple[tuple[str, str], ...] = ()
    keeps: tuple[str, ...] = ()
    prints: bool = False
    seconds: float = 60.0


def _zoo(*words: str, **facts) -> Command:
    return Command("modelzoo", words, **facts)


def _data(*words: str, **facts) -> Command:
    return Command("data_preprocessing", words, **facts)


RUN = ("run", "run")
KEPT = ("run/checkpoints/step_2", "run/checkpoints/step_4")
COMMANDS = {
    "train": _zoo(*CPU, "{w}/train.yaml", "-m", "train_and_eval", "-o", "run"),
    "resume": _zoo(*CPU, "{w}/train.yaml", "-m", "train_and_eval", "-o", "run", start=(("half", "run"),), keeps=KEPT),
    "finetune": _zoo(*CPU, "{w}/tune.yaml", "-m", "finetune", "--checkpoint_path", "{w}/run", "-o", "tuned"),
    "study": _zoo(*CPU, "{w}/study.yaml", "-m", "study"),
    "eval": _zoo(*CPU, "run/config.yaml", "-m", "eval", "-o", "run", start=(RUN,), keeps=KEPT),
    "eval_all": _zoo(*CPU, "run/config.yaml", "-m", "eval_all", "-o", "run", start=(RUN,), keeps=KEPT),
    "score": _zoo(
        *CPU, "run/config.yaml", "-m", "score", "-o", "run", "--tasks", "{w}/task/task.yaml", start=(RUN,), keeps=KEPT
    ),
    "prompt-search": _zoo(
        "prompt-search", "{w}/run", "--task", "{w}/task/task.yaml", "--templates", "{w}/task/template.yaml", "-o",
        "search",
    ),
    "plan": _zoo(*CPU, "{w}/train.yaml", "-m", "plan", prints=True),
    "compare": _zoo("compare", "{w}/run", "{w}/half", "-o", "comparison.svg"),
    "report": _zoo("report", "{w}/run", "{w}/half", "-o", "report.html"),
    "export": _zoo("export", "{w}/run", "exported"),
    "export-mdl": _zoo("export", "{w}/run", "model.mdl"),
    **({"export-gguf": _zoo("export", "{w}/run", "model.gguf")} if find_spec("gguf") else {}),
    "generate": _zoo(
        "generate", "{w}/run", "--prompt", "Patients", "--prompt", "Signalling of", "--max_new_tokens", "6", "-o",
        "texts.jsonl",
    ),
    "prune": _zoo(
        "prune", "{w}/run", "pruned", "--method", "wanda", "--sparsity", "0.9", "--data", "{w}/shards/train",
        "--samples", "8",
    ),
    "prepare-task": _zoo("prepare-task", "bioasq", "{w}/bioasq", "prepared"),
    "import": _zoo("import", "{w}/export", "imported"),
    "import-mdl": _zoo("import", "{w}/model.mdl", "imported", "-p", "{w}/train.yaml"),
    "synthetic": _data("synthetic", "--output", "xml", "--documents", "20"),
    "download": _data("download", "--baseline", "2", "--output", "xml", "--base_url", "{url}", "--retries", "1"),
    "download-pmc": _data(
        "download", "--pmc", "--output", "pmc", "--base_url", "{url}/pmc", "--retries", "1", "--workers", "1",
        "--articles_per_tar", "2",
    ),
    "tokenizer": _data("tokenizer", "--input", "{w}/xml", "--output", "tokenizer.json", "--vocab_size", "300"),
    "pubmed": _data("pubmed", "--input", "{w}/xml", "--output", "shards", "{job}"),
    "pubmed-trained": _data(
        "pubmed", "--input", "{w}/xml", "--output", "shards", "{job}", "--tokenizer", "train", "--vocab_size", "300"
    ),
    "pmc": _data("pmc", "--input", "{w}/jats/package.tar.gz", "--output", "shards", "{job}"),
    "jsonl": _data("jsonl", "--input", "{w}/jsonl/docs.jsonl", "--output", "shards", "{job}"),
    "pairs": _data(
        "jsonl", "--input", "{w}/jsonl/pairs.jsonl", "--output", "shards", "{job}", "--objective", "prompt_completion",
        "--set", "filters.min_chars=0",
    ),
    "pack": _data(
        "pack", "--input", "{w}/jsonl/ids.jsonl", "--output", "packed", "--msl", "32", "--eos_id", "0",
        "--vocab_size", "320",
    ),
    "inspect": _data("inspect", "{w}/shards/train", prints=True),
    "verify": _data("verify", "{w}/shards", prints=True),
    "shards-report": _data("report", "shards", start=(("shards", "shards"),), keeps=("shards/train", "shards/val")),
}  # fmt: skip


def begin(world: World, command: Command, folder: Path) -> None:
    """What the command finds, in the new folder where it runs."""
    folder.mkdir(parents=True)
    for name, target in command.start:
        world.copy(name, to=folder)
        if name != target:
            os.rename(folder / name, folder / target)


def words(world: World, command: Command) -> list[str]:
    """Its command line."""
    found: list[str] = []
    for word in command.words:
        if word == "{job}":
            *valued, last = world.job_flags
            pairs = zip(valued[::2], valued[1::2], strict=True)
            found += [w for pair in pairs if pair[0] == "--set" or pair[0] not in command.words for w in pair] + [last]
        else:
            found.append(word.format(w=world.path, url=mirror.address(world) if "{url}" in word else ""))
    return found


def prepare(command: Command) -> Callable[[], None]:
    """What a fork does before it becomes the command: a study's runs are forks of it, so that faults reach them."""

    def begin_study() -> None:
        from modelzoo.study.execution import run

        def popen(argv, stdout, stderr, env, start_new_session):
            return commands.start(argv[3:], stdout, env)

        run.subprocess = SimpleNamespace(Popen=popen)  # type: ignore[assignment]
        run.POLL = 0.01

    return begin_study if command.words[-2:] == ("-m", "study") else lambda: None


def tree(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file that a command promises to write the same every time; of others their presence."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = f"/{path.relative_to(folder)}"
        if path.is_file() and not any(part in name for part in UNSEEN):
            present = any(part in name for part in PRESENT)
            found[name[1:]] = "" if present else hashlib.sha256(_promised(path)).hexdigest()
    return found


def _promised(path: Path) -> bytes:
    """A file's bytes; of a checkpoint's state without what differs from run to run."""
    data = path.read_bytes()
    if not STEP.match(f"{path.parent}/") or path.name not in ("state.json", "manifest.json"):
        return data
    try:
        state = json.loads(data)
    except ValueError:
        return data
    for key in ("run", "version"):  # the run's own number; the commit, which may be made meanwhile
        state.pop(key, None)
    state.get("logs", {}).pop("timing.jsonl", None)
    state.get("files", {}).pop("state.json", None)
    return json.dumps(state).encode()


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """What two trees differ in. A checkpoint before the last one may be there or not: an interrupted run saves more,
    and at other moments, as before a validation that is due."""
    last = max((int(m[2]) for name in wanted if (m := STEP.match(name))), default=0)
    optional = lambda name: (m := STEP.match(name)) and int(m[2]) < last
    lines = [f"no {name}" for name in wanted.keys() - found.keys() if not optional(name)]
    lines += [f"left {name}" for name in found.keys() - wanted.keys() if not optional(name)]
    other = [name for name in found.keys() & wanted.keys() if found[name] != wanted[name]]
    lines += [f"other bytes in {name}" for name in other if not (optional(name) and name.endswith(MOMENT))]
    return sorted(lines)


def kept(folder: Path, command: Command) -> dict[str, str]:
    """The files that no fault may change, in a folder that `begin` has made."""
    return {n: d for n, d in tree(folder).items() if any(n == k or n.startswith(f"{k}/") for k in command.keeps)}
