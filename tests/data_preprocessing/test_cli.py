"""The command line: quick help with examples, one clear line for what the user can correct, and every verb once."""

import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from data_preprocessing.tokens import tokenizing

VERBS = ("download", "pubmed", "pmc", "jsonl", "tokenizer", "pack", "inspect", "verify", "report", "synthetic")


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_and_imports_nothing_heavy(repo, verb):
    code = (
        "import sys\nfrom data_preprocessing.cli import main\n"
        f"try:\n    main([{verb!r}, '--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "heavy = {'torch', 'numpy', 'h5py', 'lxml', 'pydantic', 'tokenizers', 'yaml', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Example:" in done.stdout and f"data_preprocessing {verb} " in done.stdout


def test_no_module_imports_torch(repo):
    code = (
        "import sys, importlib, pkgutil, data_preprocessing\n"
        "for m in pkgutil.walk_packages(data_preprocessing.__path__, 'data_preprocessing.'):\n"
        "    if not m.name.endswith('__main__'):\n        importlib.import_module(m.name)\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repo, check=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["pubmed", "--output", "o"], "--input PATH is missing"),
        (["pubmed", "--input", "nowhere", "--output", "o"], "nowhere: no such file"),
        (["pubmed", "--input", ".", "--output", "o", "--msl", "2"], "the command line: msl: must be at least 8, got 2"),
        (["pubmed", "--input", ".", "--output", "o", "--set", "filters.min_char=3"], "did you mean 'min_chars'"),
        (["pubmed", "--input", ".", "--output", "o", "--set", "msl"], "write key=value"),
        (
            ["pubmed", "--input", ".", "--output", "o", "--set", "filters={min_chars: 1, min_chars: 2}"],
            "duplicate key 'min_chars'",
        ),
        (["pubmed", "--input", ".", "--output", "o", "--share", "3/3"], "0 <= I < N"),
        (["pubmed", "--input", ".", "--output", "o", "--objective", "prompt_completion"], "needs source: jsonl"),
        (["pubmed", "--config", "gone.yaml"], "gone.yaml: no such config"),
        (["verify", "nowhere"], "nowhere: no such folder"),
        (["inspect", "nowhere.h5"], "nowhere.h5"),
        (["report", "nowhere"], "missing"),
        (["synthetic", "--output", "x", "--documents", "0"], "must be at least 1"),
        (["pack", "--input", "nowhere", "--output", "o", "--msl", "16", "--eos_id", "0"], "nowhere: no such file"),
        (["tokenizer", "--input", "."], "give either"),
        (
            ["tokenizer", "--input", ".", "--check", "t", "--vocab_size", "300"],
            "--vocab_size: does nothing with --check",
        ),
        (["tokenizer", "--input", ".", "--check", "t", "--fim"], "--fim: does nothing with --check"),
        (["inspect", ".", "--document", "1", "--examples", "0"], "--examples: does nothing with --document"),
        (["report", ".", "--documents", "5"], "--documents: does nothing without --scale"),
        (["verify", __file__], "is a file; name its folder"),
    ],
)
def test_one_clear_line(cli, tmp_path, monkeypatch, repo, flags, message):
    done = subprocess.run(
        [sys.executable, "-m", "data_preprocessing", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(repo), "PATH": ""},
    )
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2 and not any(tmp_path.iterdir())


def test_yaml_names_the_line(cli, tmp_path, corpus):
    (tmp_path / "j.yaml").write_text(
        f"input: [{corpus}]\noutput: {tmp_path}/o\nmsl: 64\nfilters:\n  min_chars: 10\n  langauges: [eng]\n"
    )
    done = cli("pubmed", "--config", tmp_path / "j.yaml", check=False)
    assert (
        done.returncode == 2 and "j.yaml:6: unknown key 'filters.langauges'; did you mean 'languages'?" in done.stderr
    )
    (tmp_path / "j.yaml").write_text(f"source: pmc\ninput: [{corpus}]\noutput: {tmp_path}/o\n")
    assert "is a job for `pmc`" in cli("pubmed", "--config", tmp_path / "j.yaml", check=False).stderr


def test_repository_configs_load(repo):
    from data_preprocessing.config import Job
    from modelzoo.config.loading import load

    paths = sorted((repo / "configs" / "data").glob("*.yaml"))
    assert len(paths) >= 4
    for path in paths:
        assert load.load(path, Job).output


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href")]
        assert tag != "script"

    def handle_data(self, data):
        self.words.append(data)


def test_the_whole_walk(cli, tmp_path):
    out = tmp_path / "o"
    cli("synthetic", "--output", tmp_path / "xml", "--documents", 200, "--seed", 3)
    (tmp_path / "j.yaml").write_text("msl: 128\ntokenizer: {vocab_size: 600}\nval_fraction: 0.5\n")
    done = cli(
        "pubmed",
        "--config",
        tmp_path / "j.yaml",
        "--input",
        tmp_path / "xml",
        "--output",
        out,
        "--msl",
        32,
        "--set",
        "filters.min_chars=1",
        "--workers",
        1,
    )
    assert (
        "200 records = 200 written + 0 dropped" in done.stdout
        and "documents/s" in done.stderr
        and "tokens/s" in done.stderr
    )
    facts = json.loads((out / "report.json").read_text())
    assert facts["job"]["msl"] == 32 and facts["job"]["val_fraction"] == 0.5
    assert "all as written" in cli("verify", out, "--tokens").stdout
    shown = cli("inspect", out, "--examples", 2).stdout
    assert "SYNTHETIC" in shown and "example 1" in shown
    before = (out / "report.html").read_bytes()
    assert "200  records read" in cli("report", out).stdout and (out / "report.html").read_bytes() == before
    page = Page()
    page.feed(before.decode())
    assert (
        page.links == []
        and "http" not in before.decode().replace("http-equiv", "")
        and "written to shards" in page.words
    )
    data = (out / "train" / "output_chunk_0_0.h5").read_bytes()
    (out / "train" / "output_chunk_0_0.h5").write_bytes(data[:5000] + bytes([data[5000] ^ 8]) + data[5001:])
    broken = cli("verify", out, check=False)
    assert broken.returncode == 2 and "output_chunk_0_0.h5: differs" in broken.stderr


def test_synthetic_is_repeatable_and_says_so(cli, tmp_path):
    for name in ("a", "b"):
        cli("synthetic", "--output", tmp_path / name, "--documents", 50, "--files", 3)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == 3 and all(
        (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in files
    )
    assert all(n.startswith("SYNTHETIC") for n in files)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "pubmed24n0001.xml.gz").write_bytes(b"real")
    assert cli("synthetic", "--output", tmp_path / "c", check=False).returncode == 2


def test_tokenizer_verb(cli, tmp_path, corpus):
    cli("tokenizer", "--input", corpus, "--output", tmp_path / "t.json", "--vocab_size", 500, "--fim")
    assert (
        "gives the ids of tokenizers on 304 documents"
        in cli("tokenizer", "--input", corpus, "--check", tmp_path / "t.json").stdout
    )


def test_pack_round_trip(cli, tmp_path, corpus):
    """Shards to another length and back: the same stream of documents."""
    from data_preprocessing.tokens import token_ids

    cli(
        "pubmed",
        "--input",
        corpus,
        "--output",
        tmp_path / "o",
        "--vocab_size",
        500,
        "--msl",
        64,
        "--quiet",
        "--workers",
        1,
        "--set",
        "unit_megabytes=0.01",
    )

    def documents(folder):
        return [
            flat[offsets[k] : offsets[k + 1]].tolist()
            for flat, offsets, _ in token_ids.iterate_documents(token_ids.find_sources([str(folder)]), 0)
            for k in range(len(offsets) - 1)
        ]

    first = documents(tmp_path / "o" / "train")
    assert len(first) == json.loads((tmp_path / "o" / "train" / "manifest.json").read_text())["documents"]
    cli("pack", "--input", tmp_path / "o" / "train", "--output", tmp_path / "p", "--msl", 50)
    assert documents(tmp_path / "p") == first and cli("verify", tmp_path / "p", "--tokens")
    cli("pack", "--input", tmp_path / "o" / "train", "--output", tmp_path / "v", "--msl", 64, "--objective", "vsl")
    assert json.loads((tmp_path / "v" / "manifest.json").read_text())["documents"] == len(first)
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps({"input_ids": d}) + "\n" for d in first))
    cli("pack", "--input", tmp_path / "ids.jsonl", "--output", tmp_path / "j", "--msl", 50, "--eos_id", 0)
    assert (tmp_path / "j" / "output_chunk_0_0.h5").read_bytes() == (
        tmp_path / "p" / "output_chunk_0_0.h5"
    ).read_bytes()
    refused = cli(
        "pack",
        "--input",
        tmp_path / "ids.jsonl",
        "--output",
        tmp_path / "k",
        "--msl",
        50,
        "--eos_id",
        0,
        "--vocab_size",
        100,
        check=False,
    )
    assert refused.returncode == 2 and "does not fit" in refused.stderr


