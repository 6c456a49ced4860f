"""Named attacks by what is run: special files in every place, links, secrets, markup, giants, two processes."""

import html
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.artefacts import resume
from tests.faults.check import MEMORY, hash_files, run_main, weigh
from tests.faults.child import Child
from tests.faults.kinds_data import run_and_compare
from tests.faults.part import Verdict
from tests.faults.world import World

Attack = Callable[[World, Path], Verdict]
ATTACKS: dict[str, Attack] = {}
TRAIN = ["CPU", "-p", "{world}/train.yaml", "-m", "train", "-o", "run", "--max_steps", "7"]
JOB = ["--output", "out", "--tokenizer", "{world}/tokenizer.json", "--msl", "32", "--workers", "1", "--quiet"]
SCORE = [
    "CPU",
    "-p",
    "{world}/train.yaml",
    "-m",
    "score",
    "-o",
    "out",
    "--tasks",
    "task/task.yaml",
    "--checkpoint_path",
]
# path in the case's folder: what is copied, and a command that reads it
PLACES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "train.yaml": ((), ["-p", "train.yaml", "-m", "plan"]),
    "run/config.yaml": (("run",), TRAIN),
    "run/launches.jsonl": (("run",), TRAIN),
    "run/metrics.jsonl": (("run",), TRAIN),
    "run/timing.jsonl": (("run",), ["report", "run", "-o", "out.html"]),
    "run/checkpoints/step_6/manifest.json": (("run",), TRAIN),
    "run/checkpoints/step_6/state.json": (("run",), TRAIN),
    "run/checkpoints/step_6/model.safetensors": (("run",), ["export", "run/checkpoints/step_6", "out"]),
    "run/checkpoints/step_6": (("run",), TRAIN),
    "run/checkpoints": (("run",), TRAIN),
    "tuned/fold_0/seed_1/result.json": (
        ("run", "tuned"),
        ["CPU", "-p", "{world}/tune.yaml", "-m", "finetune", "--checkpoint_path", "run", "-o", "tuned"],
    ),
    "tuned/results.json": (("tuned",), ["report", "tuned/fold_0/seed_1", "-o", "out.html"]),
    "shards/train/output_chunk_0_0.h5": (("shards",), ["inspect", "shards/train"]),
    "shards/train/manifest.json": (("shards",), ["verify", "shards"]),
    "shards/tokenizer.json": (("shards",), ["verify", "shards"]),
    "shards/report.json": (("shards",), ["report", "shards"]),
    "shards/job.json": (("shards",), ["pubmed", "--input", "{world}/xml", "--output", "shards", *JOB[2:]]),
    "export/config.json": (("export",), ["import", "export", "out"]),
    "export/model.safetensors": (("export",), ["import", "export", "out"]),
    "export/masks.safetensors": (("export",), ["import", "export", "out"]),
    "export/tokenizer.json": (("export", "task"), [*SCORE, "export"]),
    "model.mdl": ((), ["import", "model.mdl", "out", "-p", "{world}/train.yaml"]),
    "tokenizer.json": (("run",), ["export", "run", "out", "--tokenizer", "tokenizer.json"]),
    "task/task.yaml": (("task",), [*SCORE, "{world}/run"]),
    "task/template.yaml": (("task",), [*SCORE, "{world}/run"]),
    "task/train.jsonl": (("task",), [*SCORE, "{world}/run"]),
    "study.yaml": ((), ["-p", "study.yaml", "-m", "study", "-o", "out", "--validate_only"]),
    "docs.jsonl": ((), ["jsonl", "--input", "docs.jsonl", *JOB]),
    "a.xml": ((), ["pubmed", "--input", "a.xml", *JOB]),
    "a.nxml": ((), ["pmc", "--input", "a.nxml", *JOB]),
    "a.tar": ((), ["pmc", "--input", "a.tar", *JOB]),
    "job.yaml": ((), ["jsonl", "--config", "job.yaml", "--output", "out"]),
    "test.jsonl": (
        (),
        ["jsonl", "--input", "{world}/jsonl/docs.jsonl", *JOB, "--set", "filters.decontaminate=[test.jsonl]"],
    ),
    "ids.jsonl": ((), ["pack", "--input", "ids.jsonl", "--output", "out", "--msl", "16", "--eos_id", "0"]),
}
DATA = {"inspect", "verify", "pubmed", "pmc", "jsonl", "pack"}
OUTPUTS = ("out", "out.html", "out.csv", "out_files", "run", "tuned", "shards", "out.svg", "out.json")


