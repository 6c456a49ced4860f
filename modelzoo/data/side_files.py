"""The JSON files of a data folder, through strict schemas: our manifest.json, and Model Zoo's data_params.json."""

import os
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from modelzoo.config.errors import UserError
from modelzoo.data import format as f
from modelzoo.reading import exists
from modelzoo.records import Record, check_record, is_inside, is_sealed, read_json

_LARGEST = 2**63 - 1


def _check_name(name: str) -> str:
    if not all(is_inside(part) for part in name.split("/")):
        raise ValueError("names a file outside the folder")
    return name


def _check_plain(name: str) -> str:
    if not is_inside(name):
        raise ValueError("names a file outside the folder")
    return name


Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Id = Annotated[int, Field(ge=0, le=f.MAX_ID)]
Vocabulary = Annotated[int, Field(ge=1, le=f.MAX_ID + 1)]
Msl = Annotated[int, Field(ge=1, le=f.MAX_MSL)]
Name = Annotated[str, AfterValidator(_check_name)]
Plain = Annotated[str, AfterValidator(_check_plain)]


class ShardFacts(Record):
    """What a manifest records of a shard."""

    file: Plain
    sha256: Hash | None = None  # of the file
    data_sha256: Hash | None = None  # of its values
    n_examples: Count | None = None
    loss_tokens: Count | None = None


class Manifest(Record):
    """manifest.json of a split, of a whole output of preprocessing, or of a fine-tuning task."""

    msl: Msl | None = None
    rows: list[str] | None = None
    vocab_size: Vocabulary | None = None
    eos_id: Id | None = None
    pad_id: Id | None = None
    objective: str | None = None
    tokenizer_sha256: Hash | None = None
    n_examples: Count | None = None
    loss_tokens: Count | None = None
    documents: Count | dict[Plain, Hash] | None = None
    tokens: Count | None = None
    shards: list[ShardFacts] | None = None
    files: dict[Name, Hash] | None = None
    splits: dict[Plain, dict[str, Any]] | None = None
    reasons: dict[str, Count] | None = None
    counts: dict[str, Any] | None = None
    task: str | None = None
    self_sha256: Hash | None = None


class Facts(Record):
    """What is read of Model Zoo's data_params.json."""

    eos_id: Id | None = None
    vocab_size: Vocabulary | None = None


class Params(Record):
    """data_params.json: the facts are in a section of their own; older versions had them at the top."""

    post: Facts | None = Field(default=None, alias="post-process")


def read_manifest_file(path: str) -> dict[str, Any]:
    """A manifest, checked; the values are as they are in the file.

    Raises:
        UserError: it cannot be read, a key has no value that fits, a shard is listed twice, counts do not add up, or it
            was changed since it was sealed.
    """
    found = read_json(path, "missing")
    manifest = check_record(found, Manifest, path, "is not a manifest that this version reads")
    shards, seen = manifest.shards or [], set[str]()
    if twice := [s.file for s in shards if s.file in seen or seen.add(s.file)]:
        raise UserError(f"{path}: shards: lists {twice[0]} twice")
    counts = [s.n_examples for s in shards if s.n_examples is not None]
    if counts and len(counts) == len(shards) and manifest.n_examples not in (None, sum(counts)):
        raise UserError(f"{path}: n_examples: {manifest.n_examples:,}, but its shards add up to {sum(counts):,}")
    if manifest.eos_id is not None and manifest.vocab_size is not None and manifest.eos_id >= manifest.vocab_size:
        raise UserError(f"{path}: eos_id: {manifest.eos_id} is outside its vocab_size {manifest.vocab_size}")
    if manifest.self_sha256 is not None and not is_sealed(found):
        raise UserError(f"{path}: has been changed since it was written (its own SHA-256 differs); restore it")
    return found


def read_params(folder: str) -> dict[str, int]:
    """eos_id and vocab_size of a folder's data_params.json, where it has them; empty where there is none.

    Raises:
        UserError: it cannot be read, or a key has no value that fits.
    """
    path = os.path.join(folder, f.DATA_PARAMS)
    if not exists(path):
        return {}
    found = read_json(path, "missing")
    other = "is not a data_params.json that this version reads"
    facts = check_record(found, Params, path, other).post or check_record(found, Facts, path, other)
    return {k: v for k in ("eos_id", "vocab_size") if (v := getattr(facts, k)) is not None}
