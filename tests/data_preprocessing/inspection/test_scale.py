"""Steps across the corpus, held to plain Python however little memory they have; and what a call is sent and costs."""

import collections
import gzip
import hashlib
import itertools
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preprocessing.config import Job
from data_preprocessing.jobs.plan import ENTRY, MANY_BUCKETS, UNITS_A_BUCKET, Plan, make_plan
from data_preprocessing.steps import components, drops, encode, filters, resolve, sorting, store
from data_preprocessing.steps.filters import CODE
from modelzoo.config.errors import UserError


@pytest.fixture(params=[2, 1024])
def rows_in_memory(request, monkeypatch):
    monkeypatch.setattr(sorting, "_LEAST", request.param)
    monkeypatch.setattr(sorting, "PIECE", request.param)


pairs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda p: p[0] != p[1]), max_size=60)


def roots_by_union(edges):
    groups = collections.defaultdict(set)
    for a, b in edges:
        merged = groups[a] | groups[b] | {a, b}
        for k in merged:
            groups[k] = merged
    return [(k, min(group)) for k, group in sorted(groups.items()) if k != min(group)]


def find_roots(tmp_path, edges):
    rows = sorting.Sorter(str(tmp_path / "edges"), 2, 0)
    rows.add(*np.array([(max(e), min(e)) for e in edges], np.uint64).reshape(-1, 2).T)
    return [tuple(row) for piece in components.find_roots(rows, str(tmp_path / "edges"), 0) for row in piece.tolist()]


@pytest.mark.usefixtures("rows_in_memory")
@settings(max_examples=12, deadline=None)
@given(edges=pairs)
def test_components_are_those_of_repeated_union(tmp_path_factory, edges):
    assert find_roots(tmp_path_factory.getbasetemp(), edges) == roots_by_union(edges)


@pytest.mark.usefixtures("rows_in_memory")
def test_a_chain_and_a_star_of_many_are_one_component_each(tmp_path):
    n = 40
    order = np.random.default_rng(0).permutation(n).tolist()
    chain = list(itertools.pairwise(order))
    star = [(n + 7, n + k) for k in range(n) if k != 7]
    assert find_roots(tmp_path, chain + star) == [(k, 0 if k < n else n) for k in range(2 * n) if k not in (0, n)]


record = st.tuples(st.integers(0, 4), st.integers(-1, 2), st.integers(0, 2), st.integers(0, 2), st.booleans())
units_of_records = st.lists(st.lists(record, max_size=8), min_size=1, max_size=4)


@pytest.mark.usefixtures("rows_in_memory")
@settings(max_examples=12, deadline=None)
@given(units_of_records, st.sampled_from([1, 3]), st.sampled_from(["file_order", "date_revised"]))
def test_versions_deletions_and_equal_texts_are_those_of_plain_python(tmp_path_factory, units, buckets, newest_by):
    """A record: (key, version, date, text, whether it is an order to delete the key)."""
    work = str(tmp_path_factory.mktemp("work"))
    os.makedirs(os.path.join(work, "extract"))
    job = Job(source="pubmed", input=(work,), output=work, newest_by=newest_by)
    best, orders, everyone = {}, {}, []
    for unit, found in enumerate(units):
        rows = [r for r in found if not r[4]]
        sums = [sum(not r[4] for r in found[:k]) for k, r in enumerate(found) if r[4]]
        number = lambda column, kind, rows=rows: np.array([r[column] for r in rows], kind)
        keys = number(0, "<u8")
        store.save(
            store.unit_path(work, "extract", unit, ".npz"),
            store.Extracted(
                keys, number(1, "<i4"), number(2, "<i4"), keys.astype("<i2"), (keys * 0).astype("u1"), keys,
                np.stack([keys % np.uint64(2), number(3, "<u8")], 1), keys,
                np.array([r[0] for r in found if r[4]], "<u8"), np.array(sums, "<i8"),
            ),
        )  # fmt: skip
        for place, (key, version, date, text, _) in enumerate(rows):
            rank = (version, date if newest_by == "date_revised" else 0, unit, place)
            everyone.append((key, text, unit, place))
            best[key] = max(best.get(key, rank), rank)
        for order, at in zip([r for r in found if r[4]], sums, strict=True):
            orders[order[0]] = (unit, at)
    expected, seen = {}, set()
    for key, _, unit, place in everyone:
        if (unit, place) < orders.get(key, (-1, 0)):
            expected[unit, place] = CODE["deleted"]
        elif best[key][2:] != (unit, place):
            expected[unit, place] = CODE["superseded"]
    for key, text, unit, place in everyone:
        if (unit, place) not in expected:
            if (key % 2, text) in seen:
                expected[unit, place] = CODE["exact_duplicate"]
            seen.add((key % 2, text))
    for step in ("keys", "texts"):
        for bucket in range(buckets):
            getattr(resolve, step)(job, work, bucket, buckets, len(units), 0)
    drops.merge(work, ("keys", "texts"), buckets, 0)
    found = drops.load(work, ("keys", "texts"), buckets)
    assert {(int(d["unit"]), int(d["record"])): int(d["reason"]) for d in found} == expected
    assert found.tolist() == sorted(found.tolist())