def _special(place: str, kind: str) -> Attack:
    def attack(world: World, folder: Path) -> Verdict:
        """A FIFO, an endless device or a folder where a file is expected: no wait, no tens of gigabytes."""
        needs, words = PLACES[place]
        world.copy(*needs, to=folder)
        if "task" in needs:
            path = folder / "task/task.yaml"
            path.write_text(path.read_text().replace(str(world.path / "task"), str(folder / "task")))
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if kind == "FIFO":
            os.mkfifo(path)
        elif kind == "/dev/zero":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        words = [w.replace("{world}", str(world.path)) for w in words]
        data = words[0] in DATA or words[:2] == ["report", "shards"]
        return run_and_compare("data_preprocessing" if data else "modelzoo", words, folder, (), OUTPUTS)

    return attack


for _place in PLACES:
    for _kind in ("FIFO", "/dev/zero", "folder"):
        ATTACKS[f"{_kind} as {_place}"] = _special(_place, _kind)


def _link(name: str) -> Attack:
    def attack(world: World, folder: Path) -> Verdict:
        """A link in a run's folder to a file elsewhere: that file stays as it is."""
        world.copy("run", to=folder)
        shutil.rmtree(folder / "run/checkpoints/step_6")
        target, path = folder / "elsewhere", folder / "run" / name
        target.write_bytes(path.read_bytes() if path.is_file() else b"")
        before = target.read_bytes()
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        verdict = weigh(resume(world, folder).outcome, (name, "run"))
        return Verdict("outside", f"written through {name}") if target.read_bytes() != before else verdict

    return attack


for _name in ("config.yaml", "launches.jsonl", "metrics.jsonl", "timing.jsonl", ".lock", "config.until_4.yaml"):
    ATTACKS[f"link at run/{_name}"] = _link(_name)

SECRETS = [f"CANARY{i:02d}x9k2" for i in range(20)]
_KEYS = ("token", "api_key", "password", "trainer.init.backend.cluster_config.token", "wandb_api_key", "secret",
"auth", "private_key",
         "trainer.init.loggers.api_key", "credentials", "access_key", "session_key", "passphrase",
         "cookie")  # fmt: skip


def _secrets(world: World, folder: Path) -> Verdict:
    """Twenty secrets on command lines, taken or refused: none is printed or written but to its owner's config."""
    train = ["CPU", "-p", world.path / "train.yaml", "-m", "train", "-o", "run", "--max_steps", "1"]
    lines = [[*train, "--set", f"{key}={secret}"] for key, secret in zip(_KEYS, SECRETS, strict=False)]
    lines += [
        ["CPU", "-p", f"https://user:{SECRETS[14]}@host/x.yaml", "-m", "plan"],
        [*train, "--mgmt_address", f"https://user:{SECRETS[15]}@host:9000"],
        [*train, "--job_labels", f"token={SECRETS[16]}"],
        [
            *train,
            "--set",
            "trainer.init.loggers=[JSONLLogger, {WandbLogger: {project: x, api_key: " + SECRETS[17] + "}}]",
        ],
        [*train, "--checkpoint_path", f"s3://key:{SECRETS[18]}@bucket/x"],
        [*train, "--set", f"trainer.init.backend={{cluster_config: {{mgmt_address: 'x', token: {SECRETS[19]}}}}}"],
    ]
    for line, secret in zip(lines, SECRETS, strict=True):
        outcome = run_main("modelzoo", line, folder)
        if secret in outcome.out + outcome.err:
            return Verdict("outside", f"printed: {line[-1]!s:.60} ({(outcome.err or outcome.out).strip()[:150]})")
        if (verdict := weigh(outcome)).kind not in ("ok", "refused"):
            return verdict
    run_main("modelzoo", train, folder)
    run_main("modelzoo", ["export", "run", "out"], folder)
    for path in (*folder.rglob("*"), *folder.with_name(f"{folder.name}.tmp").rglob("*")):
        private = path.name.startswith("config.") and not path.stat().st_mode & 0o077  # it must reload, for its owner
        if path.is_file() and not private and any(s.encode() in path.read_bytes() for s in SECRETS):
            return Verdict("outside", f"written to {path.relative_to(folder.parent)}")
    return Verdict("ok")


ATTACKS["20 secrets on the command line"] = _secrets

MARKUP = "<img src=x onerror=alert(1)>"


