"""The reader of shards: against plain h5py, a pure function of the step, the same whatever the number of workers."""

import _multiprocessing
import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
from multiprocessing.reduction import ForkingPickler

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzoo.config.errors import UserError
from modelzoo.data import feed, files, hdf5, holding
from modelzoo.data.hdf5 import Shards
from tests.support import examples, loader, write_manifest, write_shard

ROWS = ("input_ids", "attention_mask", "labels")


@pytest.fixture
def folder(tmp_path):
    """Three shards of 5, 7 and 3 examples, every token telling its example apart."""
    start = 0
    for i, n in enumerate((5, 7, 3)):
        write_shard(tmp_path / "data" / f"output_chunk_0_{i}.h5", numbered(n, start))
        start += n
    return tmp_path / "data"


def numbered(n, start, msl=8, rows=3):
    """Examples whose first token is their global number."""
    data = examples(n, msl, vocab=100, seed=start, rows=rows)
    data[:, 0, 0] = np.arange(start, start + n)
    return data


def opened(*folders, vocab=100, **fields):
    return Shards.open(loader(*folders, **fields), vocab)


def numbers(batch):
    return batch["input_ids"][:, 0].tolist()


def plain(folder):
    """All examples of a folder in file order, by h5py alone."""
    parts = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            parts.append(file["data"][:])
    return np.concatenate(parts)


def test_batches_are_what_the_files_hold(folder):
    whole, shards = plain(folder), opened(folder)
    for step in range(20):
        at = [i % 15 for i in range(4 * step, 4 * step + 4)]
        batch = shards.batch(step)
        for row, name in enumerate(ROWS):
            assert batch[name].dtype == torch.int32
            assert torch.equal(batch[name], torch.from_numpy(whole[at, row]))


@pytest.mark.parametrize("seed,expected", [(0, 0), (5, 5), (None, 0)])
def test_order_is_model_zoos_across_epochs(folder, seed, expected):
    """randperm seeded with seed + epoch; what an epoch leaves over opens the next batch."""
    shards = opened(folder, shuffle=True, shuffle_seed=seed)
    order = [torch.randperm(15, generator=torch.Generator().manual_seed(expected + e)).tolist() for e in range(4)]
    flat = [i for epoch in order for i in epoch]
    assert [numbers(shards.batch(step)) for step in range(15)] == [flat[4 * s : 4 * s + 4] for s in range(15)]
    assert order[0] != order[1]


def test_a_batch_is_a_function_of_its_step_alone(folder):
    shards = opened(folder, shuffle=True)
    steps = [17, 3, 3, 0, 40, 17]
    first = [numbers(shards.batch(s)) for s in steps]
    assert first == [numbers(opened(folder, shuffle=True).batch(s)) for s in steps]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(folder, workers):
    shards = opened(folder, shuffle=True, num_workers=workers, prefetch_factor=2)
    shards.batch(0)  # files open in this process too
    found = list(feed.iterate_batches(shards, 5, 18))
    assert [numbers(b) for b in found] == [numbers(opened(folder, shuffle=True).batch(s)) for s in range(5, 18)]
    assert all(torch.equal(b["labels"], shards.batch(s)["labels"]) for b, s in zip(found, range(5, 18), strict=True))


@pytest.mark.slow
def test_workers_may_be_spawned_as_on_macos(folder, monkeypatch):
    shards = opened(folder, shuffle=True, num_workers=1, prefetch_factor=2)
    shards.batch(0)
    monkeypatch.setattr(
        multiprocessing.context._default_context, "_actual_context", multiprocessing.get_context("spawn")
    )
    found = list(feed.iterate_batches(shards, 5, 8))
    assert [numbers(b) for b in found] == [numbers(opened(folder, shuffle=True).batch(s)) for s in range(5, 8)]


