"""Small corpora, a small tokenizer, and independent references that the tests compare with."""

import contextlib
import gzip
import io
import os
import re
import subprocess
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def cli():
    """Run `python -m data_preprocessing ...` from the repository, in this process: starting one takes far longer."""
    from data_preprocessing.cli import main

    def run(*args, check: bool = True) -> subprocess.CompletedProcess:
        words, out, err = [*map(str, args)], io.StringIO(), io.StringIO()
        with contextlib.chdir(REPO), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(words)
            except SystemExit as e:  # argparse
                code = e.code
        done = subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
        if check and done.returncode:
            raise AssertionError(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


def make_record(
    pmid: int, title: str, abstract: str, *, version: int = 1, types: str = "", extra: str = "", language: str = "eng"
) -> str:
    body = f"<Abstract>{abstract}</Abstract>" if abstract else ""
    return (
        f'<PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM"><PMID Version="{version}">{pmid}</PMID>'
        "<DateRevised><Year>2020</Year><Month>01</Month><Day>02</Day></DateRevised>"
        '<Article PubModel="Print"><Journal><JournalIssue><PubDate><Year>2001</Year></PubDate></JournalIssue></Journal>'
        f"<ArticleTitle>{title}</ArticleTitle>{body}<AuthorList><Author><LastName>O'Neil</LastName></Author></AuthorList>"
        f'<Language>{language}</Language><PublicationTypeList><PublicationType UI="D016428">Journal Article'
        f"</PublicationType>{types}</PublicationTypeList></Article>{extra}</MedlineCitation><PubmedData><ArticleIdList>"
        f'<ArticleId IdType="pubmed">{pmid}</ArticleId></ArticleIdList></PubmedData></PubmedArticle>\n'
    )


def make_set(*records: str, root: str = "PubmedArticleSet") -> bytes:
    return f'<?xml version="1.0" encoding="utf-8"?>\n<{root}>\n{"".join(records)}</{root}>\n'.encode()


@pytest.fixture(scope="session")
def record():
    return make_record


@pytest.fixture(scope="session")
def citation_set():
    return make_set


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Five files of made-up records: versions, deletions, duplicates, retractions, titles alone."""
    from data_preprocessing.sources import synthetic

    folder = tmp_path_factory.mktemp("corpus") / "xml"
    synthetic.write(str(folder), 300, 5, 4)
    for k, name in enumerate(sorted(os.listdir(folder)), 1):
        os.rename(folder / name, folder / f"pubmed30n{k:04d}.xml.gz")
    para = "<AbstractText>{}</AbstractText>"
    text = "The same abstract stands in two records, and only one of them may be written to a shard."
    update = make_set(
        make_record(
            900000000,
            "A newer version of the first record",
            para.format("Its abstract has been revised by its authors in the year after."),
        ),
        make_record(
            900000001,
            "A second version by number",
            para.format("The version attribute decides before the order of files does so."),
            version=2,
        ),
        make_record(5, "Twin", para.format(text)),
        make_record(6, "Twin", para.format(text.upper())),
        make_record(
            7,
            "Withdrawn",
            para.format(text + " Not true."),
            types="<PublicationType>Retracted Publication</PublicationType>",
        ),
        make_record(8, "A title alone", ""),
        make_record(9, "", ""),
        '<DeleteCitation><PMID Version="1">900000002</PMID><PMID Version="1">123456</PMID></DeleteCitation>\n',
    )
    with gzip.GzipFile(folder / "pubmed30n0005.xml.gz", "wb", mtime=0) as f:
        f.write(update)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, corpus) -> Path:
    """A byte-level BPE of 700 entries, trained on the made-up corpus."""
    from data_preprocessing.config import TextPolicy
    from data_preprocessing.sources import pubmed
    from data_preprocessing.tokens import tokenizing

    texts = [
        d.text for f in sorted(corpus.iterdir()) for d in pubmed.documents(str(f), TextPolicy(), 1 << 30) if d.text
    ]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizing.train(iter([texts]), 700, ["<|endoftext|>", *tokenizing.FIM_TOKENS]))
    return path


@pytest.fixture(scope="session")
def gpt2(shared_data) -> Path:
    return shared_data / "gpt2_bpe"


def tree_hash(out: Path) -> dict[str, str]:
    """SHA-256 of every file that a job leaves, but for the folder between steps."""
    import hashlib

    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file() and "work" not in p.relative_to(out).parts
    }


@pytest.fixture(scope="session")
def hash_tree():
    return tree_hash


# --- an independent reader of citation XML: the standard library's tree, and the rules written a second time ---------


def _squeeze(text: str) -> str:
    if text.isascii() and text.replace("\n", " ").replace("\t", " ").isprintable():
        return re.sub(r"\s+", " ", text).strip()
    kept = []
    for c in unicodedata.normalize("NFC", text):
        if unicodedata.category(c) in ("Zl", "Zp"):
            kept.append(" ")
        elif (
            (unicodedata.category(c) == "Cc" and not c.isspace())
            or c in "\u00ad\u200b\u200c\u200d\u200e\u200f\ufeff"
            or "\u202a" <= c <= "\u202e"
            or "\u2060" <= c <= "\u2064"
        ):
            continue
        else:
            kept.append(c)
    return re.sub(r"\s+", " ", "".join(kept)).strip()


def _text(element) -> str:
    out = element.text or ""
    for child in element:
        inner = _text(child)
        if child.tag in ("sup", "sub") and re.search(r"\n\s*$", out):
            out = out.rstrip()
        if child.tag == "sup" and re.fullmatch(r"\s*[-−+–]?\d+([.,]\d+)?\s*", inner) and out[-1:].isdigit():
            inner = "^" + inner.strip()
        out += inner + (child.tail or "")
    return out


def reference_citations(data: bytes) -> dict[str, dict]:
    """{PMID: facts} of a citation set, by the standard library's parser."""
    facts = {}
    for citation in ET.fromstring(data).iter("MedlineCitation"):
        article = citation.find("Article")
        title = _squeeze(_text(article.find("ArticleTitle")))
        if re.fullmatch(r"\[[^\[]*\]\.?", title):
            title = title[1 : title.rindex("]")] + (
                "" if title[title.rindex("]") - 1] in ".?!" else title[title.rindex("]") + 1 :]
            )
        if title.lower().strip("[].") == "not available":
            title = ""
        lines = [title] if title else []
        labels = 0
        for part in article.findall("Abstract/AbstractText"):
            text = _squeeze(_text(part))
            if text:
                label = _squeeze(part.get("Label") or "")
                labels += bool(label) and label != "UNLABELLED"
                lines.append(f"{label}: {text}" if label and label != "UNLABELLED" else text)
        date = article.find("Journal/JournalIssue/PubDate")
        year = re.search(r"\d{4}", date.findtext("Year") or date.findtext("MedlineDate") or "")
        facts[citation.findtext("PMID").strip()] = {
            "text": "\n".join(lines),
            "labels": labels,
            "year": int(year[0]) if year else 0,
            "language": ",".join(e.text for e in article.findall("Language")),
            "version": int(citation.find("PMID").get("Version", 1)),
            "types": {t.text for t in article.findall("PublicationTypeList/PublicationType")},
        }
    return facts


@pytest.fixture(scope="session")
def by_standard_library():
    return reference_citations
