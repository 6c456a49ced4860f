"""`pack`: token ids that are already there (JSONL with input_ids, or shards) into shards of another length."""

import contextlib
import os
from collections.abc import Iterator

import numpy as np

from data_preprocessing.inputs import listing, streams
from data_preprocessing.tokens import pack, shards
from data_preprocessing.tokens.token_ids import find_sources, iterate_documents
from modelzoo import files
from modelzoo.config.errors import UserError
from modelzoo.data import format as fmt
from modelzoo.data.folder import read_manifest
from modelzoo.data.side_files import read_params
from modelzoo.reading import exists
from modelzoo.records import is_sealed, seal


def run(args) -> int:
    """Run the verb `pack`; returns the exit code. A call that fails or is killed leaves the output as it was, or whole.

    Raises:
        UserError: the output folder holds something else or is in the input's, the input holds pairs or ids that do not
            fit the vocabulary, or no EOS id is known.
    """
    _check_output(args.output)
    listing.refuse_inside(args.output, args.input)
    sources = find_sources(args.input)
    facts = _facts(args.input)
    if facts.get("objective") == "prompt_completion":
        raise UserError(f"{args.input[0]}: holds prompt/completion pairs; pack those from their text with `jsonl`")
    eos = args.eos_id if args.eos_id is not None else facts.get("eos_id")
    vocab = args.vocab_size if args.vocab_size is not None else facts.get("vocab_size")
    if eos is None:
        raise UserError("--eos_id is missing (no manifest.json or data_params.json next to the input has it)")
    if not 8 <= args.msl <= fmt.MAX_MSL:
        raise UserError(f"--msl {args.msl}: at least 8 and at most {fmt.MAX_MSL:,}")
    if vocab is not None and not 1 <= vocab <= fmt.MAX_ID + 1:
        raise UserError(f"--vocab_size {vocab}: at least 1 and at most {fmt.MAX_ID + 1:,}")
    if not 0 <= eos < (fmt.MAX_ID + 1 if vocab is None else vocab):
        raise UserError(f"--eos_id {eos}: is outside the vocabulary ({'unknown' if vocab is None else vocab} ids)")
    settings = {name: getattr(args, name) for name in ("msl", "objective", "tail", "compression", "shard_tokens")}
    settings |= {"eos_id": eos, "vocab_size": vocab}
    manifest = _read_finished(args.output, settings, sources)
    done = ""
    if manifest is not None:
        done = "; it was packed by this command before"
    else:
        made_from = {"settings": settings, "inputs": [_measure(path, True) for _, path in sources]}
        with _making_output(args.output) as folder:
            manifest = _write_folder(args, folder, facts, eos, vocab, sources, made_from)
    print(
        f"{args.output}: {manifest['documents']:,} documents, {manifest['tokens']:,} tokens, "
        f"{manifest['n_examples']:,} examples of {args.msl:,}{done}"
    )
    return 0


def _check_output(output: str) -> None:
    """Refuse an output that is neither a folder nor could become one."""
    if os.path.isdir(output):
        if os.path.ismount(output):
            raise UserError(f"{output}: is a mount point; give a new folder in it")
    elif os.path.exists(output):
        raise UserError(f"{output}: is not a folder; give a new folder")


def _read_finished(output: str, settings: dict, sources: list[tuple[str, str]]) -> dict | None:
    """The manifest of an output that the same command has made; None where there is nothing yet.

    A kill may come after the folder took its name, and before the command could report it.

    Raises:
        UserError: something else is there: other settings, other inputs, or a shard is missing.
    """
    if not os.path.isdir(output) or not os.listdir(output):
        return None
    refused = UserError(f"{output}: is not empty; give a new folder")
    try:
        manifest = read_manifest(output)
    except UserError:
        raise refused from None
    made_from = manifest.get("made_from")
    if not is_sealed(manifest) or not isinstance(made_from, dict) or made_from.get("settings") != settings:
        raise refused
    there = all(_has_size(os.path.join(output, shard["file"]), shard["bytes"]) for shard in manifest["shards"])
    for with_hash in (False, True):  # a hash takes time, and is not asked for where a size differs
        found = [_measure(path, with_hash) for _, path in sources]
        known = [{key: file.get(key) for key in found[0]} for file in made_from.get("inputs", ())]
        if not there or found != known:
            raise refused
    return manifest


