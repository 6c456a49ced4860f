"""Memory and work that grow with the input and no faster, and the same results however the work is shared."""

import itertools
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import Job
from data_preprocessing.steps import decontaminate, drops, extract, filters, minhash, resolve, sorting, store
from data_preprocessing.text.document import Document
from modelzoo.config.errors import UserError

alphabet = st.sampled_from(list("ab c, d.é\n") + ["word ", "WORD ", "12 ", "x" * 30])


@settings(max_examples=100, deadline=None)
@given(st.lists(alphabet, max_size=60).map("".join), st.integers(1, 6), st.integers(1, 40))
def test_grams_are_the_same_in_pieces_of_any_size(text, n, piece):
    whole = minhash.word_ngrams(text.encode() or b" ", n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minhash, "PIECE", piece)
        patch.setattr(minhash, "ROWS", piece)
        assert minhash.word_ngrams(text.encode() or b" ", n).tolist() == whole.tolist()
        a, b = minhash.seeds(16)
        expected = ((whole[:, None] * a + b) >> np.uint64(32)).min(axis=0, initial=0xFFFFFFFF)
        assert minhash.signature(whole, a, b).tolist() == expected.tolist()


def brute_force(signatures: dict[int, np.ndarray], bands: int, threshold: float) -> set[int]:
    """Documents that near duplicates of earlier ones are, from the definition: no buckets, no files, no sorting."""
    groups = {k: {k} for k in signatures}
    for band in range(bands):
        alike: dict[bytes, list[int]] = {}
        for k in sorted(signatures):
            alike.setdefault(signatures[k].reshape(bands, -1)[band].tobytes(), []).append(k)
        for members in alike.values():
            for a, b in [*itertools.pairwise(members), *((members[0], b) for b in members[1:])]:
                if a != b and (signatures[a] == signatures[b]).mean() >= threshold:
                    merged = groups[a] | groups[b]
                    for k in merged:
                        groups[k] = merged
    return {k for k in signatures if k != min(groups[k])}


