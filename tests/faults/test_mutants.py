"""The parts that damage inputs: what is not mutated is taken, and a product that checks nothing is found out."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from tests.faults import (
    artefacts,
    check,
    child,
    kinds_config,
    kinds_data,
    kinds_model,
    part_damage,
    part_mutants,
)
from tests.faults import world as worlds
from tests.faults.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as m:
        for name, value in child.PLAIN.items():
            m.setenv(name, value)  # as `warm_up` does, for the other tests to be undone
        child.warm_up()
        yield worlds.build(tmp_path_factory.mktemp("faults") / "world")
    torch.set_num_threads(threads)


@pytest.fixture
def case_folder(tmp_path: Path):
    """A fresh folder for each case of a test."""
    numbers = itertools.count()

    def make() -> Path:
        folder = tmp_path / f"case_{next(numbers)}"
        folder.mkdir()
        return folder

    return make


def test_what_is_not_mutated_is_taken(world: World, case_folder, monkeypatch):
    """Else a kind of input would be refused for reasons of its own, and its mutants would show nothing."""
    same = {"mutate_yaml": lambda d, r, p: d, "mutate_words": lambda d, r, p: list(d), "mutate_json": lambda d, r: d,
            "mutate_json_lines": lambda d, r: (d, None), "mutate_shard": lambda d, r, o: d, "mutate_mdl": lambda d,
            r, o: d,
            "mutate_safetensors": lambda d, r: d, "mutate_record": lambda d, r: d,
            "mutate_citations": lambda h, rs, t, r: (h + b"".join(rs) + t, None)}  # fmt: skip
    for module, (name, function) in itertools.product((kinds_config, kinds_data, kinds_model), same.items()):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, function)
    for name, run in part_mutants.INPUTS.items():
        if not name.startswith("tar"):
            assert run(world, case_folder(), Random(3)).kind == "ok", name


def test_a_product_that_checks_nothing_is_found_out(world: World, case_folder, monkeypatch):
    """The harness itself can fail: without the check of the sums, flipped weights are silent, lost records lost."""
    from modelzoo.training.checkpoints import checkpoint

    monkeypatch.setattr(checkpoint, "_check_file", lambda path, facts: None)
    kinds = [
        part_damage.run_case(world, part_damage.Case("checkpoint", seed), case_folder()).kind for seed in range(12)
    ]
    assert "silent" in kinds

    from data_preprocessing.sources import pubmed

    cut = pubmed.cut
    monkeypatch.setattr(pubmed, "cut", lambda chunks, path: itertools.islice(cut(chunks, path), 3))
    kinds = [
        part_mutants.run_case(world, part_mutants.Case("PubMed XML", seed), case_folder()).kind for seed in range(6)
    ]
    assert "lost" in kinds


def test_an_end_is_weighed_by_what_was_printed(tmp_path: Path):
    end = lambda code, err, **more: child.Outcome(code, None, "", err, 0.1, False, **more)
    assert check.weigh(end(0, "")).kind == "ok"
    assert check.weigh(end(2, "error: a.yaml: no\n"), ("a.yaml",)).kind == "refused"
    assert check.weigh(end(2, "error: a.yaml: no\nerror: a.yaml: neither\n"), ("a.yaml",)).kind == "refused"
    assert check.weigh(end(2, "error: something\n"), ("a.yaml",)).kind == "traceback"
    assert check.weigh(end(2, "")).kind == "traceback"
    assert check.weigh(end(70, "error: x")).kind == "fault70"
    assert check.weigh(end(1, "Traceback (most recent call last)\n")).kind == "traceback"
    assert check.weigh(end(0, "")._replace(timed_out=True)).kind == "hang"
    assert check.weigh(end(None, "")._replace(signal=24)).kind == "hang"


def test_a_strayed_file_is_seen(tmp_path: Path):
    (tmp_path / "in").write_text("x")
    before = check.snapshot(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_text("y")
    assert check.strayed(before, check.snapshot(tmp_path), ("out",)) == ""
    (tmp_path / "in").write_text("z")
    assert check.strayed(before, check.snapshot(tmp_path), ("out",)) == "in"
    (tmp_path / "in").write_text("x")
    (tmp_path / "outside").symlink_to("/etc/passwd")
    assert check.strayed(before, check.snapshot(tmp_path), ("out",)) == "outside"


def test_each_artefact_has_files_to_damage(world: World, tmp_path: Path):
    for number, artefact in enumerate(artefacts.ARTEFACTS.values()):
        if artefact.needs:
            world.copy(*artefact.needs, to=tmp_path / str(number))
            assert any((tmp_path / str(number)).glob(artefact.files)), artefact.name
