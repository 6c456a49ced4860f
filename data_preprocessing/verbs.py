"""The verbs that run a job: flags and YAML to a Job, then the steps."""

import itertools
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator

from data_preprocessing.config import Job, check_paths
from data_preprocessing.idle import idle
from modelzoo.config.errors import UserError
from modelzoo.config.loading import load, yaml12
from modelzoo.config.loading.merge import merge
from modelzoo.host import available_cores
from modelzoo.redact import redact_text
from modelzoo.share import parse_share

# Flags by the key they set; those of how a job runs are not here.
_KEYS = (
    "input",
    "output",
    "tokenizer.path",
    "tokenizer.vocab_size",
    "tokenizer.eos_token",
    "tokenizer.encoder",
    "msl",
    "objective.name",
    "objective.tail",
    "val_fraction",
    "seed",
    "compression",
)


def read_job(args) -> Job:
    """The YAML of --config, under the flags, under --set."""
    flags: dict = {}
    problems: list[str] = []
    for key in _KEYS:
        if (value := getattr(args, key, None)) is not None:
            _put(flags, key, value)
    for text in args.sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write key=value, for example filters.min_chars=200")
        parsed = yaml12.parse(value, f"--set {text}")
        problems += parsed.problems
        _put(flags, key.strip(), parsed.data)
    doc = load.read(args.config) if args.config else yaml12.parse("{}", "the command line")
    top = yaml12.parse(json.dumps({"source": args.source, **flags}), "the command line")
    if isinstance(doc.data, dict) and doc.data.get("source", args.source) != args.source:
        raise UserError(f"{args.config}: is a job for `{doc.data['source']}`, not `{args.source}`")
    given = doc.data.keys() | top.data.keys()
    doc.data = merge(doc.data, top.data)
    doc.problems += problems
    doc.marks.update({path: yaml12.Mark("the command line") for path in top.marks})
    for name, flag in (("input", "--input PATH"), ("output", "--output DIR")):
        if name not in given:
            raise UserError(f"{flag} is missing" + (f" (and {args.config} has no `{name}:`)" if args.config else ""))
    found = load.validate(doc, Job)
    check_paths(found, doc.mark)
    for line in idle(doc, found):
        print(f"no effect  {redact_text(line)}", file=sys.stderr)
    return found


def _put(tree: dict, key: str, value: object) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise UserError(f"--set {key}: {part} has no keys below it")
    tree[last] = value


def job(args) -> int:
    """Run pubmed, pmc or jsonl."""
    config, part = read_job(args), parse_share(args.share)
    if args.share is None and part[1] > 1:
        print(f"share      {part[0]}/{part[1]}, from Slurm or torchrun; --share 0/1 does all", file=sys.stderr)
    from data_preprocessing.jobs import progress
    from data_preprocessing.jobs.plan import make_plan
    from data_preprocessing.jobs.run import How, run_job

    how = How(
        workers=args.workers or available_cores(),
        engine=args.engine,
        shard=part,
        step=args.step,
        memory=args.memory << 20,
        wait_seconds=args.wait,
    )
    begun = time.monotonic()
    plan = make_plan(config)
    result = run_job(plan, how, (lambda *_: None) if args.quiet else progress.printer())
    if result:
        print(summary(config.output, result, time.monotonic() - begun))
        require_examples(config.output, result)
    return 0


def require_examples(out: str, result: dict) -> None:
    """Refuse to call an output done that nothing can be trained on.

    Raises:
        UserError: no example for training was written; it names the most frequent reason.
    """
    if result["splits"].get("train", {"n_examples": 0})["n_examples"]:
        return
    dropped = {r: n for r, n in result["reasons"].items() if r != "written"}
    most = max(dropped, key=dropped.__getitem__, default=None)
    why = f"most records were dropped as {most} ({dropped[most]:,})" if most else "the inputs hold no records"
    if result["reasons"].get("written"):
        why = "what was kept fills no window, or went to validation"
    raise UserError(
        f"{out}: holds no example to train on: {why}; see {os.path.join(out, 'report.html')}, change the settings "
        "and give another --output"
    )


