"""What commands read, one by one: the files that are damaged, how they are read, and what may come of it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.check import hash_files, run_function, run_main
from tests.faults.child import Outcome
from tests.faults.world import World


class Read(NamedTuple):
    """What came of reading: how it ended, and a digest of what was read (or made from it)."""

    outcome: Outcome
    digest: str


class Artefact(NamedTuple):
    """One kind of thing that a command reads.

    Attributes:
        name: of it.
        needs: files and folders of the world that are copied.
        files: a pattern of those that are damaged.
        read: reads the copy in a folder: a command, or the functions that commands use where that is much quicker.
        sealed: whether a checksum covers it, so that a read that succeeds must have read what was written.
        says: a word that a command must print where it goes on with other content (of logs); "" if it need not.
        prepare: changes the copy before it is damaged.
    """

    name: str
    needs: tuple[str, ...]
    files: str
    read: Callable[[World, Path], Read]
    sealed: bool = True
    says: str = ""
    prepare: Callable[[World, Path], None] = lambda world, folder: None


def _print_state(path: Path) -> None:
    from modelzoo.training.checkpoints import checkpoint

    files, state = checkpoint.load(str(path))
    sums = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    for stem in sorted(files):
        for name, x in sorted(files[stem].items()):
            sums.update(f"{stem} {name} {x.dtype} {list(x.shape)}".encode() + x.contiguous().view(-1).numpy().tobytes())
    print(sums.hexdigest())


def _checkpoint(world: World, folder: Path) -> Read:
    outcome = run_function(lambda: _print_state(Path("run/checkpoints/step_6")), folder)
    return Read(outcome, outcome.out.strip())


def resume(world: World, folder: Path) -> Read:
    """Train on to step 6; what counts are the weights there."""
    outcome = run_main(
        "modelzoo", ["CPU", "-p", world.path / "train.yaml", "-m", "train_and_eval", "-o", "run"], folder
    )
    return Read(outcome, hash_files(folder, "run/checkpoints/step_6/*.safetensors"))


def _cut_run(world: World, folder: Path) -> None:
    """The run was killed after step 4."""
    import shutil

    shutil.rmtree(folder / "run/checkpoints/step_6")


def _resume_log(world: World, folder: Path) -> Read:
    found = resume(world, folder)
    lines = (folder / "run/metrics.jsonl").read_bytes() if (folder / "run/metrics.jsonl").exists() else b""
    return Read(found.outcome, found.digest + hashlib.sha256(lines).hexdigest())


def _verify(world: World, folder: Path) -> Read:
    """`verify` says whether all is as written; whatever it lets pass must be."""
    outcome = run_main("data_preprocessing", ["verify", "shards"], folder)
    listed = [p for p in ("shards/train", "shards/val", "shards/documents") if (folder / p).exists()]
    sums = [hash_files(folder / p, "*") for p in listed]
    return Read(
        outcome,
        " ".join([*sums, hash_files(folder, "shards/tokenizer.json"), hash_files(folder, "shards/manifest.json")]),
    )


def _train(world: World, folder: Path) -> Read:
    """Train on the copied shards, as far as every example of them."""
    config = folder / "train.yaml"
    config.write_text((world.path / "train.yaml").read_text().replace(str(world.path / "shards"), "shards"))
    words = ["CPU", "-p", config, "-m", "train", "-o", "out", "--set", "trainer.init.loop.max_steps=25"]
    outcome = run_main("modelzoo", words, folder)
    return Read(outcome, hash_files(folder, "out/checkpoints/step_25/*.safetensors"))


def _import_export(world: World, folder: Path) -> Read:
    outcome = run_main("modelzoo", ["import", "export", "out"], folder)
    return Read(outcome, hash_files(folder, "out/checkpoints/step_0/*.safetensors") + hash_files(folder, "out/*.json"))


def _import_mdl(world: World, folder: Path) -> Read:
    outcome = run_main("modelzoo", ["import", "model.mdl", "out", "-p", world.path / "train.yaml"], folder)
    return Read(outcome, hash_files(folder, "out/checkpoints/*/*"))


def _tokenizer(world: World, folder: Path) -> Read:
    def load() -> None:
        from modelzoo.data.tokenizer import load_tokenizer

        found = load_tokenizer("tokenizer.json")
        print(found.size, found.encode("aspirin lowers fever"))

    outcome = run_function(load, folder)
    return Read(outcome, outcome.out)


def _finetune(world: World, folder: Path) -> Read:
    words = ["CPU", "-p", world.path / "tune.yaml", "-m", "finetune", "--checkpoint_path", "run", "-o", "tuned"]
    outcome = run_main("modelzoo", words, folder)
    return Read(outcome, hash_files(folder, "tuned/results.json"))


def documents(world: World, folder: Path, source: str, path: str, **job: Any) -> Read:
    """The documents of one input file, as a job reads them; the digest is one line each."""

    def load() -> None:
        from data_preprocessing.config import Job
        from data_preprocessing.steps.extract import documents

        config = Job.model_validate({"source": source, "input": (path,), "output": "out", **job})
        for d in documents(config, path, path):
            print(json.dumps([d.key, d.version, hashlib.sha256(d.text.encode()).hexdigest()]))

    outcome = run_function(load, folder)
    return Read(outcome, outcome.out)


def _documents_of(source: str, path: str) -> Callable[[World, Path], Read]:
    return lambda world, folder: documents(world, folder, source, path)


def _count_of(source: str, path: str) -> Callable[[World, Path], Read]:
    """A plain package has no checksum over its articles: what counts is that none is missing."""

    def read(world: World, folder: Path) -> Read:
        found = documents(world, folder, source, path)
        return Read(found.outcome, str(found.digest.count("\n")))

    return read


JOB = ("extract", "keys", "texts", "groups", "tokenizer", "encode")


def _begin_job(world: World, folder: Path) -> None:
    """A job that was killed before its last step."""
    for step in JOB:
        words = ["jsonl", "--input", world.path / "jsonl/docs.jsonl", "--output", "out", *world.job_flags]
        found = run_main("data_preprocessing", [*words, "--share", "0/1", "--step", step], folder)
        assert found.code == 0, found.err


def _end_job(world: World, folder: Path) -> Read:
    words = ["jsonl", "--input", world.path / "jsonl/docs.jsonl", "--output", "out", *world.job_flags]
    outcome = run_main("data_preprocessing", words, folder)
    check = outcome if outcome.code else run_main("data_preprocessing", ["verify", "out"], folder)
    return Read(check, hash_files(folder, "out/*/*.h5") + hash_files(folder, "out/documents/*"))


RUN, XML = ("run",), "xml/SYNTHETIC_0001.xml.gz"
ARTEFACTS = {
    a.name: a
    for a in (
        Artefact("checkpoint", ("run/checkpoints/step_6",), "run/checkpoints/step_6/*", _checkpoint),
        Artefact("checkpoint, resumed", RUN, "run/checkpoints/step_6/*", resume),
        Artefact("shards", ("shards",), "shards/*/*", _verify),
        Artefact("shards, trained on", ("shards/train", "shards/val"), "shards/train/*", _train),
        Artefact("export", ("export",), "export/*", _import_export),
        Artefact("mdl", ("model.mdl",), "model.mdl", _import_mdl),
        Artefact("tokenizer", ("tokenizer.json",), "tokenizer.json", _tokenizer, sealed=False),
        Artefact("tokenizer of shards", ("shards",), "shards/tokenizer.json", _verify),
        Artefact("result", ("run", "tuned"), "tuned/fold_0/seed_1/*.json*", _finetune, sealed=False),
        Artefact("metrics log", RUN, "run/metrics.jsonl", _resume_log, says="metrics.jsonl", prepare=_cut_run),
        Artefact("timing log", RUN, "run/timing.jsonl", resume, prepare=_cut_run),
        Artefact("launches log", RUN, "run/launches.jsonl", resume, prepare=_cut_run),
        Artefact("run's config", RUN, "run/config.yaml", resume, prepare=_cut_run),
        Artefact("job's state", (), "out/**/*", _end_job, prepare=_begin_job),
        Artefact("pubmed .xml.gz", ("xml",), XML, _documents_of("pubmed", XML)),
        Artefact("package.tar.gz", ("jats",), "jats/package.tar.gz", _documents_of("pmc", "jats/package.tar.gz")),
        Artefact("package.tar", ("jats",), "jats/package.tar", _count_of("pmc", "jats/package.tar")),
        Artefact("article", ("jats",), "jats/PMC100.nxml", _documents_of("pmc", "jats/PMC100.nxml"), sealed=False),
        Artefact("JSONL", ("jsonl",), "jsonl/docs.jsonl", _documents_of("jsonl", "jsonl/docs.jsonl"), sealed=False),
    )
}  # fmt: skip
