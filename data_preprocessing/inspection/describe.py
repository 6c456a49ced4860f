"""`inspect` and `report`: what an output folder holds."""

import os

from data_preprocessing.tokens import shards
from data_preprocessing.verbs import require_examples
from modelzoo.config.errors import UserError
from modelzoo.data import format as fmt
from modelzoo.data.folder import list_shards, open_shard, read_manifest
from modelzoo.folders import SHARD_SUFFIXES, add_kind
from modelzoo.reading import exists


def print_shards(args) -> int:
    """Run the verb `inspect`: print shapes, counts and the first examples; returns the exit code."""
    path = args.path
    if getattr(args, "document", None) is not None:
        from data_preprocessing.inspection.record import describe_record

        print(describe_record(path, args.document))
        return 0
    if os.path.isdir(path) and exists(os.path.join(path, "job.json")) and os.path.isdir(os.path.join(path, "train")):
        _note_others(path)
        path = os.path.join(path, "train")
    files = list_shards(path) if os.path.isdir(path) else [path]
    if not files:
        raise UserError(add_kind(f"{path}: holds no shards ({', '.join(SHARD_SUFFIXES)})", path))
    tokenizer = _tokenizer(args.tokenizer, os.path.dirname(os.path.abspath(files[0])))
    total = 0
    for name in files:
        file, data = open_shard(name)
        with file:
            total += data.shape[0]
            print(
                f"{name}: {data.shape} {data.dtype}, chunks {data.chunks}, {data.compression or 'no compression'}, "
                f"{os.path.getsize(name) / 1e6:,.2f} MB"
            )
    folder = os.path.dirname(os.path.abspath(files[0]))
    if manifest := read_manifest(folder):
        print(_describe(total, manifest))
    _examples(files[0], args.examples, tokenizer)
    return 0


def _note_others(out: str) -> None:
    """Name what else an output folder holds than the training split, whose examples follow."""
    val = os.path.join(out, "val")
    if exists(val) and (manifest := read_manifest(val)):
        print(f"{val}: {_describe(manifest.get('n_examples') or 0, manifest)}")
    if exists(os.path.join(out, "documents")):
        print(f"{os.path.join(out, 'documents')}: the fate of each record; --document ID shows one")


def _describe(total: int, manifest: dict) -> str:
    """One line of what a manifest records; it need not have every count."""
    labels = {"documents": "documents", "tokens": "tokens", "loss_tokens": "count for loss"}
    counts = [f"{manifest[k]:,} {text}" for k, text in labels.items() if isinstance(manifest.get(k), int)]
    names = {"vocab_size": "vocabulary", "eos_id": "eos"}
    facts = [f"{text} {manifest[k]:,}" for k, text in names.items() if manifest.get(k) is not None]
    msl, rows = manifest.get("msl"), manifest.get("rows")
    if rows:
        facts.append(f"rows {', '.join(rows)}")
    line = f"{total:,} examples" + (f" of {msl:,}" if msl else "")
    return "; ".join(filter(None, [line, ", ".join(counts), ", ".join(facts)]))


def _tokenizer(path: str | None, folder: str):
    from modelzoo.data.tokenizer import parse_tokenizer, read_tokenizer
    from modelzoo.data.tokenizer_files import tokenizer_in

    found = path or tokenizer_in((folder, os.path.dirname(folder)))
    return None if found is None else parse_tokenizer(read_tokenizer(found), found)


def _examples(name: str, count: int, tokenizer) -> None:
    for batch in shards.batches(name):
        for k, example in enumerate(batch[:count]):
            if batch.ndim == 1:
                print(f"\ntokens {batch[:64].tolist()}")
                return
            ids, mask, labels = example[:3]
            print(f"\nexample {k}: {int(mask.sum()):,} of {len(ids):,} places count for loss")
            print(
                f"  input_ids {ids[:12].tolist()} ...\n  mask      {mask[:12].tolist()} ...\n"
                f"  labels    {labels[:12].tolist()} ..."
            )
            if tokenizer is not None and not 0 <= ids.min(initial=0) <= ids.max(initial=0) <= fmt.MAX_ID:
                print(f"  text      none: {int(ids.min())} to {int(ids.max())} are no token ids")
            elif tokenizer is not None:
                print(
                    "  text      "
                    + tokenizer.decode(ids.tolist(), skip_special_tokens=False).replace("\n", "\n            ")
                )
        return


def report(args) -> int:
    """The verb `report`: the counts in words, and report.html written anew from report.json; or what it cost."""
    from data_preprocessing.reports import report as page

    if args.scale:
        from data_preprocessing.inspection import scale

        return scale.run(args.path, args.documents)
    facts = page.read_facts(os.path.join(args.path, "report.json"))
    html = os.path.join(args.path, "report.html")
    shards.write_bytes(html, page.html(facts).encode())
    print(page.text(facts))
    print(f"report: {html}")
    require_examples(args.path, facts["manifest"])
    return 0