def test_batches_of_workers_stay_out_of_shared_memory(folder, monkeypatch):
    """Containers have 64 MiB of it, or none: a worker that could not write there would leave the run waiting."""

    def closed(*_):
        raise RuntimeError("unable to write to file </torch_1>: No space left on device")

    for name in ("_share_fd_cpu_", "_share_filename_cpu_"):
        monkeypatch.setattr(torch.UntypedStorage, name, closed)
    shards = opened(folder)
    with pytest.raises(RuntimeError, match="No space left"):
        ForkingPickler.dumps(shards.batch(3))
    handed = pickle.loads(ForkingPickler.dumps(feed.Steps(shards)[3])).tensors()
    assert handed.keys() == shards.batch(3).keys() and all(
        torch.equal(x, shards.batch(3)[k]) for k, x in handed.items()
    )


def test_without_semaphores_this_process_reads_and_says_so(folder, monkeypatch, capsys):
    class Closed(_multiprocessing.SemLock):
        def __new__(cls, *_):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_multiprocessing, "SemLock", Closed)
    found = list(feed.iterate_batches(opened(folder, num_workers=2, prefetch_factor=2), 0, 3))
    assert [numbers(b) for b in found] == [numbers(opened(folder).batch(s)) for s in range(3)]
    line = "2 data workers cannot be started here ([Errno 13] Permission denied): this process reads\n"
    assert capsys.readouterr().err == line


def test_an_epoch_of_fewer_samples(folder):
    shards = opened(folder, num_samples=6)
    assert len(shards) == 6
    assert [numbers(shards.batch(s)) for s in range(3)] == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]


def test_a_single_file_and_several_folders(folder, tmp_path):
    write_shard(tmp_path / "more" / "x.hdf5", numbered(2, 15))
    both = opened(folder, tmp_path / "more")
    assert len(both) == 17 and numbers(both.read(range(13, 17))) == [13, 14, 15, 16]
    one = opened(folder / "output_chunk_0_1.h5")
    assert len(one) == 7 and numbers(one.read(range(7))) == list(range(5, 12))


def test_many_shards_do_not_exhaust_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "OPEN_FILES", 3)
    for i in range(12):
        write_shard(tmp_path / f"{i:02d}.h5", numbered(2, 2 * i))
    shards = opened(tmp_path, shuffle=True)
    seen = sorted(n for step in range(6) for n in numbers(shards.batch(step)))
    assert seen == list(range(24)) and len(shards._open) == 3


@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (1, 9), (0.2, 0.7)])
def test_mixtures_hold_their_shares(folder, tmp_path, weights):
    write_shard(tmp_path / "b" / "x.h5", numbered(10, 15))
    mixture = [{"data_dir": str(p), "weight": w} for p, w in zip((folder, tmp_path / "b"), weights, strict=True)]
    shards = Shards.open(loader(mixture=mixture, data_dir=None, shuffle=True, batch_size=5), 100)
    epoch = [n for step in range(5) for n in numbers(shards.batch(step))]
    assert len(shards) == 25 == len(epoch)
    share = 25 * weights[0] / sum(weights)
    first = [n for n in epoch if n < 15]
    assert abs(len(first) - share) < 1
    for part, size in ((first, 15), ([n for n in epoch if n >= 15], 10)):
        times = [part.count(n) for n in set(part)]  # each set goes round evenly through its own examples
        assert max(times) - min(times) <= 1 and len(set(part)) == min(size, len(part))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("weights, num_samples", [((1, 9), None), ((2, 1), None), ((1, 1), 7), ((1, 1), 62)])
def test_an_epoch_of_a_mixture_draws_and_the_next_goes_on(folder, tmp_path, weights, num_samples, shuffle):
    """Counted by hand: over epochs no example of a set comes twice more often than another of it."""
    write_shard(tmp_path / "b" / "x.h5", numbered(10, 15))
    mixture = [{"data_dir": str(p), "weight": w} for p, w in zip((folder, tmp_path / "b"), weights, strict=True)]
    fields = {"mixture": mixture, "data_dir": None, "shuffle": shuffle, "num_samples": num_samples, "batch_size": 1}
    shards = Shards.open(loader(**fields), 100)
    size, sets, firsts = len(shards), (range(15), range(15, 25)), []
    assert size == (num_samples or 25)
    seen = np.zeros(25, int)
    for epoch in range(7):
        taken = [n for step in range(epoch * size, (epoch + 1) * size) for n in numbers(shards.batch(step))]
        for numbers_of, weight in zip(sets, weights, strict=True):
            share = size * weight / sum(weights)
            assert abs(sum(n in numbers_of for n in taken) - share) <= 0.5
        np.add.at(seen, taken, 1)
        for numbers_of in sets:
            assert np.ptp(seen[numbers_of]) <= 1
        firsts.append(sorted(taken))
    assert any(f != firsts[0] for f in firsts)  # not the same examples every time
    again = Shards.open(loader(**fields), 100)
    assert [again.indices(s) for s in (3 * size + 2, 5)] == [shards.indices(s) for s in (3 * size + 2, 5)]
    assert Shards.open(loader(**{**fields, "shuffle_seed": 5}), 100).fingerprint() != shards.fingerprint()


