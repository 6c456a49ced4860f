"""The command line. Only argparse is imported before a verb runs, so that --help answers at once."""

import argparse
import sys
from collections.abc import Sequence

from data_preprocessing import limits
from data_preprocessing.job_flags import ABOUT, add_job_flags
from modelzoo import entry, interrupts, version
from modelzoo.config.arguments import Parser, count, integer
from modelzoo.config.errors import UserError

_DOWNLOAD = """
PubMed: N means the first N files, A-B a range, 'all' everything; 38 M citations are 40 GB, an hour at 10 MB/s.

PMC: from its cloud service (bucket pmc-oa-opendata), packed into DIR/pmc.00001.tar.gz and on, 10,000 articles each,
which the verb pmc reads. An article costs two small requests, so the number of connections decides: people report 12
to 15 days for all 7.8 million by sync tools, and 2 to 3 days with 256 connections (--workers 256). Licences are known
only when an article's metadata are fetched: one kind alone takes more than half of the requests of all.
  --licence comm      CC0, CC BY, CC BY-SA, CC BY-ND
            noncomm   CC BY-NC, CC BY-NC-SA, CC BY-NC-ND
            other     no or another code (author manuscripts among them: for text mining, not for redistribution)
The same command goes on where it was, with the same list; to add what is newer, --since DATE into another folder.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code (2 = an error that the user can correct)."""
    words = sys.argv[1:] if argv is None else argv
    printing = words[:1] in (["inspect"], ["verify"])
    try:
        with interrupts.interrupt_by_signals(last=argv is None):
            return entry.run_command(
                lambda: _main(words), words, "the same command goes on from here", lambda: printing
            )
    except KeyboardInterrupt:  # it came before or after the command itself
        return entry.INTERRUPTED


def _main(words: list[str]) -> int | None:
    args = parser().parse_args(words)
    return args.run(args)


def parser() -> argparse.ArgumentParser:
    """The command line: a sub-parser for each verb, which sets `run`."""
    top = Parser(
        prog="python -m data_preprocessing",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="From PubMed, PMC, BioC or JSONL to tokenized HDF5 shards.",
        epilog="Example:\n  python -m data_preprocessing download --baseline 2 --output xml\n"
        "  python -m data_preprocessing pubmed --input xml --output shards --msl 2048 --workers 2",
    )
    version.add_flag(top)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for source, text, example in (
        (
            "pubmed",
            "PubMed citation XML (baseline, updates, efetch) to shards",
            "pubmed --input pubmed/baseline pubmed/updatefiles --output shards --tokenizer train --vocab_size 28896",
        ),
        (
            "pmc",
            "full text of PMC or Europe PMC (JATS XML, loose or in tar packages) to shards",
            "pmc --input pmc --output shards --tokenizer gpt2_bpe --set 'filters.licences=[CC-BY, CC0]'",
        ),
        (
            "bioc",
            "BioC-JSON (NCBI's of PMC open access, PubTator's exports) to shards",
            "bioc --input BioC-PMC --output shards --tokenizer gpt2_bpe",
        ),
        (
            "jsonl",
            "JSONL or plain text to shards; also prompt/completion pairs",
            "jsonl --input pairs.jsonl --output shards --tokenizer bpe.json --objective prompt_completion --msl 512",
        ),
    ):
        _job_verb(verbs, source, text, example)
    _download(verbs)
    _tokenizer(verbs)
    _pack(verbs)
    _inspection(verbs)
    _synthetic(verbs)
    return top


def _verb(verbs, name: str, text: str, example: str, run, more: str = "") -> argparse.ArgumentParser:
    p = verbs.add_parser(
        name,
        help=text,
        description=text[:1].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Example:\n  python -m data_preprocessing {example}\n{more}",
    )
    p.set_defaults(run=run)
    return p


def _job_verb(verbs, source: str, text: str, example: str) -> None:
    p = _verb(verbs, source, text, example, run_job, ABOUT)
    add_job_flags(p)
    p.set_defaults(source=source)


