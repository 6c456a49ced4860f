"""Last step per unit: kept texts -> ids -> examples -> shards of train and val, and the facts about them."""

import collections
import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from data_preprocessing.config import Job
from data_preprocessing.reports.lengths import EDGES
from data_preprocessing.steps import drops, filters, store
from data_preprocessing.tokens import pack
from data_preprocessing.tokens.shards import ShardWriter
from data_preprocessing.tokens.tokenizing import FIM_TOKENS, Encoder, token_id
from modelzoo.config.errors import UserError
from modelzoo.files import replacing, sha256

SPLITS = ("train", "val")
BATCH_BYTES = 1 << 20
TABLE_BYTES = 32 << 20  # of the documents table that are compressed at a time
COUNTED = 1000  # languages, and licences, that a unit counts by name
CHECKED = 8  # texts per unit on which the fast encoder is compared with the reference,
CHECKED_CHARS = 1 << 18  # and how much of each: the reference takes hundreds of bytes of memory a token


def steps_before(job: Job) -> tuple[str, ...]:
    """The steps whose drops count, in order."""
    return (
        "keys",
        *(["texts"] if job.filters.exact_duplicates else []),
        *(["groups"] if job.filters.near_duplicates else []),
    )


def tokenize_unit(job: Job, out: str, work: str, index: int, buckets: int, encoder: Encoder) -> dict:
    """Tokenize and pack the unit: write its shards and documents table; returns its facts."""
    unit = store.load(work, index)
    reasons = drops.put(drops.load(work, steps_before(job), buckets), index, unit.reasons)
    val = is_val(unit.hashes[:, 0], job.seed, job.val_fraction)
    counts = np.zeros(len(reasons), np.int64)  # tokens per record
    eos = token_id(encoder.reference, job.tokenizer.eos_token, encoder.name)
    build = {"lm": _stream, "vsl": _stream, "fim": _fim, "prompt_completion": _pairs}[job.objective.name]
    batches = read_texts(work, index, unit.lengths, reasons)
    writers = build(job, out, index, encoder, eos, batches, val, counts, reasons, unit)
    for writer in writers.values():
        writer.flush()
    documents, names = _documents_table(work, index, out, reasons, val, counts)
    kept = reasons == 0
    samples = _samples(work, index, unit, reasons)
    return {
        "reasons": {filters.REASONS[c]: int(n) for c, n in enumerate(np.bincount(reasons)) if n},
        "samples": samples,
        "splits": {
            s: {
                "shards": w.done,
                "documents": int((kept & (val == (s == "val"))).sum()),
                "tokens": int(counts[kept & (val == (s == "val"))].sum()),
            }
            for s, w in writers.items()
        },
        "token_lengths": {
            str(int(b)): int(n) for b, n in zip(*np.unique(_bins(counts[kept]), return_counts=True), strict=True)
        },
        "years": {str(y): n for y, n in sorted(collections.Counter(unit.years[kept].tolist()).items())},
        **names,
        "documents_sha256": documents,
    }


def is_val(text_hashes: np.ndarray, seed: int, fraction: float) -> np.ndarray:
    """Which documents are validation, by the hash of the text: equal texts are never on both sides."""
    return uniform(text_hashes, seed, 0) < fraction


