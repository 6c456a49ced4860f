"""100 records of real PubMed files, looked at by eye (titles, ends of lines, markup): facts and hashes, no texts."""

import csv
import hashlib
from pathlib import Path

import pytest

from data_preprocessing.config import TextPolicy
from data_preprocessing.sources import pubmed

GOLDEN = Path(__file__).parent / "golden" / "pubmed_real.csv"


@pytest.mark.realdata
def test_hand_checked_records(shared_data):
    with open(GOLDEN, newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 100
    folder = shared_data / "pubmed_real"
    documents = {
        (name, d.pmid): d
        for name in {r["file"] for r in rows}
        for d in pubmed.documents(str(folder / name), TextPolicy(), 1 << 30)
        if not d.deleted
    }
    for r in rows:
        d = documents[r["file"], r["pmid"]]
        found = {
            "version": d.version,
            "year": d.year,
            "language": d.language,
            "kinds": " ".join(d.kinds),
            "lines": len(d.text.split("\n")),
            "characters": len(d.text),
            "has_abstract": int(d.has_abstract),
            "sha256": hashlib.sha256(d.text.encode()).hexdigest()[:16],
        }
        assert {k: str(v) for k, v in found.items()} == {k: r[k] for k in found}, (r["file"], r["pmid"])


@pytest.mark.realdata
def test_the_deleted_citation(shared_data):
    path = shared_data / "pubmed_real" / "medline16n0902.xml.gz"
    deleted = [d.key for d in pubmed.documents(str(path), TextPolicy(), 1 << 30) if d.deleted]
    assert deleted == ["pmid:26432306"]
