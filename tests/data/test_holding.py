"""Shards are held to the hashes of their manifest: at once, beside the batches, and where an example is all zeros."""

import hashlib
import itertools
import json
import threading
import time

import h5py
import numpy as np
import pytest

from modelzoo.config.errors import UserError
from modelzoo.config.trainer import Config
from modelzoo.data import feed, hdf5, holding
from modelzoo.data.files import find_shards, list_recorded
from modelzoo.data.hdf5 import Shards
from modelzoo.data.holding import Holding, hold_shards
from modelzoo.tasks.pretrain import train
from modelzoo.training.build import Options, open_shards
from tests.support import config, examples, loader, write_manifest, write_shard


@pytest.fixture
def folder(tmp_path):
    """Four shards, three examples each, without a manifest."""
    for i in range(4):
        write_shard(tmp_path / "data" / f"{i}.h5", examples(3, seed=i))
    return tmp_path / "data"


def record(folder, kind):
    """A manifest with each shard's hash: of its bytes, or of its values."""
    if kind == "data_sha256":
        return write_manifest(folder)
    facts = [
        {"file": p.name, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in sorted(folder.glob("*.h5"))
    ]
    (folder / "manifest.json").write_text(json.dumps({"shards": facts}))


def change(path, value=5):
    with h5py.File(path, "r+") as file:
        file["data"][1, 0, 0] = (file["data"][1, 0, 0] + value) % 37


def hold(folder):
    return hold_shards(find_shards([str(folder)]))


KINDS = ("sha256", "data_sha256")


@pytest.mark.parametrize("kind", KINDS)
def test_small_shards_are_held_before_a_run(folder, kind):
    record(folder, kind)
    held, notes = hold(folder)
    assert (held.waiting, held.total, notes) == ([], 4, [])
    change(folder / "2.h5")
    with pytest.raises(UserError, match=r"2\.h5: is not what its manifest\.json records"):
        hold(folder)
    with pytest.raises(UserError, match=r"2\.h5: is not what its manifest\.json records"):
        open_shards(config(), loader(folder))


def test_a_damaged_shard_meets_its_hash_before_hdf5(folder, monkeypatch):
    """HDF5 is C: what it does with a damaged file is not always an exception."""
    record(folder, "sha256")
    path = folder / "1.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    monkeypatch.setattr(h5py, "File", lambda *_: pytest.fail("opened"))
    with pytest.raises(UserError, match=r"1\.h5: is not what"):
        open_shards(config(), loader(folder))


def test_what_is_not_held_is_named(folder, tmp_path, capsys):
    assert hold(folder)[1] == [f"note       {folder}: has no manifest.json; its shards are not compared with a SHA-256"]
    open_shards(config(), loader(folder))
    assert capsys.readouterr().err.count("has no manifest.json") == 1
    write_manifest(folder)
    write_shard(folder / "9.h5", examples(2, seed=9))  # newer than the manifest
    assert hold(folder)[1] == [f"note       {folder}: 1 of 5 shards have no SHA-256 in manifest.json"]
    (folder / "9.h5").unlink()
    (folder / "0.h5").unlink()
    with pytest.raises(UserError, match=r"0\.h5: missing .manifest\.json lists it"):
        hold(folder)
    one = str(folder / "1.h5")
    assert hold_shards([one])[0].total == 1


def fake_batches(n, seconds=0.01):
    for i in range(n):
        time.sleep(seconds)
        yield i


def waiting(folder):
    return Holding(list_recorded(find_shards([str(folder)])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [None, "changed", "gone", "index"])
def test_large_shards_are_held_beside_the_batches(folder, kind, fault, monkeypatch):
    monkeypatch.setattr(holding, "AT_ONCE", 0)
    record(folder, kind)
    held = hold(folder)[0]
    assert len(held.waiting) == 4
    if fault == "changed":
        change(folder / "3.h5")
    elif fault == "gone":
        (folder / "3.h5").unlink()
    elif fault == "index":
        (folder / "3.h5").write_bytes(b"\0" * 3000)
    if fault:
        with pytest.raises(UserError, match=r"3\.h5: ") as e:
            list(held.watch(fake_batches(1000)))
        assert "\n" not in str(e.value)
    else:
        batches = itertools.takewhile(lambda _: held.waiting, fake_batches(6000))  # as many as the thread needs
        found = list(held.watch(batches))
        assert found == list(range(len(found))) and held.waiting == []
    assert "hold shards" not in [t.name for t in threading.enumerate()]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_works_beside_workers_and_changes_no_batch(folder, workers, monkeypatch):
    monkeypatch.setattr(holding, "AT_ONCE", 0)
    plain = [b["labels"].tolist() for b in feed.iterate_batches(Shards.open(loader(folder), 37), 0, 30)]
    record(folder, "sha256")
    shards = open_shards(config(), loader(folder, num_workers=workers, prefetch_factor=2))
    found = [b["labels"].tolist() for b in shards.holding.watch(feed.iterate_batches(shards, 0, 30))]
    assert found == plain


def test_it_stops_with_the_batches_says_so_once_and_goes_on_later(folder, monkeypatch, capsys):
    """A run that ends, or validates now and then, waits for no hash."""
    monkeypatch.setattr(holding, "IDLE", 1e6)
    record(folder, "sha256")
    held = waiting(folder)
    begin = time.perf_counter()
    batches = held.watch(fake_batches(1000))
    assert next(batches) == 0 and next(batches) == 1
    batches.close()
    assert time.perf_counter() - begin < 5 and "hold shards" not in [t.name for t in threading.enumerate()]
    assert "4 of 4 shards were not yet compared with the SHA-256 of their manifest" in capsys.readouterr().err
    list(held.watch(fake_batches(3)))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(holding, "IDLE", 0.0)
    list(held.watch(fake_batches(50)))
    assert held.waiting == []


def test_batches_are_closed_with_the_watch(folder):
    closed = []

    def batches():
        try:
            yield from range(9)
        finally:
            closed.append(True)

    watched = waiting(folder).watch(batches())
    next(watched)
    watched.close()
    assert closed == [True]


def test_without_threads_the_loop_waits_for_the_hashes(folder, monkeypatch):
    def none(_):
        raise RuntimeError("can't start new thread")

    record(folder, "sha256")
    held = waiting(folder)
    monkeypatch.setattr(threading.Thread, "start", none)
    assert list(held.watch(fake_batches(3))) == [0, 1, 2] and held.waiting == []


# --- examples of zeros ------------------------------------------------------------------------------------------------


def test_an_example_of_zeros_is_refused_unless_a_hash_says_that_it_was_written(folder):
    with h5py.File(folder / "1.h5", "r+") as file:
        file["data"][2] = 0
    with pytest.raises(UserError, match=r"1\.h5: example 2 is zero throughout"):
        Shards.open(loader(folder), 37).read(range(12))
    record(folder, "sha256")  # an empty prompt and completion under an end-of-text id of 0: ours may write it
    assert not any(x[5].any() for x in Shards.open(loader(folder), 37).read(range(12)).values())
    with h5py.File(folder / "1.h5", "r+") as file:
        file["data"][0] = 0
    with pytest.raises(UserError, match=r"1\.h5: is not what its manifest\.json records"):
        Shards.open(loader(folder), 37).read(range(12))


def test_places_without_loss_and_tokens_of_id_0_are_no_damage(tmp_path):
    """Rows of zeros are ordinary: a prompt's mask, padding by id 0, positions of one-token documents."""
    data = examples(3, rows=5)
    data[0, 0] = data[0, 2] = 0  # a text of token 0, which counts
    data[1, 1] = 0  # nothing counts
    data[2, 3:] = 0
    write_shard(tmp_path / "v.h5", data)
    found = Shards.open(loader(tmp_path, use_vsl=True), 37).read(range(3))
    assert (np.stack([x.numpy() for x in found.values()], 1) == data).all()
    write_shard(tmp_path / "c" / "c.h5", np.zeros(100, np.int32), n_examples=None)
    assert not Shards.open(loader(tmp_path / "c", max_sequence_length=8), 37).read(range(9))["labels"].any()


def test_a_shard_that_is_exchanged_during_a_run_is_held_again(folder):
    record(folder, "sha256")
    good = (folder / "3.h5").read_bytes()
    shards = Shards.open(loader(folder), 37)
    (folder / "3.h5").write_bytes(good)  # another time, the same bytes
    assert len(shards.read([9])["labels"]) == 1
    shards = Shards.open(loader(folder), 37)
    change(folder / "3.h5")
    with pytest.raises(UserError, match=r"3\.h5: example 0 cannot be read \(is not what"):
        shards.read([9])
    (folder / "manifest.json").unlink()
    shards = Shards.open(loader(folder), 37)
    change(folder / "3.h5")
    with pytest.raises(UserError, match=r"3\.h5: example 0 cannot be read \(was written to since the start"):
        shards.read([9])


# --- what a checkpoint remembers of the data --------------------------------------------------------------------------


def former_fingerprint(shards):
    """The fingerprint of checkpoints of older versions, written out: three examples stand for a shard."""
    facts = []
    for s in shards.files:
        with h5py.File(s.path) as file:
            taken = [file["data"][i].astype(np.int64).tobytes() for i in (0, (s.examples - 1) // 2, s.examples - 1)]
        name = s.path.rpartition("/")[2]
        facts.append((name, s.examples, s.msl, s.rows, hashlib.sha256(b"".join(taken)).hexdigest()))
    return hashlib.sha256(json.dumps([facts, [4, None, shards.epoch, False, []]]).encode()).hexdigest()


def test_the_fingerprint_covers_every_byte_and_older_checkpoints_still_fit(tmp_path):
    path = write_shard(tmp_path / "0.h5", examples(40))
    of = lambda like=None: Shards.open(loader(tmp_path), 37).fingerprint(like)
    before, former = of(), of("0" * 64)
    assert former == former_fingerprint(Shards.open(loader(tmp_path), 37)) and before == of(before) != former
    with h5py.File(path, "r+") as file:
        file["data"][7, 0, 3] = (file["data"][7, 0, 3] + 1) % 37  # not one of the three
    assert of(former) == former and of(before) != before


def test_beyond_a_size_the_fingerprint_takes_blocks_of_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "MIB", 256)
    path, good = tmp_path / "a", np.random.default_rng(0).bytes(64 * 256 + 7)
    path.write_bytes(good)
    of = lambda share: hdf5.sample_file(str(path), share)
    whole, quarter = of(1.0), of(0.25)
    seen = []
    for block in range(65):
        at = 256 * block + 3
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert of(1.0) != whole
        seen += [block] if of(0.25) != quarter else []
    assert seen[0] == 0 and seen[-1] == 64 and 14 <= len(seen) <= 18 and max(np.diff(seen)) <= 5
    path.write_bytes(good + good[-256:])  # a size tells too
    assert of(0.25) != quarter


def test_a_run_of_an_older_version_resumes_and_other_data_does_not(tmp_path, monkeypatch):
    path = write_shard(tmp_path / "data" / "0.h5", examples(40, msl=12))
    raw = config(loop={"max_steps": 2}, checkpoint={"steps": 1}).model_dump(mode="json", by_alias=True)

    def run(steps):
        raw["trainer"]["fit"]["train_dataloader"]["data_dir"] = [str(path.parent)]
        raw["trainer"]["init"]["loop"]["max_steps"] = steps
        train(Config.model_validate(raw), Options(target="CPU", model_dir=str(tmp_path / "run")), evaluate=False)
        state = tmp_path / "run" / "checkpoints" / f"step_{steps}" / "state.json"
        return json.loads(state.read_text())["dataset"]

    now = Shards.fingerprint
    with monkeypatch.context() as older:
        older.setattr(Shards, "fingerprint", lambda self, like=None: now(self, "0" * 64))
        assert len(run(2)) == 64
    assert run(3).startswith("content-")
    assert run(4).startswith("content-")
    with h5py.File(path, "r+") as file:
        file["data"][7, 0, 3] = (file["data"][7, 0, 3] + 1) % 37
    with pytest.raises(UserError, match="was trained on other data"):
        run(5)