def _download(verbs) -> None:
    p = _verb(
        verbs,
        "download",
        "fetch PubMed's baseline and updates, or PMC's full texts, checked by MD5, resumable",
        "download --baseline 1-3 --output pubmed/baseline\n"
        "  python -m data_preprocessing download --pmc 1000 --licence comm --output pmc",
        run_download,
        _DOWNLOAD,
    )
    what = p.add_mutually_exclusive_group()
    what.add_argument("--baseline", metavar="N|A-B|all", help="PubMed baseline files")
    what.add_argument("--updates", metavar="N|A-B|all", help="PubMed daily update files")
    what.add_argument(
        "--pmc", metavar="N|A-B|all", nargs="?", const="all", help="PMC full texts: the first N, PMC ids A to B, all"
    )
    p.add_argument("--output", required=True, metavar="DIR")
    p.add_argument("--workers", type=integer(1, limits.CONNECTIONS), metavar="N", help="transfers at once (2; PMC 64)")
    p.add_argument("--rate", type=integer(1, limits.REQUESTS), metavar="N", help="requests per second at most")
    p.add_argument("--retries", type=integer(0, limits.RETRIES), default=5, metavar="N")
    p.add_argument("--base_url", metavar="URL", help="a mirror, laid out as NLM's FTP site or PMC's bucket")
    pmc = p.add_argument_group("PMC alone")
    pmc.add_argument("--licence", nargs="+", choices=("comm", "noncomm", "other", "all"), help="kept (default: comm)")
    pmc.add_argument("--since", metavar="DATE", help="articles whose metadata changed on this day or later")
    pmc.add_argument("--ids", metavar="FILE", help="these PMC ids alone, one a line")
    pmc.add_argument("--keep_retracted", action="store_true", help="keep retracted articles")
    pmc.add_argument("--skip_failed", action="store_true", help="leave out, and name, articles whose tries all failed")
    pmc.add_argument("--articles_per_tar", type=integer(1, limits.DOCUMENTS), metavar="N", help="default: 10000")
    p.add_argument("--pmc_group", nargs="?", const="", help=argparse.SUPPRESS)  # refused, with the way


def _tokenizer(verbs) -> None:
    p = _verb(
        verbs,
        "tokenizer",
        "train a byte-level BPE on a corpus, or check a fast encoder's ids against tokenizers",
        "tokenizer --input pubmed/baseline --source pubmed --output tokenizer.json --vocab_size 28896",
        run_tokenizer,
    )
    p.add_argument("--input", action="extend", nargs="+", required=True, metavar="PATH")
    p.add_argument("--source", choices=("pubmed", "pmc", "bioc", "jsonl"), default="pubmed")
    p.add_argument("--output", metavar="FILE", help="tokenizer.json to write (training)")
    p.add_argument("--check", metavar="TOKENIZER", help="compare ids of this tokenizer on all documents instead")
    p.add_argument("--vocab_size", type=integer(257, limits.VOCABULARY), metavar="N", help="training (50257)")
    p.add_argument("--eos_token", metavar="TOKEN", help="training (<|endoftext|>)")
    p.add_argument("--megabytes", type=integer(1, limits.MEGABYTES), metavar="N", help="text to read at most (200)")
    p.add_argument("--fim", action="store_true", help="add the fill-in-the-middle tokens")


def _pack(verbs) -> None:
    p = _verb(
        verbs,
        "pack",
        "pack token ids that are already there: JSONL of input_ids, or shards to another length",
        "pack --input shards/train --output shards512/train --msl 512 --eos_id 0",
        run_pack,
    )
    p.add_argument(
        "--input",
        action="extend",
        nargs="+",
        required=True,
        metavar="PATH",
        help="a folder of LM shards, or .jsonl files with input_ids",
    )
    p.add_argument("--output", required=True, metavar="DIR", help="new folder of shards")
    p.add_argument("--msl", type=integer(1, limits.MSL), required=True)
    ids = integer(0, limits.VOCABULARY)
    p.add_argument("--eos_id", type=ids, help="default: that of the input's manifest or data_params.json")
    p.add_argument("--vocab_size", type=ids, help="ids from here on are refused (default: as above)")
    p.add_argument("--objective", choices=("lm", "vsl"), default="lm")
    p.add_argument("--tail", choices=("pad", "drop"), default="pad")
    p.add_argument("--compression", choices=("none", "gzip", "lzf"), default="gzip")
    p.add_argument("--shard_tokens", type=integer(1, limits.SHARD_TOKENS), default=2**23)


