"""`verify`: whether every byte of an output folder is as it was written, and every token id is possible."""

import hashlib
import os
from collections.abc import Callable

import numpy as np

from data_preprocessing.inputs import streams
from data_preprocessing.tokens import shards
from modelzoo.config.errors import UserError
from modelzoo.data import format as fmt
from modelzoo.data.folder import NEGATIVE, check_masks, list_shards, open_shard, read_manifest
from modelzoo.folders import SHARD_SUFFIXES, add_kind
from modelzoo.reading import exists
from modelzoo.records import is_sealed


def verify(args) -> int:
    """The verb `verify`: prints every fault; exit code 2 where there is one."""
    top = exists(os.path.join(args.path, "job.json"))
    if not os.path.isdir(args.path):
        raise UserError(f"{args.path}: no such folder")
    faults, checked, size = verify_output(args.path) if top else verify_split(args.path)
    if args.tokens:
        folders = [os.path.join(args.path, s) for s in ("train", "val")] if top else [args.path]
        for folder in folders:
            faults += check_tokens(folder) if exists(folder) else []
    train = os.path.join(args.path, "train") if top else args.path
    if not faults and exists(train) and read_manifest(train).get("n_examples") == 0:
        faults = [f"{train}: holds no example to train on; all is as it was written"]
    if faults:
        raise UserError("\n".join(faults))
    print(f"{args.path}: {checked:,} files, {size / 1e6:,.1f} MB, all as written")
    return 0


def verify_output(out: str) -> tuple[list[str], int, int]:
    """(faults, files checked, bytes checked) of a whole output folder."""
    path = os.path.join(out, fmt.MANIFEST)
    manifest, faults = _read_sealed(out)
    if faults:
        return faults, 1, 0
    if not manifest:
        raise UserError(f"{path}: missing")
    documents = manifest.get("documents") or {}
    if not isinstance(documents, dict):
        return [f"{path}: documents: is not a list of files; not the manifest of a whole output"], 1, 0
    listed = {**(manifest.get("files") or {}), **{f"documents/{n}": sha for n, sha in documents.items()}}
    faults, checked, size = _compare(out, listed)
    if _is_made_anew(out):
        faults = [fault for fault in faults if not fault.startswith(f"{os.path.join(out, 'report.html')}: differs")]
    faults += _strays(os.path.join(out, "documents"), set(documents), ".tsv.gz")
    for split in manifest.get("splits") or {}:
        more = verify_split(os.path.join(out, split))
        faults, checked, size = faults + more[0], checked + more[1], size + more[2]
    return faults, checked, size


def _is_made_anew(out: str) -> bool:
    """Whether report.html is what `report` makes of report.json, as another version than the job's may have done."""
    from data_preprocessing.reports import report as page

    try:
        anew = page.html(page.read_facts(os.path.join(out, "report.json"))).encode()
        return streams.sha256_file(os.path.join(out, "report.html")) == hashlib.sha256(anew).hexdigest()
    except UserError:
        return False


def _read_sealed(folder: str) -> tuple[dict, list[str]]:
    """The manifest of a folder, or what is wrong with it."""
    try:
        manifest = read_manifest(folder)
    except UserError as e:
        return {}, [str(e)]
    if manifest and not is_sealed(manifest):
        return {}, [f"{os.path.join(folder, fmt.MANIFEST)}: has been changed: it has no SHA-256 of itself"]
    return manifest, []


def verify_split(folder: str) -> tuple[list[str], int, int]:
    """The same for one split. Without our manifest (Model Zoo wrote it) the shards are opened and read instead."""
    manifest, faults = _read_sealed(folder)
    if faults:
        return faults, 1, 0
    if not manifest:
        names = list_shards(folder)
        if not names:
            raise UserError(add_kind(f"{folder}: holds neither {fmt.MANIFEST} nor shards", folder))
        faults = [fault for name in names for fault in _try(_read_through, name)]
        return faults, len(names), sum(map(os.path.getsize, names))
    listed = manifest.get("shards") or []
    hashes = {s["file"]: s.get("sha256") for s in listed} | (manifest.get("files") or {})
    faults, checked, size = _compare(folder, hashes)
    faults += _strays(folder, {s["file"] for s in listed}, SHARD_SUFFIXES)
    for s in listed:
        name = os.path.join(folder, s["file"])
        if not any(fault.startswith(f"{name}: ") for fault in faults):
            wanted = (s.get("n_examples"), len(manifest.get("rows") or ()), manifest.get("msl"))
            faults += _try(_check_shape, name, wanted)
    return faults, checked, size


def _try(check: Callable, *args) -> list[str]:
    """What a check refuses, as a fault: one bad file does not hide the others."""
    try:
        check(*args)
    except UserError as e:
        return [str(e)]
    return []


def _read_through(name: str) -> None:
    for _ in shards.batches(name):
        pass
    file, data = open_shard(name)
    with file:
        check_masks(name, data)


def _check_shape(name: str, wanted: tuple) -> None:
    file, data = open_shard(name)
    with file:
        if data.shape != wanted:
            raise UserError(f"{name}: shape {data.shape} is not what the manifest records")
        check_masks(name, data)


def _compare(folder: str, listed: dict[str, str | None]) -> tuple[list[str], int, int]:
    faults, size = [], 0
    for name, sha in sorted(listed.items()):
        path = os.path.join(folder, name)
        if not exists(path):
            faults.append(f"{path}: missing")
        else:
            faults += _try(_check_file, path, sha)
            size += os.path.getsize(path)
    return faults, len(listed), size


def _check_file(path: str, sha: str | None) -> None:
    if streams.sha256_file(path) != sha:
        raise UserError(f"{path}: differs from what was written (SHA-256)")


def _strays(folder: str, listed: set[str], suffixes) -> list[str]:
    if not exists(folder):
        return []
    return [
        f"{os.path.join(folder, n)}: is not in the manifest"
        for n in sorted(os.listdir(folder))
        if n.endswith(suffixes) and not n.startswith(".") and n not in listed
    ]


def check_tokens(folder: str) -> list[str]:
    """Ids within the vocabulary, a mask of zeros and ones, labels that are the next input where the row goes on."""
    try:
        vocab = read_manifest(folder).get("vocab_size")
    except UserError as e:
        return [str(e)]
    return [fault for name in list_shards(folder) for fault in _try(_check_shard_tokens, name, vocab)]


def _check_shard_tokens(name: str, vocab: int | None) -> None:
    for batch in shards.batches(name):
        if batch.ndim == 1:
            continue
        ids, mask, labels = batch[:, 0], batch[:, 1], batch[:, 2]
        if ids.min(initial=0) < 0 or (vocab and max(ids.max(initial=0), labels.max(initial=0)) >= vocab):
            raise UserError(f"{name}: ids outside 0..{vocab}")
        if labels.min(initial=0) < 0:
            raise UserError(f"{name}: holds label {labels.min()}; {NEGATIVE}")
        if not np.isin(mask, (0, 1)).all():
            raise UserError(f"{name}: loss mask holds other values than 0 and 1")
        goes_on = (mask[:, :-1] == 1) & (mask[:, 1:] == 1)
        if batch.shape[1] == 5:
            goes_on &= batch[:, 3, :-1] > 0
        if (labels[:, :-1] != ids[:, 1:])[goes_on].any():
            raise UserError(f"{name}: labels are not the inputs shifted by one")
