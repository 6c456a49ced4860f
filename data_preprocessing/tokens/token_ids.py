"""Token ids that are already there: documents from JSONL with input_ids, and from shards by undoing their packing."""

import itertools
import os
import re
from collections.abc import Iterator

import numpy as np

from data_preprocessing.inputs import listing, streams
from data_preprocessing.tokens import shards
from modelzoo.config.errors import UserError
from modelzoo.data import format as fmt
from modelzoo.data.folder import list_shards
from modelzoo.folders import SHARD_SUFFIXES, add_kind
from modelzoo.reading import parse_json

MAX_UNPACKED = 1 << 34  # bytes of a JSONL file
MAX_LINE = 1 << 28


def find_sources(paths: list[str]) -> list[tuple[str, str]]:
    """(the input as it was given, a file of it) in reading order."""
    found: list[tuple[str, str]] = []
    for path in paths:
        if os.path.isdir(path):
            names = sorted(list_shards(path), key=lambda n: listing.order(os.path.basename(n)))
            if not names:
                raise UserError(add_kind(f"{path}: holds no shards ({', '.join(SHARD_SUFFIXES)})", path))
            found += [(path, name) for name in names]
        elif path.endswith(SHARD_SUFFIXES):
            found.append((path, path))
        else:
            found += [(path, file["path"]) for file in listing.find((path,), "jsonl")]
    return found


def iterate_documents(sources: list[tuple[str, str]], eos: int) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """(flat ids, offsets, file) in pieces of bounded size."""
    for _, group in itertools.groupby(sources, key=lambda source: source[0]):
        names = [name for _, name in group]
        if names[0].endswith(SHARD_SUFFIXES):
            yield from _from_shards(names, eos)
        else:
            for name in names:
                yield from _from_jsonl(name)


def _from_shards(names: list[str], eos: int) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Undo the packing: input ids of counted places in order, cut at EOS.

    The carry crosses windows and the shards of one process; where another process began, a document ends.
    """
    rest, process = np.empty(0, np.int32), None
    for name in names:
        before, process = process, re.sub(r"_\d+\.\w+$", "", os.path.basename(name))
        if len(rest) and before != process:
            yield rest, np.array([0, len(rest)]), name
            rest = rest[:0]
        for batch in shards.batches(name):
            if batch.ndim == 1:
                stream = batch
            elif batch.shape[1] != 3:
                raise UserError(f"{name}: holds rows with document boundaries; pack from the text, or from LM shards")
            else:
                stream = batch[:, 0][batch[:, 1] == 1]
                # The label of the last counted place is the next window's first input, unless the stream ends there:
                # always so where padding follows, perhaps so where it is EOS (a second EOS is an empty document).
                label = batch[-1, 2][np.flatnonzero(batch[-1, 1])[-1:]]
                if not batch[-1, 1].all() or eos in label:
                    stream = np.append(stream, label)
            stream = np.concatenate([rest, _narrow(stream, name)])
            ends = np.flatnonzero(stream == eos)
            if not len(ends):
                rest = stream
                continue
            whole, rest = stream[: ends[-1] + 1], stream[ends[-1] + 1 :]
            lengths = np.diff(np.concatenate([[-1], ends])) - 1
            yield whole[whole != eos], np.concatenate([[0], np.cumsum(lengths[lengths > 0])]), name
    if len(rest):
        yield rest, np.array([0, len(rest)]), names[-1]


def _narrow(ids: np.ndarray, name: str) -> np.ndarray:
    """Token ids as int32, in which a wider number would become another id."""
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) <= fmt.MAX_ID:
        bad = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise UserError(f"{name}: id {bad} is no token id (0 to {fmt.MAX_ID:,})")
    return ids.astype(np.int32)


def _from_jsonl(path: str) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    documents, held = [], 0
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        documents.append(_parse_ids(line, f"{path}:{number}"))
        held += len(documents[-1])
        if held > shards.BATCH:
            yield _join(documents, path)
            documents, held = [], 0
    if documents:
        yield _join(documents, path)


def _join(documents: list[np.ndarray], path: str) -> tuple[np.ndarray, np.ndarray, str]:
    return np.concatenate(documents), np.concatenate([[0], np.cumsum([len(d) for d in documents])]), path


def _lines(path: str) -> Iterator[bytes]:
    """The lines of a file, none of which may have more than MAX_LINE bytes."""
    parts: list[bytes] = []
    held = 0
    for chunk in streams.unpacked(path, MAX_UNPACKED):
        first, *more = chunk.split(b"\n")
        parts.append(first)
        held += len(first)
        if held > MAX_LINE:
            raise UserError(f"{path}: has a line of more than {MAX_LINE:,} bytes; write a document a line")
        if more:
            yield b"".join(parts)
            yield from more[:-1]
            parts, held = [more[-1]], len(more[-1])
    yield b"".join(parts)


def _parse_ids(line: bytes, where: str) -> np.ndarray:
    try:
        found = parse_json(line)
        ids = found["input_ids"] if isinstance(found, dict) else found
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise ValueError("not a flat list of integers")
        return _narrow(np.array(ids, np.int64), where)
    except (ValueError, KeyError, OverflowError) as e:
        reason = " ".join(str(e).split())[:80]
        raise UserError(f"{where}: expected a list of token ids under 'input_ids' ({reason})") from None
