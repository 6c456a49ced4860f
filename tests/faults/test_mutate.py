"""The mutators: each changes its input, and the same seed gives the same bytes."""

import io
import json
from random import Random

import h5py
import pytest
import torch

from tests.faults import (
    mutate_bytes,
    mutate_hdf5,
    mutate_json,
    mutate_safetensors,
    mutate_tar,
    mutate_words,
    mutate_xml,
    mutate_yaml,
)
from tests.support import examples

JSON = json.dumps({"a": [1, 2.5, None], "b": {"c": "text", "d": True}, "e": 7}).encode()
LINES = b"".join(json.dumps({"id": i, "text": f"text {i}", "year": "2020"}).encode() + b"\n" for i in range(5))
YAML = b"trainer:\n  init:\n    model: {hidden_size: 16, num_heads: 2}\n    seed: 1  # why\n  fit: {batch_size: 4}\n"
RECORDS = [
    b'<PubmedArticle><PMID Version="1">%d</PMID><Article><ArticleTitle>T</ArticleTitle></Article></PubmedArticle>' % i
    for i in (1, 2)
]
MEMBERS = [("a/1.nxml", b"<article>" + b"x" * 700 + b"</article>"), ("a/2.nxml", b"<article/>" * 9)]
SET = [b"<S>", *RECORDS, b"</S>"]
WORDS = ["CPU", "-p", "c.yaml", "-m", "train"]
PATHS = {"fifo": "/x/fifo", "folder": "/x/folder", "circle": "/x/circle", "missing": "/x/missing", "zero": "/dev/zero"}


@pytest.fixture(scope="module")
def shard() -> bytes:
    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        file.create_dataset("data", data=examples(4), chunks=(1, 3, 8), compression="gzip")
        file.attrs["n_examples"] = 4
    return held.getvalue()


@pytest.fixture(scope="module")
def mdl(tmp_path_factory) -> bytes:
    from modelzoo.interop.mdl.file import write_mdl

    path = tmp_path_factory.mktemp("mdl") / "x.mdl"
    write_mdl(str(path), {"model": {"a": torch.ones(3, 2), "b": torch.zeros(4)}, "global_step": 3})
    return path.read_bytes()


@pytest.fixture(scope="module")
def tensors() -> bytes:
    import safetensors.torch

    return safetensors.torch.save({"a": torch.ones(3, 2), "b": torch.zeros(4), "c": torch.arange(5)})


def mutate_command(draw: Random) -> bytes:
    return "\0".join(mutate_words.mutate_words(WORDS, draw, PATHS)).encode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def mutators(shard: bytes, mdl: bytes, tensors: bytes):
    data = Random(0).randbytes(40_000)
    every = {f"bytes.{n}": (lambda d, n=n: mutate_bytes.damage(data, d, n), data) for n in mutate_bytes.DAMAGES}
    return {
        **every,
        "json": (lambda d: mutate_json.mutate_json(JSON, d), JSON),
        "jsonl": (lambda d: mutate_json.mutate_json_lines(LINES, d)[0], LINES),
        "yaml": (lambda d: mutate_yaml.mutate_yaml(YAML, d, PATHS), YAML),
        "record": (lambda d: mutate_xml.mutate_record(RECORDS[0], d), RECORDS[0]),
        "citations": (lambda d: mutate_xml.mutate_citations(b"<S>", RECORDS, b"</S>", d)[0], b"".join(SET)),
        "tar": (lambda d: mutate_tar.mutate_tar(MEMBERS, d, False)[0], mutate_tar.pack(MEMBERS)),
        "tar.gz": (lambda d: mutate_tar.mutate_tar(MEMBERS, d, True)[0], b""),
        "shard": (lambda d: mutate_hdf5.mutate_shard(shard, d, "/x/other.h5"), shard),
        "mdl": (lambda d: mutate_hdf5.mutate_mdl(mdl, d, "/x/other.h5"), mdl),
        "safetensors": (lambda d: mutate_safetensors.mutate_safetensors(tensors, d), tensors),
        "words": (mutate_command, "\0".join(WORDS).encode()),
    }  # fmt: skip


def test_each_mutant_differs_and_its_seed_repeats_it(mutators):
    for name, (mutate, undamaged) in mutators.items():
        found = [mutate(Random(f"{name}{i}")) for i in range(150)]
        assert all(m != undamaged for m in found), name
        assert found[:40] == [mutate(Random(f"{name}{i}")) for i in range(40)], name
        assert len(set(found)) > 25, name


def test_a_zeroed_or_doubled_sector_of_zeros_is_still_a_mutant():
    for name in mutate_bytes.DAMAGES:
        assert mutate_bytes.damage(bytes(5000), Random(0), name) != bytes(5000)


def test_mutated_lines_and_records_leave_their_neighbours():
    for seed in range(200):
        data, at = mutate_json.mutate_json_lines(LINES, Random(seed))
        before, after = LINES.splitlines(), data.split(b"\n")[:-1]
        assert [x for i, x in enumerate(after) if i != at] == [x for i, x in enumerate(before) if i != at]
        data, number = mutate_xml.mutate_citations(b"<S>", RECORDS, b"</S>", Random(seed))
        assert number is None or RECORDS[1 - number] in data


def test_the_members_that_are_needed_are_those_that_a_mutant_still_holds():
    for seed in range(300):
        data, needed = mutate_tar.mutate_tar(MEMBERS, Random(seed), False)
        assert needed == {0, 1} or all(MEMBERS[i][1] in data for i in needed)  # all: it is broken as a whole


def test_a_mutated_header_of_a_tar_can_have_a_checksum_that_fits():
    import tarfile

    fits = 0
    for seed in range(100):
        try:
            with tarfile.open(fileobj=io.BytesIO(mutate_tar.mutate_tar(MEMBERS, Random(seed), False)[0])) as archive:
                fits += len(archive.getnames()) > 0
        except (tarfile.TarError, ValueError):
            pass
    assert 20 < fits < 100


def test_the_shards_stay_hdf5(shard: bytes):
    ranks = set()
    for seed in range(60):
        with h5py.File(io.BytesIO(mutate_hdf5.mutate_shard(shard, Random(seed), "/x/other.h5"))) as file:
            link = file.get("data", getlink=True)
            found = file["data"] if isinstance(link, h5py.HardLink) else None
            ranks.add(found.ndim if isinstance(found, h5py.Dataset) else None)
    assert None in ranks and len(ranks) > 2


def test_values_of_all_types_take_part():
    types = set()
    for seed in range(400):
        tree = mutate_json.mutate_tree({"x": 1}, Random(seed))
        if isinstance(tree, dict) and "x" in tree:
            types.add(type(tree["x"]))
    assert types >= {str, int, float, bool, list, dict, type(None)}
