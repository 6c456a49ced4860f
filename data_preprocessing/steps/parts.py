"""One call of one step: a pure function of what the steps before it left on disk, with its marker written last."""

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_preprocessing.config import Job
from data_preprocessing.steps import costs, drops, encode, extract, resolve, store
from data_preprocessing.tokens import shards, tokenizing
from modelzoo.config.errors import UserError
from modelzoo.data.tokenizer import read_tokenizer
from modelzoo.files import naming
from modelzoo.reading import exists, read_text


@dataclass(frozen=True)
class OfJob:
    """Something of a job, and where that works."""

    job: Job

    @property
    def out(self) -> str:
        return self.job.output

    @property
    def work(self) -> str:
        return os.path.join(self.job.output, "work")

    @property
    def buckets(self) -> int:
        return self.job.buckets


@dataclass(frozen=True)
class Part(OfJob):
    """All that a worker is sent to make a call: `job` without its inputs, for they may be many."""

    step: str
    index: int
    files: list[dict]  # of its unit, of a step that has a call per unit
    units: int
    memory: int  # bytes to sort with
    passed: dict[str, int] = field(default_factory=dict)  # of the last step: files that are not read, by kind


def call(part: Part) -> dict:
    """Make one call of one step, and mark it done; runs in a worker.

    Raises:
        OSError: it names the file, or, where the system did not (a full disk), those that the call was writing.
    """
    work, step, index = part.work, part.step, part.index
    with naming(store.unit_path(work, step, index, ".*")):
        meter = costs.Meter()
        value = _make(part)
        bytes_in = sum(file["bytes"] for file in part.files) if step == "extract" else 0
        written = _measure_output(part, value)
        return store.mark_done(work, step, index, value, lambda left: meter.read(bytes_in, written + left))


def describe(part: Part) -> str:
    """What a call works on, for a message."""
    if part.step not in ("extract", "encode"):
        return f"step '{part.step}', part {part.index}"
    names = [file["name"] for file in part.files]
    return f"step '{part.step}', part {part.index} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _measure_output(part: Part, value: dict) -> int:
    """The bytes that a call left for good."""
    if part.step != "encode":
        return 0
    table = encode.documents_path(part.out, part.index)
    return os.path.getsize(table) + sum(s["bytes"] for split in value["splits"].values() for s in split["shards"])


def _make(part: Part) -> dict:
    job, work, step, index = part.job, part.work, part.step, part.index
    if step == "extract":
        for suffix in (".text", ".tsv"):  # written in place: a link there is not written through
            with contextlib.suppress(FileNotFoundError):
                os.remove(store.unit_path(work, step, index, suffix))
        return extract.extract(job, work, index, part.files)
    if step in ("keys", "texts"):
        return getattr(resolve, step)(job, work, index, part.buckets, part.units, part.memory)
    if step in ("near", "groups"):
        from data_preprocessing.steps import minhash

        if step == "groups":
            return minhash.groups(job, work, part.buckets, part.memory)
        return minhash.near(job, work, index, part.buckets, part.units, part.memory)
    if step == "tokenizer":
        return make_tokenizer(part)
    if step == "encode":
        path = os.path.join(part.out, "tokenizer.json")
        encoder = _encoder(path, store.read_marker(work, "tokenizer", 0)["sha256"], job.tokenizer.encoder)
        return encode.tokenize_unit(job, part.out, work, index, part.buckets, encoder)
    from data_preprocessing.steps import finish

    return finish.finish(part)


@functools.lru_cache(maxsize=1)  # loading takes half a second, a unit of work two
def _encoder(path: str, sha256: str, engine: str) -> tokenizing.Encoder:
    try:
        text = read_text(path)
    except UnicodeDecodeError:
        text = ""
    if hashlib.sha256(text.encode()).hexdigest() != sha256:
        raise UserError(f"{path}: is not the tokenizer that this folder was begun with; delete the folder, start anew")
    return tokenizing.Encoder(text, path, engine)


def read_given(path: str) -> str:
    """The text of the tokenizer that a config names."""
    entries = sorted(os.scandir(path), key=lambda e: e.name) if os.path.isdir(path) else []
    found = [os.stat(path), *(e.stat() for e in entries if e.is_file())] if exists(path) else []
    return _read_unchanged(path, tuple((f.st_ino, f.st_size, f.st_mtime_ns) for f in found))


@functools.lru_cache(maxsize=1)  # planning and the step `tokenizer` read it, and reading takes a fifth of a second
def _read_unchanged(path: str, facts: tuple) -> str:
    """`facts` change with the files."""
    return read_tokenizer(path)


def check_given(job: Job) -> str:
    """The text of the tokenizer that a config names: a job of hours is not begun with one that does not fit.

    Raises:
        UserError: it cannot be read, lacks a token, or has larger ids than `vocab_size`.
    """
    config = job.tokenizer
    engine = "gigatoken" if config.encoder == "gigatoken" else "tokenizers"
    encoder = tokenizing.Encoder(read_given(config.path), config.path, engine)
    for token in (config.eos_token, *(tokenizing.FIM_TOKENS if job.objective.name == "fim" else ())):
        tokenizing.token_id(encoder.reference, token, config.path)
    if config.vocab_size and encoder.size > config.vocab_size:
        raise UserError(
            f"{config.path}: has ids up to {encoder.size - 1}, which do not fit vocab_size {config.vocab_size}"
        )
    return encoder.text


def make_tokenizer(part: Part) -> dict:
    """Train on the kept documents of the training split, or copy the given tokenizer."""
    config = part.job.tokenizer
    if config.path == "train":
        special = [config.eos_token, *(tokenizing.FIM_TOKENS if part.job.objective.name == "fim" else [])]
        text = tokenizing.train(_training_texts(part), config.vocab_size or 50257, special)
    else:
        text = check_given(part.job)
    encoder = tokenizing.Encoder(text, config.path, "tokenizers")
    eos = tokenizing.token_id(encoder.reference, config.eos_token, config.path)
    shards.write_bytes(os.path.join(part.out, "tokenizer.json"), text.encode())
    return {"sha256": encoder.sha256, "size": encoder.size, "eos_id": eos}


def _training_texts(part: Part) -> Iterator[list[str]]:
    """Kept documents of the training split, thinned evenly by their hash from about `train_megabytes`."""
    total = sum(store.read_marker(part.work, "extract", u)["text_bytes"] for u in range(part.units))
    share = min(1.0, part.job.tokenizer.train_megabytes * 1e6 / max(total, 1))
    dropped = drops.load(part.work, encode.steps_before(part.job), part.buckets)
    for unit in range(part.units):
        reasons, hashes, lengths = store.load_columns(part.work, unit, "reasons", "hashes", "lengths")
        reasons = drops.put(dropped, unit, reasons)
        reasons[encode.uniform(hashes[:, 0], part.job.seed, 9) >= share] = 255
        reasons[encode.is_val(hashes[:, 0], part.job.seed, part.job.val_fraction)] = 255
        for _, texts in encode.read_texts(part.work, unit, lengths, reasons):
            yield [t.decode() for t in texts]