def _inspection(verbs) -> None:
    p = _verb(
        verbs,
        "inspect",
        "print the shapes, counts and first examples of a folder of shards, or of one shard",
        "inspect shards/train --examples 2",
        run_inspect,
    )
    p.add_argument("path")
    p.add_argument("--examples", type=count, metavar="N", help="how many to print as text (1)")
    p.add_argument("--tokenizer", metavar="PATH", help="to turn ids to text (default: that of the shards' folder)")
    p.add_argument(
        "--document", metavar="ID", help="what became of the record with this key, PMID, PMCID, id or DOI instead"
    )
    p = _verb(
        verbs, "verify", "check every byte of an output folder against its manifests", "verify shards", run_verify
    )
    p.add_argument("path", help="OUT, or one split's folder (also one that Model Zoo wrote)")
    p.add_argument("--tokens", action="store_true", help="also read all ids and check their range and the label shift")
    p = _verb(
        verbs,
        "report",
        "print what became of the records, and write report.html anew; or what each step cost, and would cost",
        "report shards --scale",
        run_report,
    )
    p.add_argument("path", help="OUT")
    p.add_argument(
        "--scale",
        action="store_true",
        help="time, memory and disk of each step, and of all of PubMed or PMC, to scale.html and scale.json",
    )
    p.add_argument(
        "--documents",
        type=integer(1, 10**12),
        nargs="+",
        metavar="N",
        help="with --scale: of so many documents instead",
    )


def _synthetic(verbs) -> None:
    p = _verb(
        verbs,
        "synthetic",
        "write a made-up MEDLINE corpus, clearly labelled, for trying things out",
        "synthetic --output demo/xml --documents 6000 --seed 0",
        run_synthetic,
    )
    p.add_argument("--output", required=True, metavar="DIR")
    p.add_argument("--documents", type=integer(1, limits.DOCUMENTS), default=6000)
    p.add_argument("--seed", type=count, default=0)
    p.add_argument("--files", type=integer(1, limits.FILES), default=2)


def _refuse_idle(args, names: Sequence[str], why: str) -> None:
    """Refuse flags that were given and would do nothing.

    Raises:
        UserError: names the first of them, and `why`.
    """
    given = [name for name in names if getattr(args, name) is not None and getattr(args, name) is not False]
    if given:
        raise UserError(f"--{given[0]}: does nothing {why}; leave it out")


def run_job(args) -> int:
    from data_preprocessing import verbs

    return verbs.job(args)


def run_download(args) -> int:
    from data_preprocessing.downloading import download

    return download.run(args)


def run_tokenizer(args) -> int:
    from data_preprocessing import verbs

    if args.check:
        _refuse_idle(args, ("vocab_size", "eos_token", "megabytes", "fim"), "with --check, which trains nothing")
    return verbs.tokenizer(args)


def run_pack(args) -> int:
    from data_preprocessing.tokens import repack

    return repack.run(args)


def run_inspect(args) -> int:
    from data_preprocessing.inspection.describe import print_shards

    if args.document is not None:
        _refuse_idle(args, ("examples", "tokenizer"), "with --document, which is about one record")
    return print_shards(args)


def run_verify(args) -> int:
    from data_preprocessing.inspection.verify import verify

    return verify(args)


def run_report(args) -> int:
    from data_preprocessing.inspection.describe import report

    if not args.scale:
        _refuse_idle(args, ("documents",), "without --scale")
    return report(args)


def run_synthetic(args) -> int:
    from data_preprocessing.sources import synthetic

    return synthetic.run(args)
