"""Whole jobs: every record accounted for, the same bytes however the work is shared or interrupted, and refusals."""

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from data_preprocessing.config import Job
from data_preprocessing.inspection.verify import check_tokens, verify_output
from data_preprocessing.jobs.plan import STEPS, make_plan
from data_preprocessing.jobs.run import How, _alone, run_job
from data_preprocessing.steps import drops, minhash, parts, store
from modelzoo.config.errors import UserError


def make(corpus, out, path, **more) -> Job:
    settings = {
        "source": "pubmed",
        "input": (str(corpus),),
        "output": str(out),
        "tokenizer": {"path": str(path)},
        "msl": 64,
        "val_fraction": 0.2,
        "unit_megabytes": 0.01,
        "buckets": 3,
        "shard_tokens": 64 * 60,
        **more,
    }
    return Job(**settings)


def run(job: Job, **how) -> dict:
    return run_job(make_plan(job), How(**how))


def read_split(out, split) -> np.ndarray:
    parts = []
    manifest = json.loads((out / split / "manifest.json").read_text())
    for s in manifest["shards"]:
        with h5py.File(out / split / s["file"]) as f:
            parts.append(f["data"][:])
    return np.concatenate(parts)


def table(out) -> list[dict]:
    rows = []
    for path in sorted((out / "documents").iterdir()):
        head, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        rows += [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
    return rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus, tokenizer):
    out = tmp_path_factory.mktemp("whole") / "out"
    result = run(make(corpus, out, tokenizer))
    return out, result


def test_every_record_has_one_fate(whole):
    out, result = whole
    rows = table(out)
    assert result["records"] == len(rows) == 307 == sum(result["reasons"].values())
    assert result["reasons"] == {
        "written": 300,
        "superseded": 2,
        "deleted": 1,
        "retracted": 1,
        "no_text": 1,
        "no_abstract": 1,
        "exact_duplicate": 1,
    }
    fate = {(r["key"], r["version"], r["file"]): r["reason"] for r in rows}
    first, last = "pubmed30n0001.xml.gz", "pubmed30n0005.xml.gz"
    assert fate["pmid:900000000", "1", first] == "superseded" and fate["pmid:900000000", "1", last] == "written"
    assert fate["pmid:900000001", "1", first] == "superseded" and fate["pmid:900000001", "2", last] == "written"
    assert fate["pmid:900000002", "1", first] == "deleted"
    assert fate["pmid:5", "1", last] == "written" and fate["pmid:6", "1", last] == "exact_duplicate"
    assert fate["pmid:7", "1", last] == "retracted" and fate["pmid:8", "1", last] == "no_abstract"
    assert fate["pmid:9", "1", last] == "no_text"


def test_shards_hold_exactly_the_written_documents(whole, corpus, tokenizer):
    """From the XML by an independent path to the multiset of documents in the shards."""
    from tokenizers import Tokenizer

    from data_preprocessing.config import TextPolicy
    from data_preprocessing.sources import pubmed

    out, _ = whole
    reference = Tokenizer.from_file(str(tokenizer))
    texts = {}
    for f in sorted(corpus.iterdir()):
        for d in pubmed.documents(str(f), TextPolicy(), 1 << 30):
            texts[d.key, str(d.version), f.name] = d.text
    expected = {"train": [], "val": []}
    for r in table(out):
        if r["reason"] == "written":
            ids = reference.encode(texts[r["key"], r["version"], r["file"]]).ids
            assert len(ids) == int(r["tokens"])
            expected[r["split"]].append(ids)
    for split, documents in expected.items():
        data = read_split(out, split)
        stream, found = [], []
        for row in data:
            n = int(row[1].sum())
            stream += row[0][:n].tolist()
            if n < 64:  # a unit ends here: the last label is the EOS that no input repeats
                stream.append(int(row[2][n - 1]))
        document = []
        for t in stream:
            if t == 0:
                found.append(document)
                document = []
            else:
                document.append(t)
        assert sorted(d for d in found if d) == sorted(documents)
    assert len(expected["val"]) / 300 == pytest.approx(0.2, abs=0.08)