def test_an_even_mixture_takes_the_sets_one_after_another_as_ever(folder, tmp_path):
    write_shard(tmp_path / "b" / "x.h5", numbered(5, 15))
    mixture = [{"data_dir": str(p), "weight": w} for p, w in ((folder, 3), (tmp_path / "b", 1))]
    shards = Shards.open(loader(mixture=mixture, data_dir=None, batch_size=20), 100)
    assert numbers(shards.batch(0)) == numbers(shards.batch(1)) == list(range(20))
    assert shards.indices(4) == list(range(20))


def test_corpus_of_plain_tokens(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 100, 43).astype(np.int32)
    write_shard(tmp_path / "c.h5", tokens, n_examples=None)
    shards = opened(tmp_path, max_sequence_length=8, batch_size=5)
    assert len(shards) == 5  # 42 predicted tokens in windows of 8; the rest is left
    batch = shards.batch(0)
    assert batch["input_ids"].tolist() == tokens[:40].reshape(5, 8).tolist()
    assert batch["labels"].tolist() == tokens[1:41].reshape(5, 8).tolist()
    assert batch["attention_mask"].tolist() == [[1] * 8] * 5


def test_vsl_rows(tmp_path):
    data = numbered(6, 0, rows=5)
    write_shard(tmp_path / "v.h5", data)
    with_rows, without = opened(tmp_path, use_vsl=True).batch(0), opened(tmp_path).batch(0)
    assert list(with_rows) == [*ROWS, "attention_span", "position_ids"] and list(without) == list(ROWS)
    for row, name in enumerate(with_rows):
        assert torch.equal(with_rows[name], torch.from_numpy(data[:4, row]))


@pytest.mark.parametrize("row,value", [(3, 8), (4, 8), (4, -1)])
def test_vsl_rows_that_point_outside_are_refused(tmp_path, row, value):
    data = numbered(6, 0, rows=5)
    data[2, row, 3] = value
    write_shard(tmp_path / "v.h5", data)
    with pytest.raises(UserError, match=rf"v\.h5: example 2 holds {value} in attention_span or position_ids"):
        opened(tmp_path, use_vsl=True).batch(0)
    opened(tmp_path).batch(0)


def test_validation_sees_each_example_once(folder):
    shards = opened(folder, shuffle=True)
    found = list(feed.iterate_validation(shards))
    assert [len(b["labels"]) for b in found] == [4, 4, 4, 3]
    assert [n for b in found for n in numbers(b)] == list(range(15))
    assert [len(b["labels"]) for b in feed.iterate_validation(shards, 2)] == [4, 4]


@given(total=st.integers(1, 500), most=st.integers(1, 600))
def test_a_sample_for_validation_has_its_share_of_every_stretch(total, most):
    found = np.array(feed.pick_examples(total, 1, most))
    count = min(total, most)
    assert len(found) == len(set(found)) == count and (np.diff(found) > 0).all()
    # of the first x examples, the sample has x / total of itself, to within one
    ends = np.arange(total + 1)
    assert np.abs(np.searchsorted(found, ends) - ends * count / total).max() <= 1


def test_a_sample_for_validation_is_not_the_first_files(folder):
    shards = opened(folder)
    halves = [list(feed.iterate_validation(shards, 2, rank, 2)) for rank in (0, 1)]
    assert [numbers(b) for half in halves for b in half] == [[0, 2, 4, 6], [8, 10, 12, 14]]


