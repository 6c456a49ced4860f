"""How fast PubMed XML becomes HDF5, per CPU-second, against the parts that people put together for it today.

    python benchmarks/preprocess.py --data biomedical --rounds 5

Three corpora without a repeated text: `as-is` (the wrapped abstracts: mostly text), `baseline` (each abstract, and
paragraphs of full texts, inside the metadata of a real citation, about 8 kB a record as in NLM's baseline) and `jats`
(PMC's full texts as loose files; pubmed_parser's reader of PMC gives title, abstract and all paragraphs). Contenders
take turns within each round, so that noise of the machine falls on all; medians and the spread are printed.
CPU time is user + system of the process and its children; nothing else is run at the same time.

  ours         python -m data_preprocessing pubmed (or pmc), one worker, to shards with manifests and report
  parser+HF    pubmed_parser -> tokenizers.encode_batch -> the same packing -> h5py gzip, one process
  lxml+HF      lxml iterparse -> the same; of full texts: titles, abstracts and the characters of every paragraph
"""

import argparse
import glob
import gzip
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from modelzoo.config.arguments import positive_float, positive_int

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))
_RECORD = re.compile(rb"<PubmedArticle>.*?</PubmedArticle>", re.S)
_TITLE = re.compile(rb"<ArticleTitle.*?</ArticleTitle>", re.S)
_ABSTRACT = re.compile(rb"<Abstract>.*?</Abstract>", re.S)
_PMID = re.compile(rb"<PMID[^>]*>\d+</PMID>")


def main() -> None:
    args = _arguments()
    if args.contender:
        from peer_readers import READERS

        read = READERS[args.contender, args.source]
        _tokenise_and_write(read(args.folder), args.out, args.tokenizer, args.msl)
        return
    from forced import describe

    from modelzoo.kernels.processor import model_name

    print(f"{model_name()}, {describe()}, {os.cpu_count()} cores")
    tokenizer = os.path.join(args.data, "gpt2_bpe")
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for name in args.corpora:
            if name == "as-is":
                files = sorted(glob.glob(os.path.join(args.data, "pubmed_wrapped", "*.xml.gz")))
            elif name == "baseline":
                files = build(args.data, os.path.join(folder, "xml"), args.megabytes)
            else:
                files = unpack_articles(args.data, os.path.join(folder, "nxml"), args.articles)
            size = sum(len(unpack(f)) for f in files) / 1e6
            source = "pmc" if name == "jats" else "pubmed"
            for contender, times in race(files, folder, tokenizer, args, source).items():
                results.append(report(name, contender, size, times))
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default=str(REPO.parent / "shared" / "data"))
    p.add_argument("--rounds", type=positive_int, default=5)
    p.add_argument("--megabytes", type=positive_float, default=250, help="size of the `baseline` corpus, unpacked")
    p.add_argument("--corpora", nargs="+", default=["as-is", "baseline", "jats"], choices=("as-is", "baseline", "jats"))
    p.add_argument("--articles", type=positive_int, default=2000, help="of the `jats` corpus, at most")
    p.add_argument("--msl", type=positive_int, default=2048)
    p.add_argument("--skip", nargs="*", default=[], metavar="CONTENDER")
    p.add_argument("--json", metavar="FILE")
    for hidden in ("--contender", "--source", "--folder", "--out", "--tokenizer"):
        p.add_argument(hidden, help=argparse.SUPPRESS)
    return p.parse_args()


def unpack(path: str) -> bytes:
    data = Path(path).read_bytes()
    return gzip.decompress(data) if path.endswith(".gz") else data


def unpack_articles(data: str, folder: str, most: int) -> list[str]:
    """Loose files of the first `most` articles of the packages, as pubmed_parser reads them."""
    os.makedirs(folder)
    paths = []
    for package in sorted(glob.glob(os.path.join(data, "pmc_nxml", "*.tar.gz"))):
        with tarfile.open(package) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith((".nxml", ".xml")) else None
                if len(paths) < most and file is not None:
                    paths.append(os.path.join(folder, f"{len(paths):06}.nxml"))
                    Path(paths[-1]).write_bytes(file.read())
    return paths


def build(data: str, folder: str, megabytes: float) -> list[str]:
    """Files of the `baseline` corpus: real metadata around texts that are each used once."""
    records = []
    for path in sorted(glob.glob(os.path.join(data, "pubmed_real", "pubmed21*.xml.gz"))):
        records += _RECORD.findall(unpack(path))
    old = unpack(os.path.join(data, "pubmed_real", "medline16n0902.xml.gz"))
    records += [
        b"<PubmedArticle>" + r + b"</PubmedArticle>"
        for r in re.findall(rb"<MedlineCitation .*?</MedlineCitation>", old, re.S)
    ]
    records = [r for r in records if _ABSTRACT.search(r)]
    os.makedirs(folder, exist_ok=True)
    made, paths, part, total = 0, [], [], 0.0
    for k, (title, abstract) in enumerate(_texts(data)):
        r = _PMID.sub(b'<PMID Version="1">%d</PMID>' % (k + 1), records[k * 7919 % len(records)], count=1)
        r = _TITLE.sub(lambda _, t=title: t, r, count=1)
        part.append(_ABSTRACT.sub(lambda _, a=abstract: a, r, count=1))
        made += len(part[-1])
        if made > 60e6 or total + made > megabytes * 1e6:
            paths.append(_write(folder, len(paths) + 1, part))
            total, made, part = total + made, 0, []
            if total > megabytes * 1e6 * 0.95:
                break
    if part and made:
        paths.append(_write(folder, len(paths) + 1, part))
    return paths