def summary(out: str, result: dict, seconds: float) -> str:
    """The closing lines: what was written, and what to run next."""
    from data_preprocessing.reports.report import show_passed
    from modelzoo.progress import format_duration

    reasons, splits = result["reasons"], result["splits"]
    dropped = {r: n for r, n in reasons.items() if r != "written"}
    lines = [
        f"{result['records']:,} records = {reasons.get('written', 0):,} written + {sum(dropped.values()):,} dropped"
        + (f" ({', '.join(f'{r} {n:,}' for r, n in dropped.items())})" if dropped else "")
    ]
    if passed := show_passed(result.get("passed_over", {})):
        lines.append(passed)
    for name, s in splits.items():
        lines.append(
            f"{os.path.join(out, name)}: {s['documents']:,} documents, {s['tokens']:,} tokens, "
            f"{s['n_examples']:,} examples of {s['msl']:,}"
        )
    lines.append(
        f"report: {os.path.join(out, 'report.html')}   data {result['data_sha256'][:16]}   {format_duration(seconds)}"
    )
    if splits["train"]["n_examples"]:
        lines.append(f"next: python -m data_preprocessing inspect {shlex.quote(os.path.join(out, 'train'))}")
    return "\n".join(lines)


def tokenizer(args) -> int:
    """Train a tokenizer on documents as a job would keep them, or compare encoders on them."""
    from data_preprocessing.inputs import listing
    from data_preprocessing.reports.report import show_passed
    from data_preprocessing.steps import extract, filters
    from data_preprocessing.tokens import shards, tokenizing
    from modelzoo.data.tokenizer import read_tokenizer

    base = {"source": args.source, "input": tuple(args.input), "output": args.output or "."}
    config = Job(**base)
    chain = filters.build(config.filters, config.kinds)
    if bool(args.output) == bool(args.check):
        raise UserError("give either --output FILE to train, or --check TOKENIZER to compare ids")
    if args.output and args.output.lower().endswith(listing.SUFFIXES[args.source]):
        listing.refuse_inside(args.output, args.input)

    passed: Counter[str] = Counter()

    cut: list[str] = []  # inputs of which the first part alone was read

    def texts(limit: int) -> Iterator[str]:
        """What the filters keep; of more than `limit` bytes the first part of each file, by the file's size on disk.

        The first files alone would not do for all: PubMed's are its oldest.
        """
        files = listing.find(config.input, config.source, passed)
        total, allowed, taken = sum(file["bytes"] for file in files), 0.0, 0
        for file in files:
            allowed += limit * file["bytes"] / max(total, 1)
            for d in extract.documents(config, file["path"], file["name"], passed):
                if d.deleted or filters.find_reason(d, chain):
                    continue
                if taken >= allowed:
                    cut.append(file["name"])
                    break
                yield d.text
                taken += len(d.text.encode())

    def some(batches: Iterator[list[str]]) -> Iterator[list[str]]:
        """The same batches.

        Raises:
            UserError: there is none.
        """
        if (first := next(batches, None)) is None:
            raise UserError(f"{', '.join(args.input)}: hold no document that the filters keep; nothing was done")
        return itertools.chain([first], batches)

    if args.check:
        encoder = tokenizing.Encoder(read_tokenizer(args.check), args.check)
        documents = ids = 0
        for batch in some(tokenizing.batched(texts(1 << 62))):
            encoder.check(batch)
            documents, ids = documents + len(batch), ids + len(encoder.encode(batch)[0])
        print(f"{args.check}: {encoder.engine} gives the ids of tokenizers on {documents:,} documents, {ids:,} tokens")
        return 0
    special = [args.eos_token or "<|endoftext|>", *(tokenizing.FIM_TOKENS if args.fim else ())]
    wanted, megabytes = args.vocab_size or 50257, args.megabytes or 200
    text = tokenizing.train(some(tokenizing.batched(texts(megabytes * 10**6))), wanted, special)
    shards.write_bytes(os.path.abspath(args.output), text.encode())
    if cut:
        files = f"{len(cut):,} input file{'s' * (len(cut) > 1)}"
        what = f"{megabytes:,} MB of text were learnt from, of {files} the first part alone"
        print(f"note: {what}; --megabytes N reads more", file=sys.stderr)
    size = tokenizing.Encoder(text, args.output, "tokenizers").size
    if size < wanted:
        print(
            f"note: the text has no more than {size:,} entries to learn (asked for {wanted:,})",
            file=sys.stderr,
        )
    print("\n".join(filter(None, [show_passed(passed), f"{args.output}: {size:,} entries"])))
    return 0
