"""Structure-aware mutants of what preprocessing and training read: sources, shards, and what is written about them."""

import gzip
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

from tests.faults.artefacts import documents
from tests.faults.check import run_main, snapshot, strayed, weigh
from tests.faults.mutate_hdf5 import mutate_shard
from tests.faults.mutate_json import mutate_json, mutate_json_lines
from tests.faults.mutate_tar import mutate_tar
from tests.faults.mutate_xml import mutate_citations, mutate_record
from tests.faults.part import Verdict
from tests.faults.world import World

_RECORD = re.compile(rb"<PubmedArticle>.*?</PubmedArticle>\s*", re.S)
_PMID = re.compile(rb"<PMID[^>]*>(\d+)")


def run_and_compare(
    program: str, words: Sequence[object], folder: Path, names: Iterable[str], outputs: Iterable[str] = ("out",)
) -> Verdict:
    """Run a command; nothing in `folder` may change but `outputs`, and a refusal holds one of `names`."""
    before = snapshot(folder)
    verdict = weigh(run_main(program, words, folder), names)
    if verdict.kind in ("ok", "refused") and (path := strayed(before, snapshot(folder), outputs)):
        return Verdict("outside", f"{path} was changed")
    return verdict


def _hold(verdict: Verdict, found: Iterable[str], needed: Iterable[str]) -> Verdict:
    """`lost`, if a command took a file and left out records that were not damaged."""
    if verdict.kind == "ok" and (missing := sorted(set(needed) - set(found))):
        return Verdict("lost", f"{len(missing)} undamaged records are missing, {missing[0]} first; exit code 0")
    return verdict


def _read(world: World, folder: Path, source: str, path: str, needed: Iterable[str]) -> Verdict:
    found = documents(world, folder, source, path)
    keys = [json.loads(line)[0] for line in found.digest.splitlines() if line.startswith("[")]
    return _hold(weigh(found.outcome, (path,)), keys, needed)


def _job(world: World, folder: Path, source: str, path: str, needed: Iterable[str], *more: str) -> Verdict:
    """The whole job; its table of documents says what became of each record."""
    words = [source, "--input", path, "--output", "out", *world.job_flags, *more]
    verdict = run_and_compare("data_preprocessing", words, folder, (path, "--input"))
    keys: set[str] = set()
    for table in (folder / "out/documents").glob("*.tsv.gz"):
        keys |= {line.split("\t")[0] for line in gzip.decompress(table.read_bytes()).decode().splitlines()[1:]}
    return _hold(verdict, keys, needed)


def pubmed(world: World, folder: Path, draw: Random) -> Verdict:
    text = gzip.decompress((world.path / "xml/SYNTHETIC_0001.xml.gz").read_bytes())
    records = _RECORD.findall(text)[:8]
    first, last = text.index(records[0]), text.rindex(b"</PubmedArticleSet>")
    head, tail = text[:first], text[last:]
    data, at = mutate_citations(head, records, tail, draw)
    # of a frame without its records nothing is asked
    none = at is None and len(data) <= len(head) + len(tail) + 100
    keys = [] if none else [f"pmid:{_PMID.findall(r)[0].decode()}" for i, r in enumerate(records) if i != at]
    path = draw.choice(("mutant.xml", "mutant.xml.gz"))
    (folder / path).write_bytes(gzip.compress(data, 1) if path.endswith("gz") else data)
    return (
        _read(world, folder, "pubmed", path, keys)
        if draw.random() < 0.85
        else _job(world, folder, "pubmed", path, keys)
    )


def jats(world: World, folder: Path, draw: Random) -> Verdict:
    world.copy("jats/PMC100.nxml", "jats/PMC101.nxml", "jats/PMC102.nxml", to=folder)
    path = folder / "jats/PMC101.nxml"
    text = path.read_bytes()
    at = text.index(b"<article")
    path.write_bytes(text[:at] + mutate_record(text[at:], draw))
    if draw.random() < 0.8:
        return _read(world, folder, "pmc", "jats/PMC101.nxml", [])
    more = draw.choice(([], ["--set", "unreadable=drop"]))
    return _job(world, folder, "pmc", "jats", ["PMC100", "PMC102"], *more)


def article_set(world: World, folder: Path, draw: Random) -> Verdict:
    """Europe PMC's form: several articles in one file, one of them damaged."""
    names = [f"PMC{n}" for n in range(100, 104)]
    texts = [(world.path / f"jats/{name}.nxml").read_bytes() for name in names]
    articles = [text[text.index(b"<article") :] for text in texts]
    at = draw.randrange(len(articles))
    articles[at] = mutate_record(articles[at], draw)
    (folder / "mutant.xml").write_bytes(b"<articles>" + b"\n".join(articles) + b"</articles>")
    needed = [name for i, name in enumerate(names) if i != at]
    if draw.random() < 0.85:
        return _read(world, folder, "pmc", "mutant.xml", needed)
    return _job(world, folder, "pmc", "mutant.xml", needed, *draw.choice(([], ["--set", "unreadable=refuse"])))


