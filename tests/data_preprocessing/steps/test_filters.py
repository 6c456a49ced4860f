"""Filters, near duplicates and decontamination, each against the rule written out."""

import hashlib
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import Filters, Kinds
from data_preprocessing.steps import decontaminate, filters, minhash
from data_preprocessing.text.document import Document
from modelzoo.config.errors import UserError

LONG = "Some title of an article\n" + "The abstract goes on for a while and says something of use. " * 3


def reason(document: Document, kinds: Kinds | None = None, benchmark=None, **settings) -> str:
    chain = filters.build(Filters(**settings), kinds or Kinds(), benchmark)
    return filters.REASONS[filters.find_reason(document, chain)]


@pytest.mark.parametrize(
    ("document", "settings", "expected"),
    [
        (Document("k", LONG), {}, "written"),
        (Document("k", ""), {}, "no_text"),
        (Document("k", "A title", has_abstract=False), {}, "no_abstract"),
        (Document("k", LONG, has_abstract=False), {"require_abstract": False}, "written"),
        (Document("k", "T\nshort"), {}, "too_short"),
        (Document("k", LONG), {"max_chars": 100}, "too_long"),
        (Document("k", " yes", prompt=LONG), {"min_chars": len(LONG) + 4, "max_chars": len(LONG) + 4}, "written"),
        (Document("k", " yes", prompt=LONG), {"min_chars": len(LONG) + 5}, "too_short"),
        (Document("k", " yes", prompt=LONG), {"max_chars": len(LONG) + 3}, "too_long"),
        (Document("k", LONG, language="ita"), {"languages": ("eng",)}, "language"),
        (Document("k", LONG, language="ita,eng"), {"languages": ("eng",)}, "written"),
        (Document("k", LONG), {"languages": ("eng",)}, "written"),
        (Document("k", LONG, licence="CC-BY-4.0"), {"licences": ("CC-BY", "CC0")}, "written"),
        (Document("k", LONG, licence="CC-BY-NC-4.0"), {"licences": ("CC-BY", "CC0")}, "licence"),
        (Document("k", LONG, licence="CC0"), {"licences": ("CC-BY", "CC0")}, "written"),
        (Document("k", LONG), {"licences": ("CC-BY",)}, "licence"),
        (Document("k", "Letter to the editor about fever and its causes\nNo abstract available."), {}, "boilerplate"),
        (
            Document("k", "A title\nThis article has been withdrawn at the request of the authors and the editor."),
            {},
            "boilerplate",
        ),
        (Document("k", "A title that is long enough\nNo abstract available."), {"boilerplate": False}, "written"),
        (Document("k", LONG, kinds=("retracted",)), {}, "retracted"),
        (Document("k", LONG, kinds=("comment",)), {}, "written"),
        (Document("k", LONG, kinds=("unreadable",)), {}, "unreadable"),
    ],
)
def test_one_reason_each(document, settings, expected):
    assert reason(document, **settings) == expected


def test_policies_of_kinds():
    for kind in Kinds.model_fields:
        document = Document("k", LONG, kinds=(kind,))
        assert (
            reason(document, Kinds(**{kind: "drop"})) == kind and reason(document, Kinds(**{kind: "keep"})) == "written"
        )
        marked = Document("k", LONG, kinds=(kind,))
        filters.mark(marked, Kinds(**{kind: "mark"}))
        assert (
            marked.text.endswith(LONG)
            and marked.text.startswith("[")
            and reason(marked, Kinds(**{kind: "mark"})) == "written"
        )


@settings(max_examples=300)
@given(st.text(max_size=60), st.text(max_size=60))
def test_text_hash_is_blind_to_case_and_white_space_alone(a, b):
    plain = [" ".join(t.lower().split()) for t in (a, b)]
    assert (filters.text_hash(a) == filters.text_hash(b)) == (plain[0] == plain[1])
    assert filters.text_hash(a) == hashlib.blake2b(" ".join(a.lower().split()).encode(), digest_size=16).digest()
    assert filters.text_hash(a) == filters.text_hash("\n " + "  \t".join(a.lower().split()) + "\u2003")