def uniform(hashes: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Numbers in [0, 1) that depend on (hash, seed, stream) alone (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = hashes + np.uint64((seed * 0x9E3779B97F4A7C15 + (stream + 1) * 0xD1B54A32D192ED03) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _bins(counts: np.ndarray) -> np.ndarray:
    """The least length of each count's bin; of an empty document's the first."""
    return np.array(EDGES)[np.searchsorted(EDGES, np.maximum(counts, 1), side="right") - 1]


def read_texts(
    work: str, index: int, lengths: np.ndarray, reasons: np.ndarray
) -> Iterator[tuple[np.ndarray, list[bytes]]]:
    """(record numbers, texts) of a unit's kept documents, from about BATCH_BYTES at a time, in order."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    kept = np.flatnonzero(reasons == 0)
    ends = starts[kept + 1]
    with open(store.unit_path(work, "extract", index, ".text"), "rb") as f:
        first = 0
        while first < len(kept):
            last = max(first + 1, int(np.searchsorted(ends, starts[kept[first]] + BATCH_BYTES)))
            records = kept[first:last]
            yield records, _read_spans(f, starts[records].tolist(), starts[records + 1].tolist())
            first = last


def _read_spans(f: BinaryIO, begins: list[int], ends: list[int]) -> list[bytes]:
    """These parts of a file: each by itself where they are few of the bytes between the first and the last."""
    if 4 * sum(end - begin for begin, end in zip(begins, ends, strict=True)) < ends[-1] - begins[0]:
        return [_read_span(f, begin, end) for begin, end in zip(begins, ends, strict=True)]
    data = _read_span(f, begins[0], ends[-1])
    return [data[begin - begins[0] : end - begins[0]] for begin, end in zip(begins, ends, strict=True)]


def _read_span(f: BinaryIO, begin: int, end: int) -> bytes:
    f.seek(begin)
    data = f.read(end - begin)
    if len(data) != end - begin:
        raise UserError(f"{f.name}: shorter than its table; delete the work folder and run again")
    return data


def _check(encoder: Encoder, texts: list[str], done: list) -> None:
    """Tokenize the first texts of every unit with both encoders and compare the ids."""
    if not done:
        encoder.check([text[:CHECKED_CHARS] for text in texts[:CHECKED]])
        done.append(True)


def _writers(job: Job, out: str, index: int, rows: int) -> dict[str, ShardWriter]:
    splits = SPLITS if job.val_fraction > 0 else SPLITS[:1]
    return {
        s: ShardWriter(os.path.join(out, s), index, rows, job.msl, job.shard_tokens, job.compression) for s in splits
    }


def _pack(job: Job, out: str, index: int, eos: int, tokenized) -> dict[str, ShardWriter]:
    """Pack the documents of all batches. `tokenized` yields (flat ids, offsets, is validation) per batch."""
    kind = pack.VslPacker if job.objective.name == "vsl" else pack.StreamPacker
    writers = _writers(job, out, index, kind.rows)
    packers = {s: kind(job.msl, eos, eos, job.objective.tail) for s in writers}
    for flat, offsets, val in tokenized:
        for split, writer in writers.items():
            writer.add(packers[split].add(*select(flat, offsets, val if split == "val" else ~val)))
    for split, writer in writers.items():
        writer.add(packers[split].finish())
    return writers


def select(flat: np.ndarray, offsets: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents that `which` marks, in the same form."""
    if which.all():
        return flat, offsets
    lengths = np.diff(offsets)
    return flat[np.repeat(which, lengths)], np.concatenate([[0], np.cumsum(lengths[which])])


def _stream(job, out, index, encoder, eos, batches, val, counts, reasons, unit) -> dict[str, ShardWriter]:
    def tokenized():
        done = []
        for records, texts in batches:
            texts = [t.decode() for t in texts]
            _check(encoder, texts, done)
            flat, offsets = encoder.encode(texts)
            counts[records] = np.diff(offsets)
            yield flat, offsets, val[records]

    return _pack(job, out, index, eos, tokenized())


def _fim(job, out, index, encoder, eos, batches, val, counts, reasons, unit) -> dict[str, ShardWriter]:
    sentinels = tuple(token_id(encoder.reference, t, encoder.name) for t in FIM_TOKENS)
    draws = np.stack([uniform(unit.hashes[:, 0], job.seed, k) for k in range(1, 5)], axis=1)

    def tokenized():
        done = []
        for records, texts in batches:
            texts = [t.decode() for t in texts]
            _check(encoder, texts, done)
            cuts = [
                pack.fim_segments(t, draws[r], job.objective.fim_rate, job.objective.fim_spm_rate)
                for r, t in zip(records, texts, strict=True)
            ]
            pieces = [p for c, t in zip(cuts, texts, strict=True) for p in ([t] if c is None else c[1:])]
            flat, offsets = encoder.encode(pieces)
            documents, at = [], 0
            for c in cuts:
                ids = [flat[offsets[k] : offsets[k + 1]] for k in range(at, at + (1 if c is None else 3))]
                at += len(ids)
                documents.append(ids[0] if c is None else pack.fim_join(c[0], ids[0], ids[1], ids[2], sentinels))
            counts[records] = [len(d) for d in documents]
            yield np.concatenate(documents), np.concatenate([[0], np.cumsum(counts[records])]), val[records]

    return _pack(job, out, index, eos, tokenized())


def _pairs(job, out, index, encoder, eos, batches, val, counts, reasons, unit) -> dict[str, ShardWriter]:
    writers = _writers(job, out, index, 3)
    done = []
    for records, texts in batches:
        prompts = [t[: unit.prompts[r]].decode() for r, t in zip(records, texts, strict=True)]
        completions = [t[unit.prompts[r] :].decode() for r, t in zip(records, texts, strict=True)]
        _check(encoder, prompts, done)
        p, po = encoder.encode(prompts)
        c, co = encoder.encode(completions)
        for k, r in enumerate(records):
            example = pack.prompt_completion(
                p[po[k] : po[k + 1]], c[co[k] : co[k + 1]], job.msl, eos, eos, job.objective.too_long
            )
            if example is None:
                reasons[r] = filters.CODE["too_long"]
                continue
            counts[r] = (po[k + 1] - po[k]) + (co[k + 1] - co[k])
            split = "val" if val[r] and "val" in writers else "train"
            writers[split].add(example[None])
    return writers


def documents_path(out: str, index: int) -> str:
    """Where the table of a unit's documents goes."""
    return os.path.join(out, "documents", f"{index:05d}.tsv.gz")


def _documents_table(work: str, index: int, out: str, reasons, val, counts) -> tuple[str, dict[str, dict[str, int]]]:
    """OUT/documents/00003.tsv.gz: one line per record of the input with its fate.

    Returns:
        Its SHA-256; and the languages and licences of what was written, with how many documents are of each.
    """
    from zlib_ng import zlib_ng

    path = documents_path(out, index)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    packer = zlib_ng.compressobj(1, wbits=31)
    names = {"languages": collections.Counter(), "licences": collections.Counter()}
    columns = [store.FACTS.index(name) for name in ("language", "licence")]
    with (
        open(store.unit_path(work, "extract", index, ".tsv"), "rb") as facts,
        replacing(path, durable=True) as temporary,
        open(temporary, "wb") as table,
    ):
        part = ["\t".join((*store.FACTS, "reason", "split", "tokens")).encode() + b"\n"]
        held = 0
        for line, r, v, n in zip(facts, reasons, val, counts, strict=True):
            part.append(b"%s\t%s\n" % (line[:-1], _name_fate(int(r), bool(v), int(n))))
            held += len(part[-1])
            if r == 0:
                facts_of = line[:-1].split(b"\t")
                for counter, column in zip(names.values(), columns, strict=True):
                    value = facts_of[column].decode() or "not told"
                    counter[value if value in counter or len(counter) < COUNTED else "others"] += 1
            if held > TABLE_BYTES:
                table.write(packer.compress(b"".join(part)))
                part, held = [], 0
        table.write(packer.compress(b"".join(part)) + packer.flush())
        table.flush()
        return sha256(temporary), {name: dict(counter) for name, counter in names.items()}


def _name_fate(reason: int, val: bool, tokens: int) -> bytes:
    split = ("val" if val else "train") if reason == 0 else ""
    return f"{filters.REASONS[reason]}\t{split}\t{tokens}".encode()


def _samples(work: str, index: int, unit: store.Extracted, reasons: np.ndarray) -> dict:
    """Two records of each reason that only the later steps gave, with the text that they had."""
    starts = np.concatenate([[0], np.cumsum(unit.lengths)])
    chosen = {code: np.flatnonzero((reasons == code) & (unit.lengths > 0))[:2].tolist() for code in np.unique(reasons)}
    wanted = {record for records in chosen.values() for record in records}
    samples = {}
    with (
        open(store.unit_path(work, "extract", index, ".text"), "rb") as f,
        open(store.unit_path(work, "extract", index, ".tsv"), "rb") as facts,
    ):
        keys = {k: line.partition(b"\t")[0].decode() for k, line in enumerate(facts) if k in wanted}
        for code, records in chosen.items():
            for r in records:
                f.seek(int(starts[r]))
                text = f.read(min(int(unit.lengths[r]), 1600)).decode(errors="ignore")[:400]
                samples.setdefault(filters.REASONS[code], []).append({"key": keys[r], "text": text})
    return samples
