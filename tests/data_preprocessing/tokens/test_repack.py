"""`pack`, `inspect` and `verify` on what others wrote: one line each, no id becomes another, no bad file hides one."""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from data_preprocessing import cli, limits
from data_preprocessing.inspection.describe import print_shards
from data_preprocessing.inspection.verify import verify as run_verify
from data_preprocessing.inspection.verify import verify_split
from data_preprocessing.tokens import repack, shards, token_ids
from modelzoo import records
from modelzoo.config.errors import UserError
from modelzoo.data import format as fmt
from tests.support import examples, write_shard


def pack(source, output, **given):
    options = {"eos_id": 0, "vocab_size": None, "msl": 8, "objective": "lm", "tail": "pad", "shard_tokens": 2**20}
    args = argparse.Namespace(input=[str(source)], output=str(output), compression="gzip", **{**options, **given})
    return repack.run(args)


@pytest.mark.parametrize(
    ("ids", "dtype", "bad"),
    [
        ([2**31 - 1], "<i4", 2**31 - 1), ([2**24], "<i4", 2**24), ([-1], "<i4", -1), ([2**32 + 5], "<i8", 2**32 + 5),
        ([2**64 - 1], "<u8", 2**64 - 1), ([2**31], "<u4", 2**31),
    ],
)  # fmt: skip
def test_ids_of_a_corpus_that_are_none_are_refused_and_never_wrap(tmp_path, ids, dtype, bad):
    write_shard(tmp_path / "c.h5", np.array([1, 2, *ids, 3] * 9, dtype), n_examples=None)
    with pytest.raises(UserError, match=rf"c\.h5: id {bad} is no token id \(0 to 16,777,215\)"):
        pack(tmp_path / "c.h5", tmp_path / "o")


@pytest.mark.parametrize(
    "line",
    ["[1.5]", "[true]", '["7"]', "[[1]]", "[null]", "[-1]", "[16777216]", "[2147483647]", "[1e3]", f"[{2**80}]", "{}",
     '{"input_ids": "12"}', '{"input_ids": [1], "input_ids": [2]}', "7", "nonsense", "[" * 50_000, "[NaN]", "\x00"],
)  # fmt: skip
def test_a_line_that_is_no_list_of_ids_is_named(tmp_path, line):
    path = tmp_path / "i.jsonl"
    path.write_text(f"[1, 2]\n\n{line}\n")
    with pytest.raises(UserError, match=r"i\.jsonl:3: ") as e:
        pack(path, tmp_path / "o")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("operation", ["mkdir", "open", "fsync", "replace", "rename"])
def test_a_failed_pack_leaves_nothing_and_its_retry_gives_the_same(tmp_path, monkeypatch, hash_tree, operation):
    """Each call of an operation fails once, as a full disk or a mount does."""
    rng = np.random.default_rng(0)
    write_shard(tmp_path / "c.h5", rng.integers(1, 99, 400), n_examples=None)
    options = {"msl": 8, "shard_tokens": 160}
    pack(tmp_path / "c.h5", tmp_path / "whole" / "o", **options)
    wanted, real = hash_tree(tmp_path / "whole" / "o"), getattr(os, operation)
    (tmp_path / "o").mkdir()
    failed = 0
    for number in range(100):
        calls = itertools.count()

        def fail(*args, number=number, calls=calls, **more):
            if next(calls) == number:
                raise OSError(28, "No space left on device", "x")
            return real(*args, **more)

        with monkeypatch.context() as patch:
            patch.setattr(os, operation, fail)
            try:
                pack(tmp_path / "c.h5", tmp_path / "o", **options)
            except (UserError, OSError) as e:
                assert ".tmp" not in str(e)
                failed += 1
        assert sorted(os.listdir(tmp_path)) == ["c.h5", "o", "whole"]
        if done := os.listdir(tmp_path / "o"):  # whole, or as it was: empty
            assert hash_tree(tmp_path / "o") == wanted
            shutil.rmtree(tmp_path / "o")
            (tmp_path / "o").mkdir()
        if next(calls) <= number:  # it never came to this call
            break
    assert failed > 0 and done


