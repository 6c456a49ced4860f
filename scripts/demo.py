"""The main job in small: XML to shards, dense and 75 % sparse pre-training, how they compare, what they write; a study.

    python scripts/demo.py                  # a synthetic corpus, made here (no network)
    python scripts/demo.py --pubmed 2       # two real files of NLM's PubMed baseline, downloaded and checked
    python scripts/demo.py --xml DIR        # your own PubMed XML

Every command is printed before it runs; each can be run by hand.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time

from modelzoo import entry

PROMPT = "Patients with"


def run(*command: str) -> None:
    """Print and run `python COMMAND`; stop the demo with its exit code if it fails."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    code = subprocess.call([sys.executable, *command])
    if code:
        sys.exit(code)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = p.add_mutually_exclusive_group()
    source.add_argument("--pubmed", type=int, metavar="N", help="take the first N files of NLM's baseline (network)")
    source.add_argument("--xml", metavar="DIR", help="take PubMed XML (.xml, .xml.gz) from this folder")
    p.add_argument("--output", default="demo", help="where everything goes (default: demo)")
    p.add_argument("--steps", type=int, default=300, help="optimizer steps of each run (default: 300)")
    args = p.parse_args()
    if args.steps < 1 or (args.pubmed is not None and args.pubmed < 1):
        p.error("--steps and --pubmed take numbers above 0")
    begin = time.monotonic()
    xml, data = args.xml or os.path.join(args.output, "xml"), os.path.join(args.output, "data")
    if args.pubmed:
        run("-m", "data_preprocessing", "download", "--baseline", str(args.pubmed), "--output", xml)
    elif not args.xml:
        print(
            "No corpus was named: this one is SYNTHETIC, invented by a grammar. It shows that the machinery works, "
            "not what a model learns about medicine."
        )
        run("-m", "data_preprocessing", "synthetic", "--output", xml, "--documents", "6000")
    run("-m", "data_preprocessing", "pubmed", "--input", xml, "--output", data,
        "--tokenizer", "train", "--vocab_size", "4096", "--msl", "128")  # fmt: skip
    folders = []
    for name in ("dense", "s75"):
        folder = os.path.join(args.output, "runs", name)
        folders.append(folder)
        options = ["--max_steps", str(args.steps)]
        for split in ("train", "val"):
            options += ["--set", f"trainer.fit.{split}_dataloader.data_dir={os.path.join(data, split)}"]
        run("run.py", "-p", f"configs/demo/{name}.yaml", "-m", "plan", *options)
        run("run.py", "-p", f"configs/demo/{name}.yaml", "-m", "train_and_eval", "-o", folder, *options)
    picture = os.path.join(args.output, "comparison.svg")
    run("run.py", "compare", *folders, "-o", picture)
    for folder in folders:
        run("run.py", "generate", folder, "--prompt", PROMPT, "--max_new_tokens", "40", "--temperature", "0.8",
            "--seed", "1")  # fmt: skip
    study = os.path.join(args.output, "study")
    run("run.py", "-p", "configs/study/mini.yaml", "-m", "study", "-o", study, "--set", f"study.data={data}")
    print(
        f"\nThe demo took {time.monotonic() - begin:.0f} s. Off the CS-2, unstructured sparsity saves counted FLOPs, "
        "not time:\ncompare the runs by loss for the FLOPs spent.\nLook at: "
        f'{os.path.join(study, "report.html")}\nNext: "The real job on PubMed" in README.md.'
    )


if __name__ == "__main__":
    sys.exit(entry.run_command(main, sys.argv[1:], "each finished command left what it made"))