def test_manifests_and_side_files(whole, tokenizer):
    out, _ = whole
    assert verify_output(str(out))[0] == [] and check_tokens(str(out / "train")) == []
    import hashlib

    for split in ("train", "val"):
        m = json.loads((out / split / "manifest.json").read_text())
        assert (m["msl"], m["rows"], m["eos_id"], m["vocab_size"]) == (
            64,
            ["input_ids", "attention_mask", "labels"],
            0,
            700,
        )
        assert m["tokenizer_sha256"] == hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()
        data = read_split(out, split)
        assert (
            len(data) == m["n_examples"] == sum(s["n_examples"] for s in m["shards"])
            and data[:, 1].sum() == m["loss_tokens"]
        )
        params = json.loads((out / split / "data_params.json").read_text())
        assert params["post-process"]["n_examples"] == len(data) and params["processing"]["max_seq_length"] == 64
        assert max(s["n_examples"] for s in m["shards"]) <= 60
    assert (out / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    assert not [p for p in (out / "work").rglob("*") if p.is_file() and p.suffix not in (".json", "")]


@pytest.mark.parametrize(
    "more",
    [{}, {"objective": {"name": "vsl"}}, {"objective": {"name": "fim"}}, {"filters": {"near_duplicates": 0.7}}],
    ids=["lm", "vsl", "fim", "near"],
)
def test_worker_counts_do_not_matter(tmp_path, corpus, tokenizer, hash_tree, whole, more):
    trees = [] if more else [hash_tree(whole[0])]  # one worker's
    for workers in (1, 2) if more else (2, 5):  # fewer and more than there are buckets
        run(make(corpus, tmp_path / str(workers), tokenizer, **more), workers=workers)
        trees.append(hash_tree(tmp_path / str(workers)))
        assert (
            verify_output(str(tmp_path / str(workers)))[0] == []
            and check_tokens(str(tmp_path / str(workers) / "train")) == []
        )
    assert all(t == trees[0] for t in trees) and len(trees[0]) > 10


def test_shares_of_a_job_array_give_the_same(tmp_path, corpus, tokenizer, hash_tree, whole, repo):
    """Three processes at once, as a Slurm array runs them, then the same step by step."""
    flags = [
        "pubmed",
        "--input",
        str(corpus),
        "--tokenizer",
        str(tokenizer),
        "--msl",
        "64",
        "--val_fraction",
        "0.2",
        "--quiet",
        "--set",
        "unit_megabytes=0.01",
        "--set",
        "buckets=3",
        "--set",
        "shard_tokens=3840",
        "--workers",
        "1",
    ]
    start = [sys.executable, "-m", "data_preprocessing", *flags]
    together = []
    for named in (["--share", "0/3"], ["--shard", "1/3"], []):  # the last one is in a Slurm array
        array = {} if named else {f"SLURM_ARRAY_TASK_{k}": v for k, v in (("ID", "7"), ("MIN", "5"), ("COUNT", "3"))}
        command = [*start, "--output", str(tmp_path / "a"), *named, "--wait", "100"]
        together.append(subprocess.Popen(command, cwd=repo, env=os.environ | array))
    assert [p.wait(timeout=100) for p in together] == [0, 0, 0]
    for step in ("extract", "keys", "texts", "near", "groups", "tokenizer", "encode", "finish"):
        for i in range(2):
            plan = make_plan(make(corpus, tmp_path / "b", tokenizer))
            run_job(plan, How(shard=(i, 2), step=step))
    assert hash_tree(tmp_path / "a") == hash_tree(whole[0]) == hash_tree(tmp_path / "b")
    with pytest.raises(UserError, match="step 'extract'"):
        run_job(make_plan(make(corpus, tmp_path / "c", tokenizer)), How(shard=(0, 2), step="encode"))


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def test_killed_at_every_rename(tmp_path, corpus, tokenizer, hash_tree, whole, monkeypatch):
    """Stop dead before, then after, the k-th file becomes visible, for every k; the rerun gives the same bytes."""
    real, count = os.replace, 0
    limit = None

    def replace(a, b):
        nonlocal count
        count += 1
        if limit is not None and count > limit[0]:
            if limit[1]:
                real(a, b)
            raise Killed
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    job = make(corpus, tmp_path / "count", tokenizer)
    run(job)
    total = count
    assert total > 40
    for k in range(0, total - 1, 5):
        for after in (False, True) if k % 10 == 0 else (False,):
            out, count, limit = tmp_path / f"at{k}{after}", 0, (k, after)
            with pytest.raises(Killed):
                run(make(corpus, out, tokenizer))
            limit = None
            run(make(corpus, out, tokenizer))
            assert hash_tree(out) == hash_tree(whole[0]), k
            shutil.rmtree(out)


def test_killed_at_renames_of_the_steps_across_the_corpus(tmp_path, monkeypatch):
    """Before and after; the same command leaves the same drops and pairs, and takes nothing half-made for whole."""
    words = [f"w{k}" for k in range(30)]
    texts = [" ".join([*words[: 20 + k % 4], "x" * (k % 3)]) for k in range(12)]
    lines = [json.dumps({"id": k % 10, "text": text}) + "\n" for k, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    out, begun = tmp_path / "out", tmp_path / "begun"
    filters = {"near_duplicates": 0.5, "min_chars": 0}
    plan = make_plan(Job(source="jsonl", input=(str(tmp_path / "a.jsonl"),), output=str(out), buckets=2,
                              filters=filters))  # fmt: skip
    steps = ("keys", "texts", "near", "groups")
    run_job(plan, How(step="extract"))
    shutil.copytree(out, begun)
    real, left = os.replace, [10**6, False]

    def replace(a, b):
        left[0] -= 1
        if left[0] < 0:
            if left[1]:
                real(a, b)
            raise Killed
        real(a, b)

    def run_steps():
        for step in steps:
            run_job(plan, How(step=step, memory=0))
        return {p: p.read_bytes() for step in steps for p in (out / "work" / step).iterdir() if p.suffix == ".npy"}

    monkeypatch.setattr(os, "replace", replace)
    wanted = run_steps()
    assert any(len(np.load(out / "work" / step / "00000.npy")) for step in ("texts", "groups"))
    count = 10**6 - left[0]
    assert count >= 2 * (3 * 2 + 1 + 2)
    for number in range(0, count, 2):
        shutil.rmtree(out)
        shutil.copytree(begun, out)
        left[:] = number, number % 4 == 2
        with pytest.raises(Killed):
            run_steps()
        left[0] = 10**6
        assert run_steps() == wanted


def test_killed_by_the_clock(tmp_path, corpus, tokenizer, hash_tree, whole, repo):
    """SIGKILL to the whole process group at many moments of a run with two workers."""
    command = [
        sys.executable,
        "-m",
        "data_preprocessing",
        "pubmed",
        "--input",
        str(corpus),
        "--output",
        str(tmp_path / "out"),
        "--tokenizer",
        str(tokenizer),
        "--msl",
        "64",
        "--val_fraction",
        "0.2",
        "--quiet",
        "--workers",
        "2",
        "--set",
        "unit_megabytes=0.01",
        "--set",
        "buckets=3",
        "--set",
        "shard_tokens=3840",
    ]
    for seconds in (0.4, 0.9, 1.4, 2.0, 2.8):
        process = subprocess.Popen(command, cwd=repo, start_new_session=True, stderr=subprocess.PIPE)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stderr.close()
    for _ in range(20):  # a worker that was killed holds its lock until the system has let go of it
        done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=100)
        if "another process" not in done.stderr:
            break
        time.sleep(0.2)
    assert done.returncode == 0, done.stderr
    assert hash_tree(tmp_path / "out") == hash_tree(whole[0])


def test_verify_finds_any_flipped_byte(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "o")
    out = tmp_path / "o"
    files = [p for p in sorted(out.rglob("*")) if p.is_file() and "work" not in p.parts]
    rng = np.random.default_rng(0)
    for path in files:
        data = path.read_bytes()
        for place in {0, len(data) - 1, *rng.integers(0, len(data), 3).tolist()}:
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with contextlib.suppress(UserError):
                assert verify_output(str(out))[0], (path, place)
        path.write_bytes(data)
    assert verify_output(str(out))[0] == []
    (out / "train" / "output_chunk_9_9.h5").write_bytes(b"")
    assert "not in the manifest" in verify_output(str(out))[0][0]
    os.remove(out / "train" / "output_chunk_9_9.h5")
    os.remove(out / "val" / json.loads((out / "val" / "manifest.json").read_text())["shards"][0]["file"])
    assert "missing" in verify_output(str(out))[0][0]


def test_a_finished_job_is_left_alone(whole, corpus, tokenizer, hash_tree):
    before = {p: p.stat().st_mtime_ns for p in whole[0].rglob("*.h5")}
    assert run(make(corpus, whole[0], tokenizer)) == whole[1]
    assert {p: p.stat().st_mtime_ns for p in whole[0].rglob("*.h5")} == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"msl": 32}, "msl = 64, now 32"),
        ({"seed": 1}, "seed = 0, now 1"),
        ({"filters": {"min_chars": 60}}, "filters.min_chars"),
        ({"objective": {"name": "vsl"}}, "objective.name"),
        ({"tokenizer": {"path": "train"}}, "tokenizer"),
    ],
)
def test_another_config_is_refused(whole, corpus, tokenizer, more, message):
    with pytest.raises(UserError, match=message):
        make_plan(make(corpus, whole[0], tokenizer, **more))