def _markup(world: World, folder: Path) -> Verdict:
    """A run's folder, a text and a key that are HTML and Markdown: pages and cards show them as text."""
    name = f"{MARKUP} ![a](b) # head"
    world.copy("run", to=folder)
    (folder / "run").rename(folder / name)
    rows = [{"id": MARKUP, "text": f"{MARKUP} short"}, {"id": 2, "text": "a text that is long enough to be kept " * 9}]
    (folder / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    lines = [("modelzoo", ["report", name, "-o", "out.html"]), ("modelzoo", ["compare", name, world.path / "run",
    "-o", "out.svg"]),
             ("modelzoo", ["export", name, "out"]),
             ("data_preprocessing", ["jsonl", "--input", "a.jsonl", "--output", "out2",
             *world.job_flags])]  # fmt: skip
    for program, words in lines:
        if (verdict := weigh(run_main(program, words, folder))).kind != "ok":
            return verdict
    for page in (folder / "out.html", folder / "out.svg", folder / "out/README.md", folder / "out2/report.html"):
        text = page.read_text()
        if MARKUP in text or (page.name == "README.md" and ("![a](b)" in text or "\n# head" in text)):
            return Verdict("outside", f"{page.name} holds the markup as it is, not as {html.escape(MARKUP)[:20]}")
    return Verdict("ok")


ATTACKS["markup in names and texts"] = _markup


def _named(name: str) -> Attack:
    def attack(world: World, folder: Path) -> Verdict:
        """A run in a folder of an odd name: it trains, and is reported, compared and exported."""
        train = ["CPU", "-p", world.path / "train.yaml", "-m", "train", "-o", name, "--max_steps", "2"]
        lines = (train, ["report", name, world.path / "run", "-o", "out.html"], ["compare", name,
        world.path / "run", "-o", "out.svg"],
                 ["export", name, "out"])  # fmt: skip
        for words in lines:
            if (verdict := weigh(run_main("modelzoo", words, folder))).kind != "ok":
                return Verdict("lost", verdict.detail) if verdict.kind == "refused" else verdict
        return Verdict("ok")

    return attack


for _name in ("$x^$", "a b", "[x]*", "-x"[1:] + "%s{0}", "é\u202e💥", "x" * 200, "\\frac{1}{2}", "_a_", "&amp;"):
    ATTACKS[f"a run named {_name[:20]}"] = _named(_name)


def _giant(words: list[str], *names: str) -> Attack:
    def attack(world: World, folder: Path) -> Verdict:
        found = run_and_compare("modelzoo", [w.replace("{world}", str(world.path)) for w in words], folder, names)
        return Verdict("silent", "taken, exit code 0") if found.kind == "ok" else found

    return attack


for _key in ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings", "filter_size", "num_heads"):
    for _mode in (["-m", "plan"], ["-m", "train", "-o", "out"]):
        _words = ["CPU", "-p", "{world}/train.yaml", *_mode, "--set", f"trainer.init.model.{_key}=4294967296"]
        ATTACKS[f"2^32 {_key}, {_mode[1]}"] = _giant(_words, _key)


def _declared(reader: str) -> Attack:
    def attack(world: World, folder: Path) -> Verdict:
        """A shard of 2 kB that declares 10^12 examples."""
        import h5py

        (folder / "shards").mkdir()
        with h5py.File(folder / "shards/a.h5", "w") as file:
            file.create_dataset("data", (10**12, 3, 32), "i4", chunks=(1, 3, 32))
            file.attrs["n_examples"] = 10**12
        train = ["CPU", "-p", str(world.path / "train.yaml"), "-m", "train", "-o", "out", "--set",
                 "trainer.fit.train_dataloader.data_dir=shards"]  # fmt: skip
        words = {"train": train, "inspect": ["inspect", "shards"], "verify": ["verify", "shards", "--tokens"],
                 "pack": ["pack", "--input", "shards", "--output", "out", "--msl", "16", "--eos_id",
                 "0"]}[reader]  # fmt: skip
        program = "modelzoo" if reader == "train" else "data_preprocessing"
        found = run_and_compare(program, words, folder, ("a.h5", "shards"))
        return Verdict("silent", "taken, exit code 0") if found.kind == "ok" else found

    return attack


for _reader in ("train", "inspect", "verify", "pack"):
    ATTACKS[f"10^12 examples, {_reader}"] = _declared(_reader)


def _two(world: World, folder: Path) -> Verdict:
    """Two processes in one folder: one trains to the end, the other is told that it is taken."""
    words = ["CPU", "-p", world.path / "train.yaml", "-m", "train_and_eval", "-o", "run"]
    both = [Child("modelzoo", words, folder, MEMORY) for _ in range(2)]
    outcomes = [c.wait() for c in both]
    for outcome in outcomes:
        if (verdict := weigh(outcome)).kind not in ("ok", "refused"):
            return verdict
    if hash_files(folder, "run/checkpoints/step_6/model.*") != hash_files(world.path, "run/checkpoints/step_6/model.*"):
        return Verdict("silent", "other weights than one process alone")
    codes = sorted(o.code or 0 for o in outcomes)
    return Verdict("ok") if codes in ([0, 75], [0, 0]) else Verdict("lost", f"exit codes {codes}")


ATTACKS["two processes in one folder"] = _two