def _has_size(path: str, size: int) -> bool:
    return exists(path) and os.path.getsize(path) == size


def _measure(path: str, with_hash: bool) -> dict:
    """What an input is known by."""
    facts = {"name": os.path.basename(path), "bytes": os.path.getsize(path)}
    return facts | ({"sha256": streams.sha256_file(path)} if with_hash else {})


@contextlib.contextmanager
def _making_output(output: str) -> Iterator[str]:
    """A temporary folder that becomes `output` when the body ends."""
    target = os.path.realpath(output)  # where a link leads: a folder takes no link's place
    with files.making_folder(target) as folder:
        try:
            yield folder
        except UserError as e:
            raise UserError(str(e).replace(folder, output)) from None
        files.sync(folder)
    files.sync(os.path.dirname(target))


def _write_folder(args, folder: str, facts: dict, eos: int, vocab: int | None, sources: list, made_from: dict) -> dict:
    """Write the shards and their side files; returns the manifest."""
    done, documents, tokens = _write_shards(args, folder, eos, vocab, sources)
    if not done:
        tail = "" if args.tail == "pad" else f", or no window of {args.msl} with --tail drop"
        raise UserError(f"{args.input[0]}: gives no example: {documents:,} documents of {tokens:,} tokens{tail}")
    manifest = {
        "format_version": fmt.FORMAT_VERSION,
        "split": os.path.basename(os.path.abspath(args.output)),
        "msl": args.msl,
        "rows": list(fmt.VSL_ROWS if args.objective == "vsl" else fmt.ROWS),
        "vocab_size": vocab,
        "eos_id": eos,
        "pad_id": eos,
        "objective": args.objective,
        "tokenizer_sha256": facts.get("tokenizer_sha256"),
        "n_examples": sum(s["n_examples"] for s in done),
        "loss_tokens": sum(s["loss_tokens"] for s in done),
        "documents": documents,
        "tokens": tokens,
        "shards": done,
        "made_from": made_from,
    }
    _write_side_files(folder, manifest)
    return manifest


def _write_shards(args, folder: str, eos: int, vocab: int | None, sources: list) -> tuple[list[dict], int, int]:
    """Pack the input's documents; returns the shards' facts and the numbers of documents and tokens."""
    kind = pack.VslPacker if args.objective == "vsl" else pack.StreamPacker
    packer = kind(args.msl, eos, eos, args.tail)
    writer = shards.ShardWriter(folder, 0, kind.rows, args.msl, args.shard_tokens, args.compression)
    documents = tokens = 0
    for flat, offsets, name in iterate_documents(sources, eos):
        if len(flat) and (flat.min() < 0 or (vocab is not None and flat.max() >= vocab)):
            bad = flat[(flat < 0) | (flat >= (vocab if vocab is not None else np.inf))][0]
            raise UserError(f"{name}: id {bad} does not fit vocab_size {vocab}")
        documents, tokens = documents + len(offsets) - 1, tokens + len(flat)
        writer.add(packer.add(flat, offsets))
    writer.add(packer.finish())
    writer.flush()
    return writer.done, documents, tokens


def _write_side_files(output: str, manifest: dict) -> None:
    """Write data_params.json as Model Zoo does, and the sealed manifest, which has its hash."""
    params = os.path.join(output, fmt.DATA_PARAMS)
    shards.write_json(
        params,
        {
            "processing": {"max_seq_length": manifest["msl"]},
            "dataset": {"use_vsl": manifest["objective"] == "vsl"},
            "post-process": {
                "n_examples": manifest["n_examples"],
                "features": manifest["rows"],
                "vocab_size": manifest["vocab_size"],
                "eos_id": manifest["eos_id"],
                "pad_id": manifest["pad_id"],
                "loss_valid_tokens": manifest["loss_tokens"],
                "num_tokens": manifest["tokens"],
            },
        },
    )
    hashes = {fmt.DATA_PARAMS: streams.sha256_file(params)}
    shards.write_json(os.path.join(output, fmt.MANIFEST), seal(manifest | {"files": hashes}))


def _facts(paths: list[str]) -> dict:
    """eos_id, vocab_size and other facts of the input's side files."""
    for path in paths:
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        if manifest := read_manifest(folder):
            return manifest
        if params := read_params(folder):
            return params
    return {}