@pytest.mark.parametrize("sets", [["filters.min_chars=1000"], ["objective.tail=drop", "msl=1000"]])
def test_a_job_without_an_example_says_so(cli, tmp_path, sets):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {k} " * 9}) + "\n" for k in range(5)))
    words = ["jsonl", "--input", tmp_path / "a.jsonl", "--output", tmp_path / "o", "--vocab_size", 300, "--quiet"]
    for _ in range(2):  # the finished folder says it too
        done = cli(*words, *(w for s in sets for w in ("--set", s)), check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/o: holds no example to train on: ")
        assert "next:" not in done.stdout
    assert (tmp_path / "o" / "report.html").exists()
    for verb, where in (("report", "o"), ("verify", "o/train")):
        done = cli(verb, tmp_path / "o", check=False)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith(f"error: {tmp_path}/{where}: holds no example to train on")


@pytest.mark.parametrize("way", ["--output", "--check"])
def test_a_tokenizer_of_no_document_is_refused(cli, tmp_path, way):
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n')
    words = tokenizing.train(iter([["a text"]]), 300, ["<|endoftext|>"])
    (tmp_path / "t.json").write_text(words)
    done = cli("tokenizer", "--source", "jsonl", "--input", tmp_path / "a.jsonl", way, tmp_path / "t.json", check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.endswith("a.jsonl: hold no document that the filters keep; nothing was done")
    assert (tmp_path / "t.json").read_text() == words


def test_a_tokenizer_learns_from_the_first_part_of_every_file_where_not_all_is_read(tmp_path, cli):
    """It learnt from the first file alone, which of PubMed's is the oldest; all is read where it fits."""
    names = ("alphaword", "betaword", "gammaword")
    for k, name in enumerate(names):
        line = json.dumps({"text": f"{name} and some words that are long enough to be kept. " * 20}) + "\n"
        (tmp_path / f"{k}.jsonl").write_text(line * 1000, encoding="utf-8")
    words = (
        "tokenizer",
        "--source",
        "jsonl",
        "--input",
        tmp_path,
        "--vocab_size",
        400,
        "--output",
        tmp_path / "t.json",
    )
    for megabytes, note in ((1, "note: 1 MB of text were learnt from, of 3 input files the first part alone"), (9, "")):
        done = cli(*words, "--megabytes", megabytes)
        learnt = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))["model"]["vocab"]
        assert {f"\u0120{name}" for name in names} <= set(learnt)
        assert note in done.stderr and ("first part" in done.stderr) == bool(note)