def bioc(world: World, folder: Path, draw: Random) -> Verdict:
    texts = [f"Document {k} is about a study of a drug, long enough to be kept by every filter." for k in range(4)]
    passages = [[{"offset": 0, "infons": {"section_type": "INTRO", "type": "paragraph"}, "text": t}] for t in texts]
    listed = [{"id": f"PMC{k}", "infons": {}, "passages": p} for k, p in enumerate(passages, 1)]
    if draw.random() < 0.5:
        data, at = mutate_json_lines(b"".join(json.dumps(d).encode() + b"\n" for d in listed), draw)
        path, needed = "mutant.jsonl", [d["id"] for i, d in enumerate(listed) if i != at]
    else:
        data = mutate_json(json.dumps({"source": "PMC", "documents": listed}).encode(), draw)
        path, needed = "mutant.json", []
    (folder / path).write_bytes(data)
    read = _read if draw.random() < 0.85 else _job
    return read(world, folder, "bioc", path, needed)


def _package(world: World, folder: Path, draw: Random, name: str) -> Verdict:
    members = [(f"PMC000xxxxxx/PMC{n}.nxml", (world.path / f"jats/PMC{n}.nxml").read_bytes()) for n in range(100, 104)]
    data, needed = mutate_tar(members, draw, name.endswith("gz"))
    (folder / name).write_bytes(data)
    keys = [f"PMC{100 + i}" for i in needed]
    if draw.random() < 0.85:
        return _read(world, folder, "pmc", name, keys)
    return _job(world, folder, "pmc", name, keys, *draw.choice(([], ["--set", "unreadable=drop"])))


def tar(world: World, folder: Path, draw: Random) -> Verdict:
    return _package(world, folder, draw, "mutant.tar")


def tar_gz(world: World, folder: Path, draw: Random) -> Verdict:
    return _package(world, folder, draw, "mutant.tar.gz")


def jsonl(world: World, folder: Path, draw: Random) -> Verdict:
    name = draw.choice(("docs", "docs", "pairs", "ids"))
    lines = b"".join((world.path / f"jsonl/{name}.jsonl").read_bytes().splitlines(keepends=True)[:12])
    data, at = mutate_json_lines(lines, draw)
    path = f"mutant_{name}.jsonl"
    (folder / path).write_bytes(data)
    if name == "ids":
        words = ["pack", "--input", path, "--output", "out", "--msl", "16", "--eos_id", "0", "--vocab_size", "320"]
        return run_and_compare("data_preprocessing", words, folder, (path,))
    needed = [f"id:{i}" for i in range(12) if i != at]
    if name == "pairs":
        flags = ("--objective", "prompt_completion", "--set", "filters.min_chars=0")
        return _job(world, folder, "jsonl", path, needed, *flags)
    return (
        _read(world, folder, "jsonl", path, needed)
        if draw.random() < 0.8
        else _job(world, folder, "jsonl", path, needed)
    )


def _read_shards(world: World, folder: Path, draw: Random, names: Sequence[str]) -> Verdict:
    """One of the five readers of a data folder."""
    kind = draw.randrange(5)
    if kind < 2:
        config = folder / "train.yaml"
        text = (world.path / "train.yaml").read_text().replace(str(world.path / "shards"), "shards")
        config.write_text(text.replace("shards/val", str(world.path / "shards/val")))
        words = ["CPU", "-p", config, "-m", "train", "-o", "out", "--set", "trainer.init.loop.max_steps=3"]
        return run_and_compare("modelzoo", words, folder, names)
    words = (["verify", "shards/train", "--tokens"], ["inspect", "shards/train", "--examples", "3"],
             ["pack", "--input", "shards/train", "--output", "out", "--msl", "16"])[kind - 2]  # fmt: skip
    return run_and_compare("data_preprocessing", words, folder, names)


def shard(world: World, folder: Path, draw: Random) -> Verdict:
    world.copy("shards/train", to=folder)
    for extra in sorted((folder / "shards/train").glob("*.h5"))[1:]:
        extra.unlink()
    path = folder / "shards/train/output_chunk_0_0.h5"
    outside = folder / "elsewhere.h5"
    outside.write_bytes(path.read_bytes())
    path.write_bytes(mutate_shard(path.read_bytes(), draw, str(outside)))
    if draw.random() < 0.6:  # a folder of another's making has no manifest to hold its shards to
        (folder / "shards/train/manifest.json").unlink()
    else:
        from modelzoo.records import seal

        facts = json.loads((folder / "shards/train/manifest.json").read_text())
        facts["shards"] = [s for s in facts["shards"] if s["file"] == path.name]
        (folder / "shards/train/manifest.json").write_text(json.dumps(seal(facts)))
    return _read_shards(world, folder, draw, (path.name, "shards/train"))


def data_manifest(world: World, folder: Path, draw: Random) -> Verdict:
    world.copy("shards", to=folder)
    name = draw.choice(
        (
            "train/manifest.json",
            "train/manifest.json",
            "manifest.json",
            "train/data_params.json",
            "report.json",
            "job.json",
        )
    )
    path = folder / "shards" / name
    path.write_bytes(mutate_json(path.read_bytes(), draw))
    names = (path.name, "shards")
    if name.startswith("train"):
        return _read_shards(world, folder, draw, names)
    if name == "job.json":
        words = ["pubmed", "--input", world.path / "xml", "--output", "shards", *world.job_flags]
        return run_and_compare("data_preprocessing", words, folder, names, ("shards",))
    verb = "report" if name == "report.json" else draw.choice(("verify", "report"))
    return run_and_compare("data_preprocessing", [verb, "shards"], folder, names, ("shards/report.html",))


KINDS = {"PubMed XML": pubmed, "JATS XML": jats, "JATS set": article_set, "tar": tar, "tar.gz": tar_gz,
         "BioC-JSON": bioc, "JSONL": jsonl, "HDF5 shard": shard, "data manifest": data_manifest}  # fmt: skip