# --- word n-grams, MinHash -------------------------------------------------------------------------------------------


def words_of(text: str) -> list[bytes]:
    """Runs of ASCII letters and digits (lower case) and of bytes from 128 up."""
    out, word = [], bytearray()
    for byte in text.encode() + b" ":
        if byte >= 128 or chr(byte).isalnum():
            word += bytes([byte]).lower() if byte < 128 else bytes([byte])
        elif word:
            out.append(bytes(word))
            word = bytearray()
    return out


vocabulary = st.sampled_from(["a", "b", "the", "The", "fever", "é", "x1", "1", "-", ".", "β2"])


@settings(max_examples=400)
@given(st.lists(vocabulary, max_size=30), st.lists(vocabulary, max_size=30), st.integers(1, 5))
def test_ngrams_are_equal_exactly_where_the_words_are(a, b, n):
    a, b = " ".join(a), "  ".join(b)
    found = [minhash.word_ngrams(t.encode(), n) for t in (a, b)]
    expected = [[tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in map(words_of, (a, b))]
    assert [len(g) for g in found] == [len(e) for e in expected]
    for x, gx in zip(expected[0] + expected[1], np.concatenate(found).tolist(), strict=True):
        for y, gy in zip(expected[0] + expected[1], np.concatenate(found).tolist(), strict=True):
            assert (x == y) == (gx == gy)


def test_signatures_estimate_jaccard():
    rng = random.Random(0)
    a, b = minhash.seeds(256)
    for share in (0.2, 0.5, 0.8, 0.95):
        base = [f"w{rng.randrange(10**6)}" for _ in range(400)]
        other = base[: int(400 * share)] + [f"v{rng.randrange(10**6)}" for _ in range(400 - int(400 * share))]
        grams = [np.unique(minhash.word_ngrams(" ".join(w).encode(), 5)) for w in (base, other)]
        exact = len(np.intersect1d(*grams)) / len(np.union1d(*grams))
        estimate = np.mean(minhash.signature(grams[0], a, b) == minhash.signature(grams[1], a, b))
        assert abs(estimate - exact) < 4 * (exact * (1 - exact) / 256) ** 0.5 + 0.01


@pytest.mark.parametrize(("permutations", "threshold"), [(64, 0.8), (64, 0.5), (128, 0.9), (60, 0.7), (8, 0.99)])
def test_bands_catch_pairs_at_the_threshold(permutations, threshold):
    bands = minhash.bands_for(permutations, threshold)
    rows = permutations // bands
    assert permutations % bands == 0 and 1 - (1 - threshold**rows) ** bands > 0.5


# --- test sets -------------------------------------------------------------------------------------------------------

QUESTION = "Does the early use of an invented drug lower the rate of relapse in patients with a made up disease"


@pytest.mark.parametrize(
    ("name", "content", "pmids"),
    [
        ("ids.txt", "123\n456\n", {"123", "456"}),
        ("ids.json", json.dumps(["123", "456"]), {"123", "456"}),
        ("pqa.json", json.dumps({"123": {"QUESTION": QUESTION, "CONTEXTS": [QUESTION], "YEAR": "2001"}}), {"123"}),
        ("hoc.tsv", f"labels\tsentence\tindex\n0_0\t{QUESTION}\t123_s0\n", {"123"}),
        ("set.jsonl", json.dumps({"pmid": 123, "text": QUESTION}) + "\n", {"123"}),
        ("plain.txt", QUESTION, set()),
    ],
)
def test_test_sets_of_all_forms(tmp_path, name, content, pmids):
    (tmp_path / name).write_text(content)
    benchmark = decontaminate.load((str(tmp_path / name),), 13)
    assert benchmark.pmids == pmids
    assert reason(Document("k", LONG, pmid="123"), benchmark=benchmark) == ("benchmark_pmid" if pmids else "written")
    copied = Document("k", LONG + "we asked: " + QUESTION.upper().replace(" ", "  ") + "?", pmid="9")
    assert reason(copied, benchmark=benchmark) == ("written" if name.startswith("ids") else "benchmark_overlap")
    near = Document("k", LONG + " ".join(QUESTION.split()[:12]), pmid="9")
    assert reason(near, benchmark=benchmark) == "written"


@pytest.mark.parametrize("name", ["set.tsv", "set.jsonl", "set.csv", "set.txt", "set.pubtator.txt", "set.json"])
@pytest.mark.parametrize("space", ["\u2028", "\x0b", "\x0c", "\x85", "\u2029", "\xa0", "\u2009", "\r", " \u2013 "])
def test_a_test_sentence_is_found_whatever_space_is_in_it(tmp_path, name, space):
    """Lines of a test set end at line breaks alone, and no space of Unicode's is a letter."""
    words = QUESTION.split()
    odd = " ".join(words[:8]) + space + " ".join(words[8:])
    form = {
        "set.tsv": f"index\ttext\ns1\t{odd}\n",
        "set.csv": f'id,text\nr1,"{odd}"\n',
        "set.txt": f"{odd}\n",
        "set.pubtator.txt": f"77|t|{odd}\n77|a|Short.\n",
    }.get(name, json.dumps({"text": odd}, ensure_ascii=False) + "\n")
    (tmp_path / name).write_bytes(form.encode())
    benchmark = decontaminate.load((str(tmp_path / name),), 13)
    assert benchmark.pmids == ({"77"} if "pubtator" in name else set())
    for text in (QUESTION, odd, QUESTION.replace(" ", "\u2003")):
        assert reason(Document("k", LONG + ". " + text), benchmark=benchmark) == "benchmark_overlap"


def test_a_cell_of_csv_may_hold_lines_and_be_long(tmp_path):
    (tmp_path / "set.csv").write_text(f'id,text\n456,"{"q" * 200_000}, {QUESTION.replace(" ", chr(10))}"\n')
    benchmark = decontaminate.load((str(tmp_path / "set.csv"),), 13)
    assert benchmark.pmids == {"456"}
    assert reason(Document("k", LONG + QUESTION), benchmark=benchmark) == "benchmark_overlap"


@pytest.mark.parametrize("name,where", [("set.json", ""), ("set.jsonl", "line 1: ")])
def test_a_test_set_with_a_key_twice_is_refused(tmp_path, name, where):
    """The first question would not be kept out of the training data."""
    (tmp_path / name).write_text(f'{{"a": "{QUESTION}", "a": "other"}}')
    with pytest.raises(UserError, match=rf"{name}: cannot be read as a test set: {where}gives the key 'a' twice"):
        decontaminate.load((str(tmp_path / name),), 13)


@pytest.mark.parametrize(("name", "content"), [("empty.txt", ""), ("bad.json", "{"), ("none.json", '{"a": ["b"]}')])
def test_test_sets_without_content_are_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        decontaminate.load((str(tmp_path / name),), 13)
    with pytest.raises(UserError, match="no such file"):
        decontaminate.load(("gone.json",), 13)


@pytest.mark.realdata
def test_real_test_sets(shared_data):
    paths = tuple(
        str(shared_data / p) for p in ("pubmedqa/pqal_test_ids.json", "pubmedqa/pqal_cv_500.json", "hoc/dev.tsv")
    )
    benchmark = decontaminate.load(paths, 13)
    assert len(benchmark.pmids) == 500 + 500 + 186
    with open(paths[1]) as f:
        for pmid, entry in list(json.load(f).items())[:50]:
            text = "\n".join(entry["CONTEXTS"])
            assert benchmark.find_overlap(Document("k", text, pmid=pmid)) == "benchmark_pmid"
            assert benchmark.find_overlap(Document("k", text, pmid="1")) == "benchmark_overlap"
