"""First step, one call per unit: input files -> texts, facts and a reason per record."""

import collections
import functools
import os
from array import array

import numpy as np

from data_preprocessing.config import Job
from data_preprocessing.inputs import streams
from data_preprocessing.steps import filters, store
from data_preprocessing.text.document import Document, refuse_if_unreadable

SAMPLES = 2  # per reason and unit, for the report
SAMPLE_CHARS = 400
WRITTEN_AT_ONCE = 1 << 20  # bytes


def documents(job: Job, path: str, name: str, passed: collections.Counter[str] | None = None):
    """The documents of one input file. `passed` counts the members of a package that are not read."""
    limit = int(job.max_file_gigabytes * 1e9)
    if job.source == "pubmed":
        from data_preprocessing.sources import pubmed

        return refuse_if_unreadable(pubmed.documents(path, job.text, limit, job.unreadable, name), path)
    if job.source == "pmc":
        from data_preprocessing.sources import pmc

        return pmc.documents(path, job.text, limit, job.unreadable, name, passed)
    if job.source == "bioc":
        from data_preprocessing.sources import bioc

        return bioc.documents(path, job.text, limit, job.unreadable, name, passed)
    from data_preprocessing.sources import jsonl

    return refuse_if_unreadable(jsonl.documents(path, name, job, limit), path)


def extract(job: Job, work: str, index: int, files: list[dict]) -> dict:
    """Extract one unit; returns its facts. `files`: [{"path", "name"}]."""
    os.makedirs(os.path.join(work, "extract"), exist_ok=True)
    chain = filters.build(job.filters, job.kinds, _benchmark(job))
    rows = _Rows()
    hashes, samples = {}, collections.defaultdict(list)
    passed: collections.Counter[str] = collections.Counter()
    text_path = store.unit_path(work, "extract", index, ".text")
    tsv_path = store.unit_path(work, "extract", index, ".tsv")
    with open(text_path, "wb", WRITTEN_AT_ONCE) as texts, open(tsv_path, "wb", WRITTEN_AT_ONCE) as facts:
        for file in files:
            before = len(rows.keys)
            for document in documents(job, file["path"], file["name"], passed):
                if document.deleted:
                    rows.delete(document.key)
                    continue
                filters.mark(document, job.kinds)
                reason = filters.find_reason(document, chain)
                rows.add(document, reason, texts)
                facts.write(_fact_line(document, file["name"]))
                name = filters.REASONS[reason]
                if len(samples[name]) < SAMPLES:
                    samples[name].append({"key": document.key, "text": document.text[:SAMPLE_CHARS]})
            hashes[file["name"]] = {
                "sha256": streams.sha256_file(file["path"]),
                "bytes": os.path.getsize(file["path"]),
                "records": len(rows.keys) - before,
            }
    extracted = rows.arrays()
    store.save(store.unit_path(work, "extract", index, ".npz"), extracted)
    if job.filters.near_duplicates:
        from data_preprocessing.steps import minhash

        minhash.sign_unit(job, work, index, extracted)
    years = collections.Counter(extracted.years.tolist())
    return {
        "files": hashes,
        "records": len(extracted.keys),
        "delete_orders": len(extracted.deleted),
        "kept_so_far": int((extracted.reasons == 0).sum()),
        "text_bytes": int(extracted.lengths.sum()),
        "samples": samples,
        "years": {str(y): n for y, n in sorted(years.items())},
        "passed_over": dict(sorted(passed.items())),
    }


def _benchmark(job: Job):
    if not job.filters.decontaminate:
        return None
    return _load_benchmark(job.filters.decontaminate, job.filters.decontaminate_ngram)


@functools.lru_cache(maxsize=1)  # a process reads the test sets once, not for every unit
def _load_benchmark(paths: tuple[str, ...], n: int):
    from data_preprocessing.steps import decontaminate

    return decontaminate.load(paths, n)


def _fact_line(d: Document, name: str) -> bytes:
    values = (
        d.key,
        d.pmid,
        d.pmcid,
        str(d.version),
        str(d.year or ""),
        d.language,
        d.licence,
        ",".join(d.kinds),
        name,
        d.source,
    )
    line = "\t".join(values)
    if line.count("\t") != len(values) - 1 or "\n" in line or "\r" in line:
        line = "\t".join(" ".join(value.split()) for value in values)
    return (line + "\n").encode()


class _Rows:
    """Columns that grow record by record, in 51 bytes a record: a file may hold millions."""

    def __init__(self):
        self.versions, self.dates, self.years, self.reasons = array("i"), array("i"), array("h"), bytearray()
        self.lengths, self.hashes, self.prompts = array("q"), bytearray(), array("q")
        self.deleted, self.deleted_at = bytearray(), array("q")
        self.keys = _Bytes(8)

    def add(self, d: Document, reason: int, texts) -> None:
        self.keys.append(filters.key_hash(d.key))
        self.versions.append(d.version)
        self.dates.append(d.date)
        self.years.append(d.year)
        self.reasons.append(reason)
        if reason:
            self.lengths.append(0)
            self.prompts.append(0)
            self.hashes += bytes(16)
            return
        prompt, body = (d.prompt or "").encode(), d.text.encode()
        texts.write(prompt + body)
        self.lengths.append(len(prompt) + len(body))
        self.prompts.append(len(prompt))
        self.hashes += filters.text_hash(d.text if d.prompt is None else d.prompt + "\0" + d.text)

    def delete(self, key: str) -> None:
        self.deleted += filters.key_hash(key)
        self.deleted_at.append(len(self.keys))

    def arrays(self) -> store.Extracted:
        return store.Extracted(
            keys=np.frombuffer(self.keys.data, "<u8"),
            versions=np.frombuffer(self.versions, np.int32),
            dates=np.frombuffer(self.dates, np.int32),
            years=np.frombuffer(self.years, np.int16),
            reasons=np.frombuffer(self.reasons, np.uint8),
            lengths=np.frombuffer(self.lengths, np.int64),
            hashes=np.frombuffer(self.hashes, "<u8").reshape(-1, 2),
            prompts=np.frombuffer(self.prompts, np.int64),
            deleted=np.frombuffer(self.deleted, "<u8"),
            deleted_at=np.frombuffer(self.deleted_at, np.int64),
        )


class _Bytes:
    """Fixed-size byte strings end to end, with a length in items."""

    def __init__(self, width: int):
        self.width, self.data = width, bytearray()

    def append(self, value: bytes) -> None:
        self.data += value

    def __len__(self) -> int:
        return len(self.data) // self.width
