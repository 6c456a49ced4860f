"""Every command of the page runs as it stands there, on made inputs of the form that it names."""

import bz2
import gzip
import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from data_preprocessing import cli

PAGE = Path(__file__).parents[2] / "docs/howto/preprocess_others.md"
COMMANDS = [
    shlex.split(text.replace("\\\n", " "))[3:]
    for text in re.findall(r"```\n(python -m data_preprocessing .*?)```", PAGE.read_text(encoding="utf-8"), re.S)
]
zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
TEXT = "Document {} is about a study in which patients were given a drug, and long enough to be kept by the filters."


def lines(*records: dict) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


def article(k: int) -> str:
    ids = f"<article-id pub-id-type='pmcid'>PMC{k}</article-id>"
    return f"<article><front><article-meta>{ids}</article-meta></front><body><p>{TEXT.format(k)}</p></body></article>"


def passage(section: str, text: str) -> dict:
    return {"offset": 0, "infons": {"section_type": section, "type": "paragraph"}, "text": text}


def s2orc(k: int, licence: str) -> dict:
    source = {"pdfurls": None, "oainfo": {"license": licence} if licence else None}
    return {
        "corpusid": k,
        "externalids": {"pubmed": str(k), "pubmedcentral": None},
        "content": {"text": TEXT.format(k), "source": source},
    }


def make_inputs() -> None:
    """In the working folder, what the commands name."""
    pes2o = [
        {
            "id": str(k),
            "source": "s2orc/train",
            "version": "v2",
            "added": "2022-11-27",
            "created": f"{2000 + k}-01-01T00:00:00.000Z",
            "text": TEXT.format(k),
        }
        for k in range(4)
    ]
    v2 = {
        "corpusid": 1,
        "title": "T",
        "openaccessinfo": {"externalids": {"pubmed": 5}, "license": "CCBYNC"},
        "body": {"text": TEXT.format(1)},
    }
    bioc = {
        "source": "PMC",
        "documents": [
            {"id": f"PMC{k}", "passages": [passage("INTRO", TEXT.format(k)), passage("REF", "No.")]} for k in (1, 2)
        ],
    }
    for path, data in {
        "europepmc/PMC1_PMC2.xml.gz": gzip.compress(f"<articles>{article(1)}{article(2)}</articles>".encode()),
        "europepmc/PMC2_PMC3.xml.bz2": bz2.compress(f"<articles>{article(2)}{article(3)}</articles>".encode()),
        "BioC-PMC/a.json": json.dumps([bioc]).encode(),
        "peS2o/data/v2/train-0.json.gz": gzip.compress(lines(*pes2o[:3])),
        "peS2o/data/v2/train-1.json.zst": zstd.compress(lines(pes2o[3], {"id": "9", "text": None})),
        "s2orc/0.gz": gzip.compress(lines(s2orc(1, "CCBY"), s2orc(2, ""))),
        "s2orc/1.gz": gzip.compress(lines(s2orc(3, "CCBYNC"), s2orc(4, "CC0"))),
        "s2orc_v2/0.gz": gzip.compress(lines(v2)),
    }.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)


EXPECTED = {
    "data/europepmc": ({"written": 3, "superseded": 1}, {"not told": 3}, ["0"]),
    "data/bioc": ({"written": 2}, {"not told": 2}, ["0"]),
    "data/pes2o": ({"written": 4, "no_text": 1}, {"not told": 4}, ["2000", "2001", "2002", "2003"]),
    "data/s2orc": ({"written": 2, "licence": 2}, {"CC-BY": 1, "CC0": 1}, ["0"]),
    "data/s2orc_v2": ({"written": 1}, {"CC-BY-NC": 1}, ["0"]),
}


def test_every_command_is_tried():
    assert sorted(EXPECTED) == sorted(words[words.index("--output") + 1] for words in COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[words.index("--output") + 1])
def test_a_command_of_the_page_does_what_the_page_says(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    make_inputs()
    assert cli.main([*words, "--val_fraction", "0", "--workers", "1", "--quiet"]) == 0
    out = words[words.index("--output") + 1]
    report = json.loads(Path(out, "report.json").read_text())
    reasons, licences, years = EXPECTED[out]
    assert report["manifest"]["reasons"] == reasons and report["licences"] == licences
    assert sorted(report["years"]) == years