def _texts(data: str):
    """(title element, abstract element), every one different."""
    for path in sorted(glob.glob(os.path.join(data, "pubmed_wrapped", "*.xml.gz"))):
        for r in _RECORD.findall(unpack(path)):
            title, abstract = _TITLE.search(r), _ABSTRACT.search(r)
            if title and abstract:
                yield title[0], abstract[0]
    from html import escape

    from data_preprocessing.config import TextPolicy
    from data_preprocessing.sources import pmc

    for path in sorted(glob.glob(os.path.join(data, "pmc_nxml", "*.tar.gz"))):
        for d in pmc.documents(path, TextPolicy(), 1 << 40):
            for line in d.text.split("\n"):
                if 600 < len(line) < 3000:
                    yield (
                        f"<ArticleTitle>{escape(line[:90], quote=False)}</ArticleTitle>".encode(),
                        f"<Abstract><AbstractText>{escape(line[90:], quote=False)}</AbstractText></Abstract>".encode(),
                    )


def _write(folder: str, number: int, records: list[bytes]) -> str:
    path = os.path.join(folder, f"pubmed99n{number:04d}.xml.gz")
    body = (
        b'<?xml version="1.0" encoding="utf-8"?>\n<PubmedArticleSet>\n'
        + b"\n".join(records)
        + b"\n</PubmedArticleSet>\n"
    )
    Path(path).write_bytes(gzip.compress(body, 6))
    return path


def race(files: list[str], folder: str, tokenizer: str, args, source: str) -> dict[str, list[tuple[float, int]]]:
    """{contender: [(CPU seconds, tokens)]}, the contenders in turn within each round."""
    inputs = os.path.join(folder, "in")
    shutil.rmtree(inputs, ignore_errors=True)
    os.makedirs(inputs)
    for f in files:
        os.symlink(os.path.abspath(f), os.path.join(inputs, os.path.basename(f)))
    contenders = [c for c in ("ours", "parser+HF", "lxml+HF") if c not in args.skip]
    times: dict[str, list] = {c: [] for c in contenders}
    for k in range(args.rounds):
        for c in contenders[k % len(contenders) :] + contenders[: k % len(contenders)]:
            times[c].append(once(c, inputs, os.path.join(folder, "out"), tokenizer, args.msl, source))
    return times


def once(contender: str, inputs: str, out: str, tokenizer: str, msl: int, source: str) -> tuple[float, int]:
    shutil.rmtree(out, ignore_errors=True)
    if contender == "ours":
        command = [
            "-m",
            "data_preprocessing",
            source,
            "--input",
            inputs,
            "--output",
            out,
            "--tokenizer",
            tokenizer,
            "--msl",
            str(msl),
            "--workers",
            "1",
            "--quiet",
        ]
    else:
        command = [
            __file__,
            "--contender",
            contender,
            "--source",
            source,
            "--folder",
            inputs,
            "--out",
            out,
            "--tokenizer",
            tokenizer,
            "--msl",
            str(msl),
        ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], cwd=REPO, env=env, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    tokens = sum(
        json.loads(Path(m).read_text(encoding="utf-8"))["tokens"]
        for m in glob.glob(os.path.join(out, "*", "manifest.json"))
    )
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, tokens


def _tokenise_and_write(texts: list[str], out: str, tokenizer: str, msl: int) -> None:
    """What both others share: ids of Hugging Face tokenizers, packing, one gzip shard by h5py."""
    import h5py
    import numpy as np

    from data_preprocessing.tokens import pack, tokenizing
    from modelzoo.data.tokenizer import read_tokenizer

    encoder = tokenizing.Encoder(read_tokenizer(tokenizer), tokenizer, "tokenizers")
    packer, parts, count = pack.StreamPacker(msl, 50256, 50256, "pad"), [], 0
    for k in range(0, len(texts), 1000):
        flat, offsets = encoder.encode(texts[k : k + 1000])
        count += len(flat)
        parts.append(packer.add(flat, offsets))
    data = np.concatenate([*parts, packer.finish()])
    os.makedirs(os.path.join(out, "train"))
    with h5py.File(os.path.join(out, "train", "output_chunk_0_0.h5"), "w") as f:
        f.attrs["n_examples"] = len(data)
        f.create_dataset("data", data=data, chunks=(1, 3, msl), compression="gzip", compression_opts=1)
    Path(out, "train", "manifest.json").write_text(json.dumps({"tokens": count}), encoding="utf-8")


def report(corpus: str, contender: str, megabytes: float, times: list[tuple[float, int]]) -> dict:
    seconds = [t for t, _ in times]
    rates = sorted(megabytes / s for s in seconds)
    tokens = times[0][1]
    median = statistics.median(seconds)
    print(
        f"{corpus:<9} {contender:<10} {megabytes:7.1f} MB XML {tokens / 1e6:6.2f} M tokens  {median:7.2f} CPU-s  "
        f"{megabytes / median:6.1f} MB XML/CPU-s ({rates[0]:.1f}-{rates[-1]:.1f})  "
        f"{tokens / median / 1e6:5.2f} M tokens/CPU-s",
        flush=True,
    )
    return {
        "corpus": corpus,
        "contender": contender,
        "xml_mb": megabytes,
        "tokens": tokens,
        "cpu_seconds": seconds,
        "mb_per_cpu_second": megabytes / median,
        "tokens_per_cpu_second": tokens / median,
    }


if __name__ == "__main__":
    from program import run

    run(main)