def test_what_a_call_is_sent_does_not_grow_with_the_inputs(tmp_path):
    sizes = []
    for n in (3, 300):
        for k in range(n):
            (tmp_path / f"{k}.jsonl").write_text('{"text": "a"}\n')
        job = Job(source="jsonl", input=(str(tmp_path), *(f"{tmp_path}/{k}.jsonl" for k in range(n))),
                  output=str(tmp_path / "out"), unit_megabytes=1e-6)  # fmt: skip
        plan = Plan(job, [[{"path": f"{tmp_path}/{k}.jsonl", "name": "k", "bytes": 1}] for k in range(n)])
        sizes.append(len(pickle.dumps(plan.part("extract", 1))))
    assert sizes[1] < sizes[0] + 20


def test_many_units_have_many_buckets_and_a_folder_keeps_its_number(tmp_path):
    def plan(n, out, **more):
        folder = tmp_path / f"{n}"
        if not folder.exists():
            folder.mkdir()
            for k in range(n):
                (folder / f"{k}.jsonl").write_text('{"text": "a"}\n')
        source = {"source": "jsonl", "input": (str(folder),), "output": str(tmp_path / out)}
        return make_plan(Job(**source, unit_megabytes=1e-6, **more))

    found = [plan(n, f"o{n}").buckets for n in (1, 127, 130)]
    assert found == [8, 8, 16]
    assert plan(130, "given", buckets=3).buckets == plan(130, "given", buckets=3).job.buckets == 3
    assert plan(130, "given").buckets == 3  # of the folder, which an earlier version may have begun
    with pytest.raises(UserError, match="buckets = 3, now 8"):
        (tmp_path / "given" / "work" / "keys").mkdir(parents=True)
        (tmp_path / "given" / "work" / "keys" / "00000.json").write_text("{}")
        plan(130, "given", buckets=8)
    assert min(max(8, 2 ** (10**6 // UNITS_A_BUCKET).bit_length()), MANY_BUCKETS) == 64


def test_more_inputs_than_a_manifest_lists_are_refused(tmp_path, monkeypatch):
    for k in range(9):
        (tmp_path / f"{k}.jsonl").write_text('{"text": "a"}\n')
    job = Job(source="jsonl", input=(str(tmp_path),), output=str(tmp_path / "out"))
    monkeypatch.setattr("data_preprocessing.jobs.plan.MAX_TEXT", 9 * (ENTRY + 7))
    make_plan(job)
    monkeypatch.setattr("data_preprocessing.jobs.plan.MAX_TEXT", 9 * (ENTRY + 7) - 1)
    with pytest.raises(UserError, match=r"9 input files are more than a manifest can list \(about 8\); put small"):
        make_plan(job)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=30), st.sampled_from([1, 60, 10**6]))
def test_texts_of_kept_records_are_read_whether_they_are_few_or_many(tmp_path_factory, records, batch):
    """A record: (bytes of its text, its reason)."""
    work = str(tmp_path_factory.mktemp("texts"))
    os.makedirs(os.path.join(work, "extract"))
    texts = [bytes([65 + k % 26]) * length for k, (length, _) in enumerate(records)]
    with open(store.unit_path(work, "extract", 0, ".text"), "wb") as file:
        file.write(b"".join(texts))
    lengths, reasons = (np.array([r[k] for r in records], np.int64) for k in (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BATCH_BYTES", batch)
        found = list(encode.read_texts(work, 0, lengths, reasons))
    assert [(int(r), text) for numbers, part in found for r, text in zip(numbers, part, strict=True)] == [
        (k, text) for k, text in enumerate(texts) if not reasons[k]
    ]


def test_a_table_in_pieces_is_the_table(tmp_path, monkeypatch):
    rng, work = np.random.default_rng(0), str(tmp_path)
    (tmp_path / "extract").mkdir()
    lines = [f"pmid:{k}\t{k}\t\t1\t2001\teng\t\t\ta.xml\t" for k in range(200)]
    (tmp_path / "extract" / "00000.tsv").write_text("".join(line + "\n" for line in lines))
    reasons, val, counts = rng.integers(0, 3, 200), rng.integers(0, 2, 200) > 0, rng.integers(0, 99, 200)
    head = "\t".join((*store.FACTS, "reason", "split", "tokens"))
    names = [
        filters.REASONS[r] + "\t" + ("" if r else "val" if v else "train") for r, v in zip(reasons, val, strict=True)
    ]
    wanted = [head, *(f"{a}\t{b}\t{n}" for a, b, n in zip(lines, names, counts, strict=True)), ""]
    for size in (1, 1 << 20):
        monkeypatch.setattr(encode, "TABLE_BYTES", size)
        sha, names_of = encode._documents_table(work, 0, work, reasons, val, counts)
        assert names_of == {"languages": {"eng": (reasons == 0).sum()}, "licences": {"not told": (reasons == 0).sum()}}
        data = (tmp_path / "documents" / "00000.tsv.gz").read_bytes()
        assert gzip.decompress(data).decode().split("\n") == wanted and hashlib.sha256(data).hexdigest() == sha
    (tmp_path / "extract" / "00000.tsv").write_text("".join(line + "\n" for line in lines[1:]))
    with pytest.raises(ValueError, match="longer"):
        encode._documents_table(work, 0, work, reasons, val, counts)