def test_changed_inputs_are_refused(tmp_path, corpus, tokenizer):
    shutil.copytree(corpus, tmp_path / "xml")
    job = make(tmp_path / "xml", tmp_path / "out", tokenizer)
    run(job)
    path = tmp_path / "xml" / "pubmed30n0002.xml.gz"
    data = bytearray(path.read_bytes())
    data[4] ^= 1  # same length: the time stamp in the gzip header
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"pubmed30n0002.xml.gz: has changed"):
        run(job)
    path.write_bytes(bytes(data) + b"\0")
    with pytest.raises(UserError, match=r"other inputs \(pubmed30n0002.xml.gz\)"):
        make_plan(job)
    os.remove(path)
    with pytest.raises(UserError, match=r"other inputs \(pubmed30n0002.xml.gz\)"):
        make_plan(job)


def test_a_refused_input_is_fetched_again_and_the_job_goes_on(tmp_path, corpus, tokenizer, whole, capsys):
    """The units before it are kept; one whose file changed meanwhile is read again; the bytes are a whole job's."""
    shutil.copytree(corpus, tmp_path / "xml")
    job = make(tmp_path / "xml", tmp_path / "out", tokenizer)
    names = [name for unit in make_plan(job).units for name in (file["name"] for file in unit)]
    first, last = tmp_path / "xml" / names[0], tmp_path / "xml" / names[-1]
    kept, changed = last.read_bytes(), first.read_bytes()
    last.write_bytes(kept[: len(kept) // 2])
    first.write_bytes(gzip.compress(gzip.decompress(changed) + b"<!-- another -->"))
    with pytest.raises(UserError, match="fetch the file again"):
        run(job)
    marker = tmp_path / "out" / "work" / "extract" / "00001.json"
    before = marker.stat().st_mtime_ns
    last.write_bytes(kept)
    first.write_bytes(changed)
    run(job)
    assert marker.stat().st_mtime_ns == before
    assert "1 of its units are read again" in capsys.readouterr().err
    manifests = [json.loads((out / "manifest.json").read_text()) for out in (whole[0], tmp_path / "out")]
    assert manifests[0]["data_sha256"] == manifests[1]["data_sha256"]


def test_an_input_that_is_taken_away_before_anything_was_made_of_it_leaves_no_unit(tmp_path, corpus, tokenizer):
    shutil.copytree(corpus, tmp_path / "xml")
    job = make(tmp_path / "xml", tmp_path / "out", tokenizer)
    run(job, step="extract")
    files = [file for unit in make_plan(job).units for file in unit]
    os.remove(files[-1]["path"])
    run(job)
    assert {row["file"] for row in table(tmp_path / "out")} <= {file["name"] for file in files[:-1]}
    assert store.finished(str(tmp_path / "out" / "work"), "extract") == list(range(len(make_plan(job).units)))


def test_a_run_that_did_nothing_binds_nobody(tmp_path, corpus, tokenizer):
    """After a refused input the user mends it, and perhaps the settings, and runs again into the same folder."""
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_bytes(b"<PubmedArticleSet>")
    with pytest.raises(UserError, match="truncated"):
        run(make(tmp_path / "xml", tmp_path / "out", tokenizer))
    (tmp_path / "xml" / "a.xml").write_bytes(b"<PubmedArticleSet></PubmedArticleSet>")
    assert run(make(tmp_path / "xml", tmp_path / "out", tokenizer, msl=32))["records"] == 0


def test_foreign_folder_and_second_writer_are_refused(tmp_path, corpus, tokenizer):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        make_plan(make(corpus, tmp_path / "mine", tokenizer))
    plan = make_plan(make(corpus, tmp_path / "out", tokenizer))
    os.makedirs(plan.work)
    with _alone(plan, How()), pytest.raises(UserError, match="another process"):
        run_job(plan, How())


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"tokenizer": {"vocab_size": 600}}, "do not fit vocab_size 600"),
        ({"tokenizer": {"eos_token": "</s>"}}, "has no token '</s>'; name the one it uses"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_read(tmp_path, corpus, tokenizer, settings, words):
    """Not after hours of extraction, and the command with the right words begins the folder."""
    settings = {**settings, "tokenizer": {"path": str(tokenizer), **settings.get("tokenizer", {})}}
    with pytest.raises(UserError, match=words):
        run(make(corpus, tmp_path / "out", tokenizer, **settings))
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") in ([], [".lock"])


def test_broken_input_stops_the_job_and_writes_no_shard(tmp_path, corpus, tokenizer):
    shutil.copytree(corpus, tmp_path / "xml")
    path = tmp_path / "xml" / "pubmed30n0003.xml.gz"
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[:-50] + bytes(50))
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"pubmed30n0003\.xml\.gz"):
            run(make(tmp_path / "xml", tmp_path / "out", tokenizer), workers=workers)
    assert not (tmp_path / "out" / "train").exists()
    path.write_bytes(whole_file)
    run(make(tmp_path / "xml", tmp_path / "out", tokenizer))


