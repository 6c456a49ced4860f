"""Keep test sets out of the training data: by document id, and by long word sequences that they share."""

import csv
import os
import re

import numpy as np

from data_preprocessing.inputs import streams
from data_preprocessing.inputs.listing import strip_packing
from data_preprocessing.steps.minhash import word_ngrams
from data_preprocessing.text.document import Document
from modelzoo.config.errors import UserError
from modelzoo.reading import load_json

MAX_BENCHMARK = 256 << 20  # bytes of one test set
_PMID = re.compile(r"\d{1,9}$")
_BETWEEN = re.compile(r"\W+")
_PUBTATOR = re.compile(r"(\d{1,9})\|[ta]\|(.*)$")  # the titles and abstracts of BC5CDR and NCBI-disease
_HOC_INDEX = re.compile(r"(\d{1,9})_s\d+$")


class Benchmark:
    """Ids and word n-grams of test sets. `find_overlap` is a filter."""

    def __init__(self, pmids: set[str], grams: np.ndarray, n: int):
        self.pmids, self.n = pmids, n
        self.grams = np.unique(grams)
        # Two bits of every gram's hash in a small table settle nearly all lookups without a search.
        self.table = np.zeros(1 << 22, bool)
        self.table[self.grams >> np.uint64(42)] = True

    def find_overlap(self, document: Document) -> str | None:
        """The reason for dropping a document that is in a test set or shares n words in a row with one, else None."""
        if document.pmid and document.pmid in self.pmids:
            return "benchmark_pmid"
        if not len(self.grams):
            return None
        text = document.text if document.prompt is None else document.prompt + "\n" + document.text
        grams = _find_grams(text, self.n)
        grams = grams[self.table[grams >> np.uint64(42)]]
        if not len(grams):
            return None
        places = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        return "benchmark_overlap" if (self.grams[places] == grams).any() else None


def _find_grams(text: str, n: int) -> np.ndarray:
    """u8 hashes of the word n-grams of a text; spaces, dashes and quotes of any script part words as ASCII's do."""
    return word_ngrams((text if text.isascii() else _BETWEEN.sub(" ", text)).encode(), n)


def load(paths: tuple[str, ...], n: int) -> Benchmark:
    """Test sets: a list of PMIDs (text or JSON), PubMedQA's JSON, HoC's TSV, JSONL, CSV, PubTator, or plain text.

    Their form separates ids from texts; in JSON every string is text, but for keys and strings that are PMIDs.
    """
    pmids: set[str] = set()
    grams = [np.empty(0, np.uint64)]
    for path in paths:
        texts: list[str] = []
        if not os.path.lexists(path):
            raise UserError(f"{path}: no such file (filters.decontaminate)")
        data = b"".join(streams.unpacked(path, MAX_BENCHMARK))
        try:
            _read(data.decode("utf-8-sig"), path, pmids, texts)
            "".join(texts).encode()  # half a surrogate pair is no text
            grams += [_find_grams(text, n) for text in texts]
        except RecursionError:
            raise UserError(f"{path}: cannot be read as a test set: it is nested too deeply") from None
        except (ValueError, csv.Error) as e:
            raise UserError(f"{path}: cannot be read as a test set: {e}") from None
    if not pmids and not any(map(len, grams)):
        raise UserError(f"{', '.join(paths)}: neither PMIDs nor texts of {n} words were found in the test sets")
    return Benchmark(pmids, np.concatenate(grams), n)


def _read(text: str, path: str, pmids: set[str], texts: list[str]) -> None:
    name = strip_packing(path)
    lines = text.replace("\r\n", "\n").split("\n")  # splitlines also parts at U+2028 and others
    if name.endswith(".json"):
        _walk(load_json(text), pmids, texts)
    elif name.endswith(".jsonl"):
        for number, line in enumerate(lines, 1):
            if line.strip():
                _walk(_load_line(line, number), pmids, texts)
    elif name.endswith(".tsv"):
        for line in lines:
            for cell in filter(None, line.split("\t")):
                if found := _HOC_INDEX.match(cell) or _PMID.match(cell):
                    pmids.add(found[1] if found.lastindex else found[0])
                else:
                    texts.append(cell)
    elif name.endswith(".csv"):
        csv.field_size_limit(MAX_BENCHMARK)  # of this process; a cell may be a whole article
        for cell in (c for row in csv.reader(line + "\n" for line in lines) for c in row if c):
            pmids.add(cell) if _PMID.match(cell) else texts.append(cell)
    else:
        for line in filter(None, map(str.strip, lines)):
            if found := _PUBTATOR.match(line):
                pmids.add(found[1])
                texts.append(found[2])
            else:
                pmids.add(line) if _PMID.match(line) else texts.append(line)


def _load_line(line: str, number: int) -> object:
    try:
        return load_json(line)
    except ValueError as e:
        raise ValueError(f"line {number}: {e}") from None


def _walk(value: object, pmids: set[str], texts: list[str]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if _PMID.match(str(key)):
                pmids.add(str(key))
            elif str(key).lower() in ("pmid", "id") and _PMID.match(str(inner)):
                pmids.add(str(inner))
                continue
            _walk(inner, pmids, texts)
    elif isinstance(value, list):
        strings = [str(v) for v in value if isinstance(v, str | int)]
        if len(strings) == len(value) and strings and all(map(_PMID.match, strings)):
            pmids.update(strings)
            return
        for inner in value:
            _walk(inner, pmids, texts)
    elif isinstance(value, str):
        texts.append(value)
