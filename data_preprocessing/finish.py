"""The closing step: counts that must add up, manifests, Model Zoo's side file, and the report."""

import collections
import hashlib
import os

from data_preprocessing import encode, report, shards, store, streams
from data_preprocessing.filters import REASONS
from data_preprocessing.tokens import token_id
from modelzoo.config.errors import UserError
from modelzoo.data import format as fmt
from modelzoo.data.tokenizer import parse_tokenizer
from modelzoo.reading import read_bytes
from modelzoo.records import seal


def finish(plan) -> dict:
    """Write everything that describes the whole output; returns and stores the summary."""
    read = [store.read_marker(plan.work, "extract", u) for u in range(len(plan.units))]
    written = [store.read_marker(plan.work, "encode", u) for u in range(len(plan.units))]
    tokenizer = store.read_marker(plan.work, "tokenizer", 0)
    reasons = collections.Counter()
    for part in written:
        reasons.update(part["reasons"])
    records = sum(part["records"] for part in read)
    if records != sum(reasons.values()):
        raise AssertionError(f"{records} records were read but {sum(reasons.values())} are accounted for")
    splits = {}
    for split in encode.SPLITS[: 1 if plan.job.val_fraction == 0 else 2]:
        splits[split] = _split(plan, split, [part["splits"][split] for part in written], tokenizer)
    names = {name: file for part in read for name, file in part["files"].items()}
    manifest = {
        "format_version": fmt.FORMAT_VERSION,
        "records": records,
        "reasons": _ordered(reasons),
        "delete_orders": sum(part["delete_orders"] for part in read),
        "tokenizer_sha256": tokenizer["sha256"],
        "inputs": {name: names[name] for name in sorted(names)},
        "splits": {
            split: {k: v for k, v in value.items() if k not in ("shards", "files")} for split, value in splits.items()
        },
        "data_sha256": _digest(splits),
        "documents": {f"{u:05d}.tsv.gz": part["documents_sha256"] for u, part in enumerate(written)},
    }
    facts = _facts(plan, read, written, manifest)
    shards.write_json(os.path.join(plan.out, "report.json"), facts, sort=False)
    shards.write_bytes(os.path.join(plan.out, "report.html"), report.html(facts).encode())
    manifest["files"] = _files(plan.out, splits)
    shards.write_json(os.path.join(plan.out, fmt.MANIFEST), seal(manifest))
    return store.mark_done(
        plan.work,
        "finish",
        0,
        {
            "records": records,
            "reasons": manifest["reasons"],
            "splits": manifest["splits"],
            "data_sha256": manifest["data_sha256"],
            "passed_over": facts["passed_over"],
        },
    )


def _passed_over(plan, read: list[dict]) -> dict[str, int]:
    """Files and members of packages that are not read, by kind."""
    total = collections.Counter(plan.passed)
    for part in read:
        total.update(part.get("passed_over", {}))  # parts of an older run have none
    return dict(sorted(total.items()))


def _ordered(reasons: collections.Counter) -> dict[str, int]:
    return {reason: reasons[reason] for reason in REASONS if reasons[reason]}


def _split(plan, split: str, parts: list[dict], tokenizer: dict) -> dict:
    """manifest.json and data_params.json of one split."""
    job = plan.job
    folder = os.path.join(plan.out, split)
    os.makedirs(folder, exist_ok=True)
    rows = fmt.VSL_ROWS if job.objective.name == "vsl" else fmt.ROWS
    eos = _eos(plan, tokenizer["sha256"])
    listed = [shard for part in parts for shard in part["shards"]]
    manifest = {
        "format_version": fmt.FORMAT_VERSION,
        "split": split,
        "msl": job.msl,
        "rows": list(rows),
        "vocab_size": max(tokenizer["size"], job.tokenizer.vocab_size or 0),
        "eos_id": eos,
        "pad_id": eos,
        "tokenizer_sha256": tokenizer["sha256"],
        "objective": job.objective.name,
        "n_examples": sum(s["n_examples"] for s in listed),
        "loss_tokens": sum(s["loss_tokens"] for s in listed),
        "documents": sum(p["documents"] for p in parts),
        "tokens": sum(p["tokens"] for p in parts),
        "shards": listed,
    }
    params = os.path.join(folder, fmt.DATA_PARAMS)
    shards.write_json(
        params,
        {
            "processing": {"max_seq_length": job.msl, "write_in_batch": False},
            "dataset": {"use_vsl": job.objective.name == "vsl", "training_objective": job.objective.name},
            "post-process": {
                "n_examples": manifest["n_examples"],
                "features": list(rows),
                "vocab_size": manifest["vocab_size"],
                "eos_id": eos,
                "pad_id": eos,
                "loss_valid_tokens": manifest["loss_tokens"],
                "num_tokens": manifest["tokens"],
                "successful_files": len({s["file"] for s in listed}),
            },
        },
    )
    manifest["files"] = {fmt.DATA_PARAMS: streams.sha256_file(params)}
    shards.write_json(os.path.join(folder, fmt.MANIFEST), seal(manifest))
    return manifest


def _eos(plan, sha256: str) -> int:
    path = os.path.join(plan.out, fmt.TOKENIZER)
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{path}: has changed since this folder was begun; delete the folder, and start anew")
    return token_id(parse_tokenizer(data.decode(), path), plan.job.tokenizer.eos_token, path)


def _digest(splits: dict) -> str:
    """One hash of all token data, whatever the compression."""
    digest = hashlib.sha256()
    for split, value in splits.items():
        for shard in value["shards"]:
            digest.update(f"{split}/{shard['file']} {shard['data_sha256']}\n".encode())
    return digest.hexdigest()


def _files(out: str, splits: dict) -> dict[str, str]:
    """SHA-256 of the files that are not shards or document tables (those have their own)."""
    names = [fmt.TOKENIZER, "job.json", "report.json", "report.html", *(f"{s}/{fmt.MANIFEST}" for s in splits)]
    return {name: streams.sha256_file(os.path.join(out, name)) for name in names}


def _facts(plan, read: list[dict], written: list[dict], manifest: dict) -> dict:
    """The facts of the report."""
    total = {name: collections.Counter() for name in ("languages", "licences", "years", "token_lengths")}
    for part in read:
        for name in ("languages", "licences"):
            total[name].update(part[name])
    for part in written:
        total["years"].update(part["years"])
        total["token_lengths"].update(part["token_lengths"])
    samples: dict[str, list] = {}
    for part in read:  # what was kept here may yet have been dropped by a later step, so those samples wait
        for reason, found in part["samples"].items():
            if reason != "written":
                samples.setdefault(reason, []).extend(found)
    for part in written:
        for reason, found in part["samples"].items():
            samples.setdefault(reason, []).extend(found)
    text_bytes = sum(part["text_bytes"] for part in read)
    return {
        "job": plan.job.model_dump(mode="json", exclude={"input": True, "output": True, "tokenizer": {"path"}}),
        "manifest": {k: v for k, v in manifest.items() if k != "inputs"},
        "inputs": manifest["inputs"],
        "text_bytes": text_bytes,
        "passed_over": _passed_over(plan, read),
        **{name: dict(sorted(c.items(), key=_numeric)) for name, c in total.items()},
        "samples": {reason: found[:4] for reason, found in samples.items()},
    }


def _numeric(item: tuple[str, int]) -> tuple:
    return (0, int(item[0]), "") if item[0].isdigit() else (1, 0, item[0])