words = st.integers(0, 10**6).map(str)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.lists(words, min_size=12, max_size=30), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans()), min_size=2, max_size=14),
    st.integers(1, 3),
    st.sampled_from([1, 2, 7]),
    st.sampled_from([1, 5, 1024]),
)
def test_near_duplicates_are_those_of_the_definition_whatever_the_buckets_and_the_memory(
    tmp_path_factory, bases, copies, units, buckets, memory
):
    work = str(tmp_path_factory.mktemp("near"))
    texts = []
    for base, place, changed in copies:
        text = list(bases[base % len(bases)])
        if changed:
            text[place % len(text)] = "other"
        texts.append(" ".join(text))
    job = Job(
        source="jsonl",
        input=(work,),
        output=work,
        buckets=buckets,
        filters={"near_duplicates": 0.5, "near_permutations": 32, "min_chars": 0},
    )
    owners = {}
    for unit in range(units):
        path = os.path.join(work, f"{unit}.jsonl")
        mine = texts[unit::units]
        with open(path, "w") as f:
            f.writelines(json.dumps({"text": text}) + "\n" for text in mine)
        extract.extract(job, work, unit, [{"path": path, "name": f"{unit}.jsonl"}])
        owners.update({unit << 32 | k: text for k, text in enumerate(mine)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_LEAST", memory)
        patch.setattr(minhash, "BLOCK", memory)
        for step in ("keys", "texts"):
            for bucket in range(buckets):
                getattr(resolve, step)(job, work, bucket, buckets, units, 0)
        for bucket in range(buckets):
            minhash.near(job, work, bucket, buckets, units, 0)
        minhash.groups(job, work, buckets, 0)
    a, b = minhash.seeds(32)
    first = {text: k for k, text in sorted(owners.items(), reverse=True)}  # exact duplicates are gone by then
    signatures = {k: minhash.signature(minhash.word_ngrams(t.encode(), 5), a, b) for t, k in first.items()}
    found = np.load(store.unit_path(work, "groups", 0, ".npy"))
    found = {(int(d["unit"]) << 32) | int(d["record"]) for d in found}
    assert found == brute_force(signatures, minhash.bands_for(32, 0.5), 0.5)


def test_buckets_read_their_own_part_alone(tmp_path, monkeypatch):
    """Files opened by all buckets grow with their number, not with its square."""
    counts = []
    for buckets in (8, 32):
        work = str(tmp_path / str(buckets))
        os.makedirs(work)
        path = os.path.join(work, "a.jsonl")
        with open(path, "w") as f:
            f.writelines(json.dumps({"text": f"{k} " * 90}) + "\n" for k in range(20))
        job = Job(
            source="jsonl",
            input=(path,),
            output=work,
            buckets=buckets,
            filters={"near_duplicates": 0.5, "min_chars": 0},
        )
        extract.extract(job, work, 0, [{"path": path, "name": "a.jsonl"}])
        for step in ("keys", "texts"):
            for bucket in range(buckets):
                getattr(resolve, step)(job, work, bucket, buckets, 1)
        loads = []
        real = np.load
        with monkeypatch.context() as patch:
            patch.setattr(np, "load", lambda *a, **k: loads.append(a) or real(*a, **k))  # noqa: B023
            for bucket in range(buckets):
                minhash.near(job, work, bucket, buckets, 1)
        counts.append(len(loads))
    assert counts[1] <= 4.5 * counts[0]


@pytest.mark.parametrize("split", [1, 2, 3])
@pytest.mark.parametrize("buckets", [1, 7])
@settings(max_examples=12, deadline=None)
@given(events=st.lists(st.tuples(st.sampled_from(["record", "record", "delete"]), st.integers(1, 3)), max_size=7))
def test_versions_and_deletions_have_one_outcome(tmp_path_factory, record, citation_set, split, buckets, events):
    """The last of the highest version is left, unless a later order deletes it, however the files are cut."""
    work = str(tmp_path_factory.mktemp("orders"))
    para = "<AbstractText>An abstract that is long enough for every filter that there is, number {}.</AbstractText>"
    parts = []
    for k, (what, version) in enumerate(events):
        whole = record(1, f"Title {k}", para.format(k), version=version)
        parts.append(whole if what == "record" else "<DeleteCitation><PMID>1</PMID></DeleteCitation>")
    per_unit = [parts[len(parts) * u // split : len(parts) * (u + 1) // split] for u in range(split)]
    job = Job(source="pubmed", input=(work,), output=work, buckets=buckets)
    for unit, mine in enumerate(per_unit):
        path = os.path.join(work, f"{unit}.xml")
        with open(path, "wb") as f:
            f.write(citation_set(*mine))
        extract.extract(job, work, unit, [{"path": path, "name": f"{unit}.xml"}])
    for bucket in range(buckets):
        resolve.keys(job, work, bucket, buckets, split)
    left = []
    for unit in range(split):
        arrays = store.load(work, unit)
        reasons = drops.put(drops.load(work, ("keys",), buckets), unit, arrays.reasons)
        starts = np.concatenate([[0], np.cumsum(arrays.lengths)])
        with open(store.unit_path(work, "extract", unit, ".text"), "rb") as f:
            data = f.read()
        left += [data[starts[r] : starts[r + 1]].decode().split("\n")[0] for r in np.flatnonzero(reasons == 0)]
    versions = {k: version for k, (what, version) in enumerate(events) if what == "record"}
    newest = max(versions, key=lambda k: (versions[k], k), default=None)
    deleted = newest is not None and any(what == "delete" for what, _ in events[newest:])
    assert left == ([] if newest is None or deleted else [f"Title {newest}"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep.json", "[" * 100_000 + "]" * 100_000),
        ("half.json", '["\\ud800 ' + "word " * 20 + '"]'),
        ("bad.jsonl", "{\n"),
        ("latin.tsv", "\udce9"),
    ],
)
def test_a_test_set_that_cannot_be_read_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=f"{name}: cannot be read as a test set"):
        decontaminate.load((str(tmp_path / name),), 13)


@pytest.mark.parametrize("name", ["set.tsv", "set.txt", "set.jsonl"])
def test_a_test_sentence_with_a_line_separator_in_it_is_whole(tmp_path, name):
    sentence = " ".join(f"w{k}" for k in range(7)) + "\u2028" + " ".join(f"v{k}" for k in range(7))
    text = (
        json.dumps({"text": sentence}, ensure_ascii=False)
        if name.endswith("jsonl")
        else "x" * 200_000 + "\t" + sentence
    )
    (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    found = decontaminate.load((str(tmp_path / name),), 13)
    assert found.find_overlap(Document("k", sentence)) == "benchmark_overlap"


def test_long_texts_are_hashed_as_short_ones():
    long = "Word  word\n" * 50_000
    assert filters.text_hash(long) == filters.text_hash(long.lower().replace("\n", " "))