def test_near_duplicates_are_those_of_all_pairs(tmp_path, tokenizer, record, citation_set):
    rng = np.random.default_rng(3)
    base = [[f"w{k}" for k in rng.integers(0, 10**6, 120)] for _ in range(60)]
    texts = [" ".join(b) for b in base]
    for k, change in enumerate((1, 2, 4, 60, 110)):
        words = list(base[k])
        words[-change:] = [f"new{j}" for j in range(change)]
        texts.append(" ".join(words))
    data = citation_set(*(record(k + 1, "Title", f"<AbstractText>{t}</AbstractText>") for k, t in enumerate(texts)))
    os.makedirs(tmp_path / "xml")
    (tmp_path / "xml" / "a.xml").write_bytes(data)
    out = tmp_path / "out"
    run(make(tmp_path / "xml", out, tokenizer, filters={"near_duplicates": 0.8, "near_permutations": 128}))
    grams = [set(minhash.word_ngrams(b"Title\n" + t.encode(), 5).tolist()) for t in texts]
    expected = {
        f"pmid:{j + 1}"
        for j in range(len(texts))
        for i in range(j)
        if len(grams[i] & grams[j]) / len(grams[i] | grams[j]) >= 0.8
    }
    assert {r["key"] for r in table(out) if r["reason"] == "near_duplicate"} == expected and len(expected) == 3