def refusal(batches) -> str:
    """The message that running through `batches` ends in (the error itself would keep the workers waiting)."""
    try:
        list(batches)
    except UserError as e:
        return str(e)
    pytest.fail("nothing was refused")


# --- refusals ---------------------------------------------------------------------------------------------------------


def good(path):
    return write_shard(path, examples(4))


def truncated(path):
    good(path)
    path.write_bytes(path.read_bytes()[:-200])


def text(path):
    path.write_text("not HDF5 at all")


def empty_file(path):
    path.write_bytes(b"")


def no_dataset(path):
    with h5py.File(path, "w") as file:
        file["other"] = [1]


def group(path):
    with h5py.File(path, "w") as file:
        file.create_group("data")


def soft_link(path):
    with h5py.File(path, "w") as file:
        file["real"] = examples(4)
        file["data"] = h5py.SoftLink("/real")


def external_link(path):
    good(path.parent / "elsewhere.bin")
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink("elsewhere.bin", "data")


def external_storage(path):
    with h5py.File(path, "w") as file:
        size = 4 * 3 * 8 * 4
        file.create_dataset("data", (4, 3, 8), "int32", external=[(str(path.parent / "raw.bin"), 0, size)])


def virtual(path):
    good(path.parent / "elsewhere.bin")
    layout = h5py.VirtualLayout((4, 3, 8), "int32")
    layout[:] = h5py.VirtualSource(str(path.parent / "elsewhere.bin"), "data", (4, 3, 8))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("data", layout)


REFUSED = {
    truncated: "truncated",
    text: "not a readable HDF5 file",
    empty_file: "not a readable HDF5 file",
    no_dataset: "has no dataset 'data' of its own .keys: other.",
    group: "'data' is no dataset",
    soft_link: "has no dataset 'data' of its own",
    external_link: "has no dataset 'data' of its own",
    external_storage: "external and virtual data is refused",
    virtual: "external and virtual data is refused",
    lambda p: write_shard(p, examples(4)[0]): r"is \[3, 8\]; shards are",
    lambda p: write_shard(p, examples(4)[:, :2]): r"is \[4, 2, 8\]; shards are \[n, 3 or 5, msl\]",
    lambda p: write_shard(p, examples(4), n_examples=5): "declares n_examples = 5 but holds 4",
    lambda p: write_shard(p, examples(4).astype(np.float32)): "holds float32, not integers",
    lambda p: write_shard(p, examples(4)[:0], n_examples=0): "holds no example",
    lambda p: write_shard(p, np.arange(100, dtype=np.int32)): "give max_sequence_length",
}


@pytest.mark.parametrize("make,message", REFUSED.items(), ids=[str(i) for i in range(len(REFUSED))])
def test_a_bad_shard_is_refused_by_name_before_training(tmp_path, make, message):
    good(tmp_path / "a.h5")
    make(tmp_path / "b.h5")
    with pytest.raises(UserError, match=message) as e:
        opened(tmp_path)
    assert str(e.value).startswith(str(tmp_path / "b.h5")) and "\n" not in str(e.value)


