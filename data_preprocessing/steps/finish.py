"""The closing step: counts that must add up, manifests, Model Zoo's side file, and the report."""

import collections
import hashlib
import os

from data_preprocessing.inputs import streams
from data_preprocessing.reports import report
from data_preprocessing.steps import encode, store
from data_preprocessing.steps.filters import REASONS
from data_preprocessing.steps.parts import Part
from data_preprocessing.tokens import shards
from data_preprocessing.tokens.tokenizing import parse_once, token_id
from modelzoo.config.errors import UserError
from modelzoo.data import format as fmt
from modelzoo.reading import is_number, read_bytes
from modelzoo.records import seal

SAMPLES = 4  # of a reason, in the report


class _Totals:
    """What the units' markers add up to; they are read one by one, for there may be many."""

    def __init__(self, plan: Part):
        names = ("reasons", "languages", "licences", "years", "token_lengths")
        self.counts = {name: collections.Counter() for name in names}
        self.records = self.delete_orders = self.text_bytes = 0
        self.files: dict[str, dict] = {}
        self.passed: collections.Counter[str] = collections.Counter()  # what is in packages and not read
        self.documents: dict[str, str] = {}
        self.splits = {s: _Split() for s in encode.SPLITS[: 1 if plan.job.val_fraction == 0 else 2]}
        self.samples: tuple[dict, dict] = {}, {}  # of the first step, of the last
        for unit in range(plan.units):
            self._add_read(store.read_marker(plan.work, "extract", unit))
            self._add_written(unit, store.read_marker(plan.work, "encode", unit))

    def _add_read(self, part: dict) -> None:
        self.records += part["records"]
        self.delete_orders += part["delete_orders"]
        self.text_bytes += part["text_bytes"]
        self.files.update(part["files"])
        self.passed.update(part.get("passed_over", {}))  # parts of an older run have none
        # What was kept here may yet have been dropped by a later step, so those samples wait.
        self._add_samples(0, {reason: found for reason, found in part["samples"].items() if reason != "written"})

    def _add_written(self, unit: int, part: dict) -> None:
        for name in ("reasons", "years", "token_lengths"):
            self.counts[name].update(part[name])
        for name in ("languages", "licences"):  # parts of an older run have none
            self.counts[name].update(part.get(name, {"not counted": part["reasons"].get("written", 0)}))
        for name, split in self.splits.items():
            split.add(part["splits"][name])
        self.documents[f"{unit:05d}.tsv.gz"] = part["documents_sha256"]
        self._add_samples(1, part["samples"])

    def _add_samples(self, which: int, samples: dict) -> None:
        for reason, found in samples.items():
            kept = self.samples[which].setdefault(reason, [])
            kept += found[: SAMPLES - len(kept)]

    def first_samples(self) -> dict[str, list]:
        """Some samples of each reason."""
        early, late = self.samples
        return {reason: (early.get(reason, []) + late.get(reason, []))[:SAMPLES] for reason in {**early, **late}}


class _Split:
    """What the units wrote of one split."""

    def __init__(self):
        self.shards: list[dict] = []
        self.documents = self.tokens = 0

    def add(self, part: dict) -> None:
        self.shards += part["shards"]
        self.documents += part["documents"]
        self.tokens += part["tokens"]


def finish(plan: Part) -> dict:
    """Write everything that describes the whole output; returns the summary."""
    totals = _Totals(plan)
    tokenizer = store.read_marker(plan.work, "tokenizer", 0)
    reasons = totals.counts["reasons"]
    if totals.records != sum(reasons.values()):
        raise AssertionError(f"{totals.records} records were read but {sum(reasons.values())} are accounted for")
    splits = {
        name: _describe_split(plan, name, split, tokenizer, len(totals.files)) for name, split in totals.splits.items()
    }
    manifest = {
        "format_version": fmt.FORMAT_VERSION,
        "records": totals.records,
        "reasons": _ordered(reasons),
        "delete_orders": totals.delete_orders,
        "tokenizer_sha256": tokenizer["sha256"],
        "inputs": {name: totals.files[name] for name in sorted(totals.files)},
        "splits": {
            split: {k: v for k, v in value.items() if k not in ("shards", "files")} for split, value in splits.items()
        },
        "data_sha256": _digest(splits),
        "documents": totals.documents,
    }
    facts = _facts(plan, totals, manifest)
    shards.write_json(os.path.join(plan.out, "report.json"), facts, sort=False)
    shards.write_bytes(os.path.join(plan.out, "report.html"), report.html(facts).encode())
    manifest["files"] = _files(plan.out, splits)
    shards.write_json(os.path.join(plan.out, fmt.MANIFEST), seal(manifest))
    summary = {key: manifest[key] for key in ("records", "reasons", "splits", "data_sha256")}
    return summary | {"passed_over": facts["passed_over"]}


def _ordered(reasons: collections.Counter) -> dict[str, int]:
    return {reason: reasons[reason] for reason in REASONS if reasons[reason]}


def _describe_split(plan: Part, split: str, found: _Split, tokenizer: dict, inputs: int) -> dict:
    """manifest.json and data_params.json of one split; `inputs` files were read for all splits."""
    job = plan.job
    folder = os.path.join(plan.out, split)
    os.makedirs(folder, exist_ok=True)
    rows = fmt.VSL_ROWS if job.objective.name == "vsl" else fmt.ROWS
    eos = _eos(plan, tokenizer)
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
        "n_examples": sum(s["n_examples"] for s in found.shards),
        "loss_tokens": sum(s["loss_tokens"] for s in found.shards),
        "documents": found.documents,
        "tokens": found.tokens,
        "shards": found.shards,
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
                "successful_files": inputs,
            },
        },
    )
    manifest["files"] = {fmt.DATA_PARAMS: streams.sha256_file(params)}
    shards.write_json(os.path.join(folder, fmt.MANIFEST), seal(manifest))
    return manifest


def _eos(plan: Part, tokenizer: dict) -> int:
    path = os.path.join(plan.out, fmt.TOKENIZER)
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != tokenizer["sha256"]:
        raise UserError(f"{path}: has changed since this folder was begun; delete the folder, and start anew")
    if (known := tokenizer.get("eos_id")) is not None:  # markers of an earlier version lack it
        return known
    return token_id(parse_once(data.decode())[0], plan.job.tokenizer.eos_token, path)


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


def _facts(plan: Part, totals: _Totals, manifest: dict) -> dict:
    """The facts of the report."""
    counts = {name: totals.counts[name] for name in ("languages", "licences", "years", "token_lengths")}
    return {
        "job": plan.job.model_dump(mode="json", exclude={"input": True, "output": True, "tokenizer": {"path"}}),
        "manifest": {k: v for k, v in manifest.items() if k != "inputs"},
        "inputs": manifest["inputs"],
        "text_bytes": totals.text_bytes,
        "passed_over": dict(sorted((totals.passed + collections.Counter(plan.passed)).items())),
        **{name: dict(sorted(c.items(), key=_numeric)) for name, c in counts.items()},
        "samples": totals.first_samples(),
    }


def _numeric(item: tuple[str, int]) -> tuple:
    return (0, int(item[0]), "") if is_number(item[0]) else (1, 0, item[0])