def test_a_language_that_looks_like_a_number_and_is_none_does_not_end_the_job(tmp_path, tokenizer):
    lines = [
        {"text": f"A record of {word} in plain words, long enough to be kept.", "language": word}
        for word in ("\u00b2", "\u2460", "7", "eng")
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    out = tmp_path / "out"
    run(make(tmp_path / "p.jsonl", out, tokenizer, source="jsonl", val_fraction=0.0))
    assert set(json.loads((out / "report.json").read_text())["languages"]) == {"\u00b2", "\u2460", "7", "eng"}


def test_prompt_completion_from_jsonl(tmp_path, tokenizer):
    from tokenizers import Tokenizer

    lines = [{"prompt": f"question {k} ? ", "completion": f"answer {k}", "id": k} for k in range(30)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    job = make(
        tmp_path / "p.jsonl",
        tmp_path / "out",
        tokenizer,
        source="jsonl",
        objective={"name": "prompt_completion"},
        filters={"min_chars": 0},
    )
    result = run(job)
    assert (
        result["reasons"] == {"written": 30}
        and result["splits"]["train"]["n_examples"] + result["splits"]["val"]["n_examples"] == 30
    )
    t = Tokenizer.from_file(str(tokenizer))
    learnt = set()
    for split in ("train", "val"):
        for row in read_split(tmp_path / "out", split):
            ids = row[2][row[1] == 1].tolist()
            assert ids[-1] == 0
            learnt.add(t.decode(ids[:-1]))
    assert learnt == {r["completion"] for r in lines}


def test_nothing_kept_is_no_crash(tmp_path, corpus, tokenizer):
    result = run(make(corpus, tmp_path / "out", tokenizer, filters={"min_chars": 10**6, "near_duplicates": 0.8}))
    assert result["records"] == 307 and "written" not in result["reasons"]
    assert verify_output(str(tmp_path / "out"))[0] == []


def test_tail_policy(tmp_path, corpus, tokenizer):
    result = run(make(corpus, tmp_path / "out", tokenizer, objective={"tail": "drop"}))
    assert read_split(tmp_path / "out", "train")[:, 1].all() and result["splits"]["train"]["n_examples"] > 100


def put(work, step, bucket, rows):
    found = drops.collect(work, step, 0)
    found.add(*np.array(rows, np.uint64).reshape(-1, 2).T)
    drops.save(work, step, bucket, found)


def test_extracted_store_round_trip(tmp_path):
    os.makedirs(tmp_path / "texts")
    put(str(tmp_path), "texts", 0, [(3 << 32 | 9, 20), (1 << 32 | 5, 1), (3 << 32 | 2, 19)])
    found = drops.load(str(tmp_path), ("texts",), 1)
    reasons = drops.put(found, 3, np.array([0] * 9 + [7], np.uint8))
    assert reasons.tolist() == [0, 0, 19, 0, 0, 0, 0, 0, 0, 7]


def test_damaged_markers_are_made_again_and_damaged_parts_are_one_line(tmp_path, corpus, tokenizer, hash_tree, whole):
    """Any flipped bit of a marker; a cut table of a step."""
    job = make(corpus, tmp_path / "out", tokenizer)
    plan = make_plan(job)
    for step in STEPS[:3]:
        run_job(plan, How(step=step))
    marker, arrays = (tmp_path / "out" / "work" / "extract" / f"00001{suffix}" for suffix in (".json", ".npz"))
    data, rng = marker.read_bytes(), np.random.default_rng(0)
    known = store.read_marker(plan.work, "extract", 1)
    for place in rng.integers(0, len(data), 200):
        marker.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.integers(8)]) + data[place + 1 :])
        found = store.marker(plan.work, "extract", 1)
        assert found is None or {k: found.get(k) for k in known} == known  # the flip is in the name of the seal
    marker.write_bytes(data[: len(data) // 2])
    content = arrays.read_bytes()
    arrays.write_bytes(content[:-30])
    with pytest.raises(UserError, match=r"00001\.npz: is damaged") as error:
        store.load(plan.work, 1)
    assert "\n" not in str(error.value)
    run(job)
    assert hash_tree(tmp_path / "out") == hash_tree(whole[0])


def test_what_a_step_leaves_is_held_to_its_seal_before_another_step_reads_it(
    tmp_path, corpus, tokenizer, hash_tree, whole
):
    """A flipped bit in any file between steps, texts and signatures too: one line, and no shard is made of it."""
    job = make(corpus, tmp_path / "out", tokenizer, filters={"near_duplicates": 0.8})
    plan = make_plan(job)
    for step in STEPS[:5]:
        run_job(plan, How(step=step))
    left = [f"{step}/00000{suffix}" for step, suffixes in store.LEFT.items() for suffix in suffixes]
    assert len(left) == 11
    for name in left:
        path = tmp_path / "out" / "work" / name
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{name}: is damaged \(changed since it was written\); delete .*work"):
            run_job(plan, How(step="tokenizer"))
        path.unlink()
        with pytest.raises(UserError, match=rf"{name}: is damaged \(missing\)"):
            run_job(plan, How(step="tokenizer"))
        path.write_bytes(data)
    run(job)
    assert verify_output(str(tmp_path / "out"))[0] == []


@pytest.mark.parametrize("suffix", [".npz", ".bands.npy"])
def test_objects_between_steps_are_one_line_whatever_their_seal(tmp_path, corpus, tokenizer, suffix):
    plan = make_plan(make(corpus, tmp_path / "out", tokenizer, filters={"near_duplicates": 0.8}))
    for step in STEPS[:3]:
        run_job(plan, How(step=step))
    path = store.unit_path(plan.work, "extract", 1, suffix)
    with open(path, "wb") as file:
        np.save(file, np.array([{}], object)) if suffix.endswith(".npy") else np.savez(
            file, keys=np.array([{}], object)
        )
    store.mark_done(plan.work, "extract", 1, store.read_marker(plan.work, "extract", 1))
    with pytest.raises(UserError, match=rf"00001\{suffix}: is damaged") as error:
        parts.call(plan.part("near" if suffix.endswith(".npy") else "keys", 0))
    assert "\n" not in str(error.value)


def test_a_pipe_for_a_jobs_facts_is_refused_at_once(tmp_path, corpus, tokenizer):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "job.json")
    with pytest.raises(UserError, match=r"job\.json: cannot be read \(is not a regular file"):
        make_plan(make(corpus, tmp_path / "out", tokenizer))


def test_drops_of_all_buckets_are_one_file_that_is_read_in_place(tmp_path, monkeypatch):
    """However many buckets and calls; a damaged one is made again before a step, and no step reads half of one."""
    work, rng = str(tmp_path), np.random.default_rng(0)
    wanted = rng.permutation([k // 2 << 32 | k % 2 for k in range(40)])
    for bucket in range(9):
        put(work, "texts", bucket, [(int(n), 19) for n in wanted[bucket::9]])
    drops.merge(work, ("texts",), 9, 0)
    found = drops.load(work, ("texts",), 9)
    assert isinstance(found, np.memmap) and found["unit"].tolist() == [k // 2 for k in range(40)]
    reads = []
    real = np.load
    monkeypatch.setattr(np, "load", lambda path, **more: reads.append(path) or real(path, **more))
    for unit in range(20):
        marked = drops.put(drops.load(work, ("texts",), 9), unit, np.array([0, 12, 0], np.uint8))
        assert marked.tolist() == [19, 12, 0]
    assert len(reads) == 20
    path = tmp_path / "texts" / "dropped.npy"
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[:-1] + b"\7")
    drops.merge(work, ("texts",), 9)
    assert path.read_bytes() == whole_file
    (tmp_path / "texts" / "dropped.json").unlink()
    path.write_bytes(whole_file[:-9])
    assert drops.load(work, ("texts",), 9).tobytes() == whole_file[-9 * 40 :]


def test_a_trained_tokenizer_sees_the_training_split_alone(tmp_path, corpus, monkeypatch):
    seen, train = [], parts.tokenizing.train

    def watch(texts, *more):
        seen.extend(texts)
        return train(seen, *more)

    monkeypatch.setattr(parts.tokenizing, "train", watch)
    run(make(corpus, tmp_path / "out", "", tokenizer={"path": "train", "vocab_size": 400}), workers=1)
    rows = [row for row in table(tmp_path / "out") if row["reason"] == "written"]
    splits = [row["split"] for row in rows]
    assert 0 < sum(map(len, seen)) == splits.count("train") < len(splits)