def test_a_killed_pack_is_begun_anew_by_the_same_command(tmp_path, hash_tree):
    write_shard(tmp_path / "c.h5", np.random.default_rng(0).integers(1, 99, 400), n_examples=None)
    pack(tmp_path / "c.h5", tmp_path / "whole" / "o", shard_tokens=2**23)
    words = f"pack --input {tmp_path}/c.h5 --output {tmp_path}/o --msl 8 --eos_id 0".split()
    kill = "import os, sys; from data_preprocessing import cli; "
    kill += "from data_preprocessing.tokens import repack; "
    kill += "repack._write_side_files = lambda *_: os.kill(os.getpid(), 9); cli.main(sys.argv[1:])"
    assert subprocess.run([sys.executable, "-c", kill, *words], check=False).returncode == -9
    assert not (tmp_path / "o").exists() and len(os.listdir(tmp_path)) == 3  # its shards, under a name of their own
    assert cli.main(words) == 0
    assert sorted(os.listdir(tmp_path)) == ["c.h5", "o", "whole"]
    assert hash_tree(tmp_path / "o") == hash_tree(tmp_path / "whole" / "o")


def test_a_pack_that_is_done_is_reported_as_done_by_the_same_command_alone(tmp_path, hash_tree, capsys):
    """Also one that was killed once its folder had its name."""
    write_shard(tmp_path / "c.h5", np.random.default_rng(0).integers(1, 99, 400), n_examples=None)
    words = f"pack --input {tmp_path}/c.h5 --output {tmp_path}/o --msl 8 --eos_id 0".split()
    kill = "import os, sys; from data_preprocessing import cli; real = os.rename; "
    kill += "os.rename = lambda *names: (real(*names), os.kill(os.getpid(), 9)); cli.main(sys.argv[1:])"
    assert subprocess.run([sys.executable, "-c", kill, *words], check=False).returncode == -9
    whole = hash_tree(tmp_path / "o")
    assert "manifest.json" in whole and cli.main(words) == 0
    assert "it was packed by this command before" in capsys.readouterr().out and hash_tree(tmp_path / "o") == whole
    others = (["--tail", "drop"], ["--compression", "none"], ["--vocab_size", "99"])
    for other in ([w.replace("8", "16") if w == "8" else w for w in words], *([*words, *more] for more in others)):
        assert cli.main(other) == 2
    shard = (tmp_path / "o" / "output_chunk_0_0.h5").read_bytes()
    (tmp_path / "o" / "output_chunk_0_0.h5").write_bytes(shard[:-1])
    assert cli.main(words) == 2
    (tmp_path / "o" / "output_chunk_0_0.h5").write_bytes(shard)
    data = (tmp_path / "c.h5").read_bytes()
    (tmp_path / "c.h5").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # of the same size
    assert cli.main(words) == 2 and capsys.readouterr().err.count("is not empty; give a new folder") == 6


def test_pack_refuses_what_it_did_not_make_and_follows_a_link(tmp_path):
    write_shard(tmp_path / "c.h5", np.arange(1, 99), n_examples=None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "file").touch()
    for name, message in (("full", "is not empty"), ("file", "is not a folder")):
        with pytest.raises(UserError, match=f"{name}: {message}; give a new folder"):
            pack(tmp_path / "c.h5", tmp_path / name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    pack(tmp_path / "c.h5", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "manifest.json").exists()


def test_what_a_job_may_write_is_what_is_read():
    assert (limits.MSL, limits.VOCABULARY) == (fmt.MAX_MSL, fmt.MAX_ID + 1)


def test_jsonl_in_pieces_is_packed_as_in_one(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 99, n).tolist() for n in rng.integers(1, 30, 60)]
    (tmp_path / "i.jsonl").write_text("\n".join(json.dumps({"input_ids": d}) for d in documents))
    pack(tmp_path / "i.jsonl", tmp_path / "a")
    monkeypatch.setattr(shards, "BATCH", 100)
    monkeypatch.setattr("data_preprocessing.inputs.streams.CHUNK", 37)
    pack(tmp_path / "i.jsonl", tmp_path / "b")
    name = "output_chunk_0_0.h5"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    monkeypatch.setattr(token_ids, "MAX_LINE", 60)
    with pytest.raises(UserError, match=r"i\.jsonl: has a line of more than 60 bytes"):
        pack(tmp_path / "i.jsonl", tmp_path / "c")


