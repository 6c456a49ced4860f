"""The flags of a job: what decides its output, and how it runs."""

import argparse

from data_preprocessing import limits
from modelzoo.config.arguments import Settings, count, integer, positive_float, positive_int, share

ABOUT = """
Everything that a flag sets, a YAML can set too (--config), and --set reaches the keys that have no flag:
  --set filters.min_chars=200 --set kinds.retracted=mark --set text.scripts=unicode
A killed run is continued by the same command; another config or input for the same --output is refused.
"""


def add_job_flags(p: argparse.ArgumentParser) -> None:
    """Add them to the verb `p` of a source."""
    key = p.add_argument_group("what is made (these decide the output)")
    key.add_argument("-c", "--config", metavar="YAML", help="a job file, for example configs/data/pubmed.yaml")
    key.add_argument("--input", action="extend", nargs="+", metavar="PATH", help="files and folders")
    key.add_argument("--output", metavar="DIR", help="new folder (or the one of a run to continue)")
    key.add_argument(
        "--tokenizer",
        dest="tokenizer.path",
        metavar="PATH",
        help="tokenizer.json, a folder with a tokenizer, or 'train' (default)",
    )
    key.add_argument(
        "--vocab_size",
        dest="tokenizer.vocab_size",
        type=positive_int,
        metavar="N",
        help="size to train (50257); with a given tokenizer, what the model has room for",
    )
    key.add_argument("--eos_token", dest="tokenizer.eos_token", metavar="TOKEN", help="default <|endoftext|>")
    key.add_argument(
        "--encoder",
        dest="tokenizer.encoder",
        choices=("auto", "gigatoken", "tokenizers"),
        help="what computes the ids (the ids are the same)",
    )
    key.add_argument("--msl", type=positive_int, metavar="N", help="sequence length (2048)")
    key.add_argument("--objective", dest="objective.name", choices=("lm", "vsl", "fim", "prompt_completion"))
    key.add_argument("--tail", dest="objective.tail", choices=("pad", "drop"), help="the last, unfilled window")
    key.add_argument("--val_fraction", type=share, metavar="X", help="share of documents in OUT/val (0.05)")
    key.add_argument("--seed", type=count)
    key.add_argument("--compression", choices=("none", "gzip", "lzf"))
    key.add_argument("--set", dest="sets", action=Settings, default=[], metavar="KEY=VALUE")
    how = p.add_argument_group("how it runs (these change nothing in the output)")
    how.add_argument(
        "--workers", type=integer(1, limits.WORKERS), metavar="N", help="processes (default: one per core)"
    )
    how.add_argument("--engine", choices=("local", "ray"), default="local")
    how.add_argument(
        "--memory",
        type=integer(1, limits.MEGABYTES),
        default=256,
        metavar="MB",
        help="that a process may sort with; what is more goes through the disk (256)",
    )
    how.add_argument(
        "--share",
        "--shard",
        metavar="I/N",
        help="do share I of N (default: from a Slurm array or torchrun, else all)",
    )
    how.add_argument(
        "--step",
        choices=("extract", "keys", "texts", "near", "groups", "tokenizer", "encode", "finish"),
        help="with --share: this step alone, for job chains",
    )
    how.add_argument(
        "--wait",
        type=positive_float,
        default=86400.0,
        metavar="SECONDS",
        help="with --share: wait this long for the other shares",
    )
    how.add_argument("--quiet", action="store_true", help="no progress line")