def test_folders_and_lengths_that_do_not_fit(tmp_path, folder):
    with pytest.raises(UserError, match=r"nowhere: no such data folder"):
        opened(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no HDF5 shard"):
        opened(tmp_path / "empty")
    write_shard(tmp_path / "long" / "x.h5", examples(3, msl=16))
    with pytest.raises(UserError, match=r"long/x\.h5: \[3, 16\] but .*output_chunk_0_0\.h5: \[3, 8\]"):
        opened(folder, tmp_path / "long")
    with pytest.raises(UserError, match="sequences of 8 tokens, but max_sequence_length is 16"):
        opened(folder, max_sequence_length=16)
    with pytest.raises(UserError, match=r"sequences of 16 tokens, but model\.max_position_embeddings is 12"):
        Shards.open(loader(tmp_path / "long"), 100, 12)
    Shards.open(loader(tmp_path / "long"), 100, 16)
    with pytest.raises(UserError, match="use_vsl needs attention_span and position_ids"):
        opened(folder, use_vsl=True)


@pytest.mark.parametrize("row,value", [(0, 100), (2, 100), (0, -1), (2, -7)])
def test_ids_out_of_the_vocabulary_name_file_and_example(folder, row, value):
    path = folder / "output_chunk_0_1.h5"
    with h5py.File(path, "r+") as file:
        file["data"][4, row, 2] = value
    shards = opened(folder)
    with pytest.raises(UserError, match=rf"output_chunk_0_1\.h5: example 4 holds token id {value}, outside .* 100"):
        for step in range(4):
            shards.batch(step)


def test_soft_prompt_ids_stand_in_the_input_alone(tmp_path):
    """Ids from vocab_size to vocab_size + tokens - 1 are known in input_ids; labels never hold them."""
    data = examples(4, msl=6, vocab=100)
    data[2, 0, 1:3] = (100, 102)
    write_shard(tmp_path / "a/x.h5", data)
    found = Shards.open(loader(tmp_path / "a"), 100, prompt_tokens=3).read([2])
    assert found["input_ids"][0, 1:3].tolist() == [100, 102]
    with pytest.raises(UserError, match=r"x\.h5: example 2 holds token id 102, .* and its soft-prompt tokens; .*2 tok"):
        Shards.open(loader(tmp_path / "a"), 100, prompt_tokens=2).read([1, 2])
    data[3, 2, 5] = 100
    write_shard(tmp_path / "b/x.h5", data)
    with pytest.raises(UserError, match=r"x\.h5: example 3 holds token id 100, .* in its labels"):
        Shards.open(loader(tmp_path / "b"), 100, prompt_tokens=3).read([1, 2, 3])


def test_wide_integers_do_not_wrap_into_the_vocabulary(tmp_path):
    data = examples(4).astype(np.int64)
    data[1, 0, 0] = 2**32 + 5
    write_shard(tmp_path / "w.h5", data)
    with pytest.raises(UserError, match=f"example 1 holds token id {2**32 + 5}"):
        opened(tmp_path).batch(0)
    data[1, 0, 0] = 5
    write_shard(tmp_path / "w.h5", data)
    assert opened(tmp_path).batch(0)["input_ids"][1, 0].item() == 5


def test_a_manifest_of_a_larger_vocabulary_is_refused_at_once(folder):
    write_manifest(folder, vocab_size=101)
    with pytest.raises(UserError, match=r"tokens of a vocabulary of 101, but model\.vocab_size is 100"):
        opened(folder)
    write_manifest(folder, vocab_size=100)
    opened(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: is not valid JSON"):
        opened(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_in_workers_are_one_clean_line(folder, workers):
    with h5py.File(folder / "output_chunk_0_2.h5", "r+") as file:
        file["data"][1, 0, 0] = 4711
    message = refusal(feed.iterate_batches(opened(folder, num_workers=workers, prefetch_factor=2), 0, 9))
    assert message.startswith(str(folder / "output_chunk_0_2.h5")) and "\n" not in message
    assert "example 1 holds token id 4711" in message


def test_a_killed_worker_is_one_clear_line(folder):
    """As the kernel does when memory runs out. It is met where the batch is missed, not by a signal at any moment."""
    before = signal.getsignal(signal.SIGCHLD)
    source = feed.iterate_batches(opened(folder, num_workers=2, prefetch_factor=1), 0, 50)
    first = next(source)
    assert first["input_ids"].shape[0] == 4 and signal.getsignal(signal.SIGCHLD) == before
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    message = refusal(source)
    assert "\n" not in message and "killed" in message
    assert "train_dataloader.num_workers (2; 0 reads" in message and "prefetch_factor (1)" in message


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["chunk", "gone", "shrunk"])
def test_damage_that_shows_only_on_reading(folder, damage, workers):
    path = folder / "output_chunk_0_2.h5"
    shards = opened(folder, num_workers=workers, prefetch_factor=2)
    if damage == "gone":
        path.unlink()
    elif damage == "shrunk":
        write_shard(path, numbered(1, 12))
    else:
        with h5py.File(path) as file:
            at = file["data"].id.get_chunk_info(1).byte_offset
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(b"\xff" * 16)
    message = refusal(feed.iterate_batches(shards, 0, 9))
    advice = "make this shard again" if damage == "gone" else "restore it(, or start again)?"
    assert re.fullmatch(rf".*output_chunk_0_2\.h5: example \d cannot be read \(.*\); {advice}", message)


# --- fingerprint ------------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_content_and_order_alone(folder, tmp_path):
    base = opened(folder, shuffle=True, shuffle_seed=3).fingerprint()
    print_of = lambda at=folder, **f: opened(at, **{"shuffle": True, "shuffle_seed": 3, **f}).fingerprint()
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    same = [
        print_of(), print_of(moved), print_of(num_workers=2), print_of(prefetch_factor=3), print_of(num_samples=15),
        print_of(max_sequence_length=8),
    ]  # fmt: skip
    assert set(same) == {base}
    assert print_of(shuffle=False) == print_of(shuffle=False, shuffle_seed=9)  # a seed that is not used
    assert print_of(shuffle_seed=None) == print_of(shuffle_seed=0)
    others = [
        print_of(batch_size=5), print_of(shuffle=False), print_of(shuffle_seed=4), print_of(num_samples=14),
        print_of(folder / "output_chunk_0_0.h5"),
    ]  # fmt: skip
    write_shard(moved / "output_chunk_0_1.h5", numbered(7, 40))  # as many examples, other tokens
    others.append(print_of(moved))
    assert len({base, *others}) == 1 + len(others)


def test_the_fingerprint_reads_checksums_from_the_manifest(folder):
    write_manifest(folder)
    base = opened(folder).fingerprint()
    facts = json.loads((folder / "manifest.json").read_text())
    facts["created"] = "another day"
    (folder / "manifest.json").write_text(json.dumps(facts))
    assert opened(folder).fingerprint() == base
    facts["shards"][1]["data_sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(facts))
    assert opened(folder).fingerprint() != base


def test_preprocessings_manifests_are_understood(tmp_path):
    """What the writer of shards notes about a shard is what the fingerprint reads."""
    from data_preprocessing.tokens.shards import write_shard as write

    facts = write(str(tmp_path / "output_chunk_0_0.h5"), numbered(5, 0), "gzip") | {"loss_tokens": 40}
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": [facts]}))
    path = str(tmp_path / "output_chunk_0_0.h5")
    ((found, recorded),) = files.list_recorded([path])
    assert found == path and recorded._asdict() == {k: facts[k] for k in recorded._fields}
    assert holding.hash_file(path) == facts["sha256"] and holding.hash_values(path) == facts["data_sha256"]
    assert numbers(opened(tmp_path).batch(0)) == [0, 1, 2, 3]


def test_the_fingerprint_of_a_mixture_knows_its_parts(folder):
    files = sorted(str(p) for p in folder.glob("*.h5"))

    def of(parts, weights=(1, 2)):
        mixture = [{"data_dir": p, "weight": w} for p, w in zip(parts, weights, strict=True)]
        return Shards.open(loader(mixture=mixture, data_dir=None), 100).fingerprint()

    found = {of([files[:1], files[1:]]), of([files[:2], files[2:]]), of([files[:1], files[1:]], (2, 1))}
    assert len(found) == 3


def test_the_fingerprint_knows_whether_documents_are_kept_apart(tmp_path):
    write_shard(tmp_path / "v.h5", numbered(6, 0, rows=5))
    assert opened(tmp_path, use_vsl=True).fingerprint() != opened(tmp_path).fingerprint()


@pytest.mark.realdata
def test_shards_in_model_zoos_format(shared_data):
    """Every folder of shards beside the repository reads as it is."""
    folders = sorted({p.parent for p in shared_data.rglob("*.h5")})
    if not folders:
        pytest.skip("no HDF5 shard among the real data")
    for at in folders:
        with h5py.File(sorted(at.glob("*.h5"))[0]) as file:
            rank = file["data"].ndim
        shards = Shards.open(loader(at, max_sequence_length=128 if rank == 1 else None), 10**9)
        assert len(shards) > 0 and shards.batch(0)["input_ids"].shape == (4, shards.msl)