@pytest.mark.parametrize(
    "given",
    [{"msl": 7}, {"msl": 10**9}, {"eos_id": -1}, {"eos_id": 2**24}, {"eos_id": 2**31}, {"vocab_size": 0},
     {"vocab_size": 2**31}, {"vocab_size": 9, "eos_id": 9}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, given):
    (tmp_path / "i.jsonl").write_text("[1, 2]\n")
    with pytest.raises(UserError, match=r"--(msl|eos_id|vocab_size) "):
        pack(tmp_path / "i.jsonl", tmp_path / "o", **given)
    assert not (tmp_path / "o").exists()


def test_eos_comes_from_model_zoos_parameters(tmp_path):
    write_shard(tmp_path / "z" / "c.h5", np.array([5, 6, 3, 7] * 9), n_examples=None)
    (tmp_path / "z" / "data_params.json").write_text(json.dumps({"post-process": {"eos_id": 3, "vocab_size": 9}}))
    pack(tmp_path / "z", tmp_path / "o", eos_id=None)
    assert json.loads((tmp_path / "o" / "manifest.json").read_text())["documents"] == 10
    (tmp_path / "z" / "data_params.json").write_text('{"post-process": {"eos_id": "three"}}')
    with pytest.raises(UserError, match=r"data_params\.json: post-process\.eos_id"):
        pack(tmp_path / "z", tmp_path / "p", eos_id=None)


def test_inspect_shows_what_there_is_of_a_manifest_and_of_ids(tmp_path, capsys):
    data = examples(3)
    data[1, 0, 0] = -5
    write_shard(tmp_path / "a.h5", data)
    (tmp_path / "manifest.json").write_text(json.dumps({"eos_id": 0, "vocab_size": 37, "task": "hoc"}))
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert print_shards(argparse.Namespace(path=str(tmp_path), tokenizer=None, examples=3)) == 0
    shown = capsys.readouterr().out
    assert "3 examples; vocabulary 37, eos 0" in shown and "none: -5 to " in shown


def test_inspect_of_sequences_of_no_token(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (2, 3, 0), "<i4")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    assert print_shards(argparse.Namespace(path=str(tmp_path), tokenizer=None, examples=3)) == 0
    assert "(2, 3, 0)" in capsys.readouterr().out


def verify(path, tokens=True):
    with pytest.raises(UserError) as e:
        run_verify(argparse.Namespace(path=str(path), tokens=tokens))
    return str(e.value).splitlines()


def test_verify_names_each_fault_and_is_stopped_by_none(tmp_path):
    for i in range(4):
        write_shard(tmp_path / f"{i}.h5", examples(3, seed=i))
    (tmp_path / "0.h5").write_bytes(b"nothing")
    with h5py.File(tmp_path / "2.h5", "w") as file:
        file.create_dataset("data", (10**9, 3, 8), "<i4", chunks=(1, 3, 8))
    found = verify(tmp_path)
    assert len(found) == 4 and [line.partition(".h5: ")[0][-1] for line in found] == ["0", "2", "0", "2"]


def test_verify_of_a_sealed_manifest_that_is_hostile(tmp_path):
    """A seal says that a manifest is as its writer left it, and nothing of the writer."""
    good = shards.write_shard(str(tmp_path / "a.h5"), examples(3), "gzip")
    facts = {"rows": ["input_ids", "attention_mask", "labels"], "msl": 8, "n_examples": 3, "files": {}}

    def put(**changes):
        value = records.seal({**facts, "shards": [good], **changes})
        (tmp_path / "manifest.json").write_text(json.dumps(value))

    put()
    assert verify_split(str(tmp_path))[0] == []
    put(msl=9)
    assert "is not what the manifest records" in verify(tmp_path)[0]
    for changes in (
        {"shards": [{**good, "file": "../a.h5"}]},
        {"files": {"/etc/passwd": good["sha256"]}},
        {"msl": "8"},
    ):
        put(**changes)
        assert "manifest.json: " in verify(tmp_path)[0]
    put(shards=[], n_examples=0)
    assert "a.h5: is not in the manifest" in verify(tmp_path)[0]
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    assert "has been changed" in verify(tmp_path)[0]


def test_a_pack_of_nothing_is_an_error_and_leaves_no_folder(tmp_path):
    (tmp_path / "i.jsonl").write_text("\n[]\n")
    with pytest.raises(UserError, match=r"i\.jsonl: gives no example: 1 documents of 0 tokens$"):
        pack(tmp_path / "i.jsonl", tmp_path / "o")
    (tmp_path / "i.jsonl").write_text("[1, 2, 3]\n")
    with pytest.raises(UserError, match="no window of 8 with --tail drop"):
        pack(tmp_path / "i.jsonl", tmp_path / "o", tail="drop")
    assert os.listdir(tmp_path) == ["i.jsonl"]


def test_verify_names_a_pipe_and_goes_on(tmp_path):
    write_shard(tmp_path / "c.h5", np.arange(1, 99), n_examples=None)
    pack(tmp_path / "c.h5", tmp_path / "o", shard_tokens=16)
    (tmp_path / "o" / "output_chunk_0_0.h5").unlink()
    os.mkfifo(tmp_path / "o" / "output_chunk_0_0.h5")
    (tmp_path / "o" / "output_chunk_0_1.h5").unlink()
    faults = verify_split(str(tmp_path / "o"))[0]
    assert ["0_0.h5: cannot be read: is not a regular file" in faults[0], "0_1.h5: missing" in faults[1]] == [True] * 2
